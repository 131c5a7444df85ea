"""Publish-subscribe, push-pull and request-response: decorated handlers of real daemons, and what sends to them."""

import json
import pathlib
from collections.abc import Callable, Iterator

import pytest
from daemon import Daemon, StartDaemon
from peer import Peer

HANDLERS = """
    import rpcd

    @rpcd.subscribe("cows")
    def heard(message):
        print("heard", message.body)

    @rpcd.pull("cows", retry={"delays": [0.1]}, on_error="retry")
    def milked(message):
        if message.body == "kicks" and message.attempt == 1:
            raise OSError("the bucket is gone")
        print("milked", message.body, "on attempt", message.attempt)

    @rpcd.respond("cows", prefix="farm")
    def count(message):
        if message.body == "all":
            output = rpcd.Output(message, "cows")
            output.publish("moo")
            output.push("bella")
        return {"counted": message.body}
    """

CONFIG = """
    [service]
    modules = ["handlers_of_test"]
    """


@pytest.fixture
def beside(tmp_path: pathlib.Path, url: str) -> Iterator[Callable[[], Daemon]]:
    """Start one more daemon of the config that was started already."""
    running: list[Daemon] = []

    def begin() -> Daemon:
        running.append(Daemon(tmp_path / "rpcd.toml", url))
        return running[-1].ready()

    yield begin
    for daemon in running:
        daemon.kill()


def test_a_message_reaches_all_who_have_subscribed(start: StartDaemon, beside: Callable[[], Daemon], peer: Peer) -> None:
    daemons = [start(CONFIG, HANDLERS), beside()]
    peer.publish("", "moo", "publish_subscribe.cows")
    for daemon in daemons:
        daemon.wait_for("heard moo")
    peer.channel.exchange_declare("publish_subscribe.cows", "fanout", durable=False)  # else the broker would refuse
    assert daemons[0].stop() == 0
    peer.publish("", "mooo", "publish_subscribe.cows")
    daemons[1].wait_for("heard mooo")


def test_each_message_is_pulled_by_one_and_waits_for_it(
    start: StartDaemon, beside: Callable[[], Daemon], peer: Peer
) -> None:
    daemons = [start(CONFIG, HANDLERS), beside()]
    for number in range(10):
        peer.publish("push_pull.cows", number)
    peer.publish("push_pull.cows", "kicks")

    def milked() -> list[str]:
        lines = [line for daemon in daemons for line in daemon.lines]
        return sorted(line.partition("milked ")[2].partition(" consumer=")[0] for line in lines if "milked " in line)

    wanted = sorted([*(f"{number} on attempt 1" for number in range(10)), "kicks on attempt 2"])
    peer.until(lambda: milked() == wanted, what=lambda: str(milked()))
    for daemon in daemons:
        assert daemon.stop() == 0
    peer.publish("push_pull.cows", "late")  # kept, though nobody pulls
    assert [json.loads(each.body) for each in peer.left("push_pull.cows")] == ["late"]


def test_a_request_is_answered_by_one_and_what_it_sends_follows(start: StartDaemon, peer: Peer) -> None:
    daemon = start(CONFIG, HANDLERS)
    assert "consuming, workers: 1, prefetch: 1 consumer=farm.request_response.cows" in daemon.output
    assert peer.call("farm.request_response.cows", 3).json["data"] == {"counted": 3}
    assert peer.call("farm.request_response.cows", "all").json["success"] is True
    daemon.wait_for("heard moo")
    daemon.wait_for("milked bella on attempt 1")
    assert daemon.stop() == 0
    assert peer.exists("farm.request_response.cows")


@pytest.mark.parametrize("pattern", ["subscribe", "pull", "respond"])
def test_two_inputs_of_the_same_name_are_an_error(start: StartDaemon, pattern: str) -> None:
    handlers = (
        HANDLERS
        + f"""
    @rpcd.{pattern}("cows", prefix={'"farm"' if pattern == "respond" else '""'})
    def again(message):
        pass
    """
    )
    daemon = start(CONFIG, handlers, at="amqp://127.0.0.1:1/", wait=False)
    assert daemon.wait() == 78
    assert f"@{pattern} handlers_of_test:again: the consumer " in daemon.output
    assert "is that of handlers_of_test:" in daemon.output


def test_the_config_has_the_last_word(start: StartDaemon, peer: Peer) -> None:
    config = f"""{CONFIG}
    [queues."push_pull.cows"]
    type = "classic"
    [consumers."publish_subscribe.cows"]
    workers = 3
    """
    daemon = start(config, HANDLERS)
    assert "consuming, workers: 3, prefetch: 6 consumer=publish_subscribe.cows" in daemon.output
    assert daemon.stop() == 0
