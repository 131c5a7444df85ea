"""Async handlers on a real broker, in the real daemon: what becomes of messages, and how it all ends."""

import json
import pathlib
import signal

import pytest
from daemon import StartDaemon
from peer import Peer

from rpcd.ops.rabbitmq import PrivateNode

HANDLERS = """
import asyncio, logging, os, pathlib, sys, time
import rpcd

gate = pathlib.Path(__file__).with_name("gate")
ledger = os.open(pathlib.Path(__file__).with_name("ledger"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)

async def opened():
    while not gate.exists():
        await asyncio.sleep(0.01)

async def do(message):
    what = message.body["do"]
    if what == "return":
        await asyncio.sleep(0)
        return {"loop": type(asyncio.get_running_loop()).__name__}
    if what == "retry":
        if message.attempt < 3:
            raise rpcd.Retry
        return {"attempt": message.attempt}
    if what == "permanent":
        raise rpcd.PermanentFailure("no such warehouse")
    if what == "boom":
        raise RuntimeError("a secret text")
    if what == "exit":
        sys.exit(0)
    if what == "publish":
        message.publish("", message.body["key"], {"from": "publish"})
        await message.publish_now("", message.body["key"], {"from": "publish_now"})
        return {}
    if what == "forgotten":
        message.publish_now("", "nowhere", {}, mandatory=True)
    if what == "process":
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(6 * 7)", stdout=asyncio.subprocess.PIPE)
        out, _ = await child.communicate()
        return {"said": out.decode().strip(), "code": child.returncode}
    if what == "log":
        logging.warning("from the task")
        await asyncio.to_thread(logging.warning, "from its thread")

async def slow(message):
    logging.info("running %s", message.message_id)
    os.write(ledger, f"{message.message_id}\\n".encode())
    await opened()
    os.write(ledger, f"{message.message_id} done\\n".encode())
    return {"id": message.message_id}

class Batch:
    def __init__(self, config):
        asyncio.get_running_loop()
        logging.info("made with %s", config["a"])

    async def __call__(self, message):
        await slow(message)

    async def shutdown(self, error):
        await asyncio.sleep(0)
        logging.info("shut down after %r", error)

async def ordered(message):
    key, number = message.body["key"], message.body["number"]
    os.write(ledger, f"{key} {number} begins\\n".encode())
    await asyncio.sleep(0.002 if number % 2 else 0)
    os.write(ledger, f"{key} {number} ends\\n".encode())

async def halting(message):
    if message.body["do"] == "halt":
        raise rpcd.HaltConsumer(exit_code=3, reason="enough")
    await asyncio.sleep(0.2)

async def hanging(message):
    if message.body["do"] == "hang":
        await asyncio.Event().wait()
    if message.body["do"] == "block":
        time.sleep(60)
    await asyncio.sleep(30 if message.body["do"] == "long" else 0)

async def other(message):
    pass

def plain(message):
    pass
"""

CONFIG = """
[service]
drain_timeout = {drain}
[queues.work]
[consumers.work]
queue = "work"
handler = "handlers_of_test:{handler}"
workers = {workers}
{more}
"""


def config(handler: str, *, workers: int = 8, drain: float = 20, more: str = "") -> str:
    return CONFIG.format(handler=handler, workers=workers, drain=drain, more=more)


def written(tmp_path: pathlib.Path) -> list[str]:
    return (tmp_path / "ledger").read_text().splitlines()


def test_outcomes_of_a_coroutine(start: StartDaemon, peer: Peer) -> None:
    daemon = start(config("do", more="[consumers.work.retry]\ndelays = [0.1, 0.1]"), HANDLERS)
    assert peer.call("work", {"do": "return"}).json["data"]["loop"].endswith("EventLoop")
    assert peer.call("work", {"do": "retry"}).json["data"] == {"attempt": 3}
    refused = peer.call("work", {"do": "permanent"})
    assert refused.json["message"] == "no such warehouse"
    for what in ("boom", "exit", "forgotten"):
        reply = peer.call("work", {"do": what})
        assert reply.json["success"] is False
        assert b"secret" not in reply.body
    peer.publish("work", b"{bad")
    archived = {message.headers["x-rpcd-exception"]: message.body for message in peer.take("work.archive", 2)}
    assert archived["BadMessage"] == b"{bad"
    assert json.loads(archived["PermanentFailure"]) == {"do": "permanent"}
    assert peer.call("work", {"do": "process"}).json["data"] == {"said": "42", "code": 0}
    assert daemon.stop() == 0
    assert peer.left("work") == []


def test_what_a_coroutine_publishes(start: StartDaemon, peer: Peer) -> None:
    start(config("do"), HANDLERS)
    peer.channel.queue_declare("events")
    assert peer.call("work", {"do": "publish", "key": "events"}).json["success"] is True
    assert {message.json["from"] for message in peer.take("events", 2)} == {"publish", "publish_now"}


def test_log_lines_of_a_task_and_of_its_threads_carry_the_messages_fields(start: StartDaemon, peer: Peer) -> None:
    daemon = start(config("do"), HANDLERS)
    peer.publish("work", {"do": "log"}, message_id="m17")
    for said in ("from the task", "from its thread"):
        (line,) = daemon.wait_for(said)
        assert "consumer=work queue=work message_id=m17 attempt=1" in line


def test_sigterm_lets_running_coroutines_end_and_gives_the_rest_back(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    daemon = start(config("Batch", workers=4, more="[consumers.work.config]\na = 1"), HANDLERS)
    for number in range(10):
        peer.publish("work", {}, message_id=f"m{number}")
    daemon.wait_for("made with 1")
    daemon.wait_for("running m", 4)
    daemon.signal(signal.SIGTERM)
    daemon.wait_for("SIGTERM: stopping")
    peer.until(lambda: peer.channel.queue_declare("work", passive=True).method.message_count == 6)
    (tmp_path / "gate").touch()
    assert daemon.wait() == 0
    assert len([line for line in written(tmp_path) if line.endswith("done")]) == 4
    daemon.wait_for("shut down after None")
    assert [message.properties.message_id for message in peer.left("work")] == [f"m{number}" for number in range(4, 10)]


def test_what_does_not_end_in_time_goes_back(start: StartDaemon, peer: Peer) -> None:
    daemon = start(config("slow", drain=0.5), HANDLERS)
    peer.publish("work", {}, message_id="m")
    daemon.wait_for("running m")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 75
    assert [message.method.redelivered for message in peer.left("work")] == [True]


def test_coroutines_that_outlive_their_connection_do_not_run_twice(
    start: StartDaemon, peer: Peer, node: PrivateNode, virtual_host: str, tmp_path: pathlib.Path
) -> None:
    daemon = start(config("slow"), HANDLERS)
    ids = [f"slow{number}" for number in range(6)]
    for each in ids:
        peer.publish("work", {}, message_id=each)
    daemon.wait_for("running slow", 6)
    node.ctl("close_all_connections", "--vhost", virtual_host, "cut")
    daemon.wait_for("INFO rpcd.consumer: consuming", 2)
    (tmp_path / "gate").touch()
    assert daemon.stop() == 0
    assert sorted(written(tmp_path)) == sorted([*ids, *(f"{each} done" for each in ids)])
    again = Peer(peer.url)
    assert again.left("work") == []
    again.close()


def test_a_lock_keeps_the_order_of_each_key(start: StartDaemon, peer: Peer, tmp_path: pathlib.Path) -> None:
    start(config("ordered", more='lock = "body.key"'), HANDLERS)
    for number in range(40):
        for key in "abc":
            peer.publish("work", {"key": key, "number": number})
    peer.until(lambda: len(written(tmp_path)) == 240)
    for key in "abc":
        mine = [line for line in written(tmp_path) if line.startswith(key)]
        assert mine == [f"{key} {number} {step}" for number in range(40) for step in ("begins", "ends")]


def test_a_coroutine_can_halt(start: StartDaemon, peer: Peer) -> None:
    daemon = start(config("halting", workers=2), HANDLERS)
    for what in ("go on", "halt", "left", "left"):
        peer.publish("work", {"do": what})
    assert daemon.wait() == 3
    assert "halted: enough" in daemon.output
    assert {message.json["do"] for message in peer.left("work")} <= {"left"}
    assert peer.left("work.archive") == []


def test_a_hanging_coroutine_is_cancelled_and_archived_and_the_others_go_on(start: StartDaemon, peer: Peer) -> None:
    daemon = start(config("hanging", workers=2, more="time_limit = 0.4"), HANDLERS)
    for _ in range(12):
        peer.publish("work", {"do": "hang"})
    archived = list(peer.take("work.archive", 12))
    assert {message.headers["x-rpcd-exception"] for message in archived} == {"TimeLimitPassed"}
    assert peer.call("work", {"do": "nothing"}).json["success"] is True
    assert "await asyncio.Event().wait()" in daemon.output  # where it hung
    assert daemon.stop() == 0


def test_a_blocked_loop_costs_the_culprit_alone_and_ends_the_process_with_70(start: StartDaemon, peer: Peer) -> None:
    daemon = start(config("hanging", workers=3, drain=1, more="time_limit = 2"), HANDLERS)
    peer.publish("work", {"do": "long"})
    peer.publish("work", {"do": "long"})
    peer.publish("work", {"do": "block"})
    assert daemon.wait() == 70
    (said,) = daemon.wait_for("handlers_of_test:hanging blocks the loop of all handlers")
    assert "WARNING" in said
    assert "time.sleep(60)" in daemon.output
    assert [message.json["do"] for message in peer.left("work.archive")] == ["block"]
    assert [message.json["do"] for message in peer.left("work")] == ["long", "long"]


def test_async_and_plain_handlers_in_one_process(start: StartDaemon, peer: Peer) -> None:
    more = '[queues.more]\n[consumers.more]\nqueue = "more"\nhandler = "handlers_of_test:plain"\n'
    daemon = start(config("do", more=more), HANDLERS)
    assert peer.call("work", {"do": "return"}).json["success"] is True
    assert peer.call("more", {}).json["success"] is True
    assert daemon.stop() == 0


@pytest.mark.parametrize("mixed", ["async def handle(message): pass", "def handle(message): pass"])
def test_a_namespace_whose_handlers_are_not_all_async_is_refused_at_start(
    start: StartDaemon, tmp_path: pathlib.Path, mixed: str
) -> None:
    package = tmp_path / "acme_async"
    package.mkdir()
    (package / "one.py").write_text("async def handle(message): pass\n")
    (package / "two.py").write_text(mixed + "\n")
    daemon = start(
        """
        [queues.work]
        [exchanges.one]
        [exchanges.two]
        [consumers.work]
        queue = "work"
        namespace = "acme_async"
        exchanges = ["one", "two"]
        """,
        wait=False,
    )
    if mixed.startswith("async"):
        assert daemon.ready().stop() == 0
    else:
        assert daemon.wait() == 78
        assert "consumers.work.namespace: " in daemon.output
        assert "the handlers of one consumer are all async, or none is" in daemon.output
