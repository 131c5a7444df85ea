"""How the real process ends: signals, exit codes, and what is left in the queue."""

import os
import pathlib
import signal
import subprocess

import pytest
from daemon import TWISTD, StartDaemon
from peer import Peer

from rpcd.amqp.consumer import MOST_LOST

CONFIG = """
[service]
drain_timeout = {drain}
[queues.work]
[consumers.work]
queue = "work"
handler = "handlers_of_test:handle"
workers = 8
prefetch = 16
"""

SLOW = """
    import logging, time

    def handle(message):
        logging.info("running %s", message.body)
        time.sleep(3)
        return {"n": message.body}
"""

STUCK = """
    import logging, threading

    def handle(message):
        logging.info("running %s", message.body)
        threading.Event().wait()
"""


def test_two_signals_at_once_on_an_idle_daemon_leave_nothing_unfinished(start: StartDaemon) -> None:
    daemon = start(CONFIG.format(drain=30), SLOW)
    daemon.signal(signal.SIGTERM)
    daemon.signal(signal.SIGINT)
    assert daemon.wait() == 0
    assert "unfinished" not in daemon.output


def test_what_has_not_started_goes_back_in_order(start: StartDaemon, peer: Peer) -> None:
    daemon = start(CONFIG.format(drain=30), SLOW)
    for number in range(14):
        peer.publish("work", number)
    running = {int(line.rpartition("running ")[2].split()[0]) for line in daemon.wait_for("running", 8)}
    daemon.signal(signal.SIGINT)
    assert daemon.wait() == 0
    assert [int(message.body) for message in peer.left("work")] == sorted(set(range(14)) - running)


HALT = """
    import logging, time
    import rpcd

    def handle(message):
        logging.info("running %s", message.body)
        if message.body == "halt":
            raise rpcd.HaltConsumer({arguments})
        time.sleep(0.5)
        return message.body
"""


@pytest.mark.parametrize(
    ("arguments", "code", "left"),
    [("", 0, []), ("exit_code=3, reason='enough'", 3, []), ("exit_code=3, requeue=True", 3, [b'"halt"'])],
)
def test_a_handler_can_halt(start: StartDaemon, peer: Peer, arguments: str, code: int, left: list[bytes]) -> None:
    daemon = start(CONFIG.format(drain=30), HALT.format(arguments=arguments))
    for body in ("a", "b", "halt"):
        peer.publish("work", body, reply_to=peer.reply_queue, correlation_id=body)
    assert daemon.wait() == code
    replies = {reply.properties.correlation_id: reply.json for reply in peer.replies(2 + (not left))}
    assert replies["a"]["success"] is True
    assert replies["b"]["success"] is True
    assert ("halt" in replies) is (not left)
    assert [message.body for message in peer.left("work")] == left


def test_a_halted_consumer_leaves_the_others_running(start: StartDaemon, peer: Peer) -> None:
    other = '[queues.other]\n[consumers.other]\nqueue = "other"\nhandler = "handlers_of_test:handle"\n'
    daemon = start(CONFIG.format(drain=30) + other, HALT.format(arguments=""))
    peer.publish("work", "halt")
    daemon.wait_for("WARNING rpcd: halted: no reason given consumer=work")
    assert peer.call("other", "x").json["data"] == {"result": "x"}
    peer.publish("other", "halt")
    assert daemon.wait() == 0


def test_on_error_halt_gives_the_culprit_and_the_unstarted_back_and_exits_70(start: StartDaemon, peer: Peer) -> None:
    daemon = start(
        CONFIG.format(drain=30) + 'on_error = "halt"\n',
        """
        import logging, threading, time
        started = threading.Barrier(8)

        def handle(message):
            started.wait(20)
            if message.body == 0:
                raise RuntimeError("boom")
            time.sleep(0.5)
        """,
    )
    for number in range(12):
        peer.publish("work", number)
    assert daemon.wait() == 70
    assert sorted(int(message.body) for message in peer.left("work")) == [0, 8, 9, 10, 11]


def test_a_stuck_handler_is_archived_and_replaced_and_too_many_of_them_exit_70(start: StartDaemon, peer: Peer) -> None:
    daemon = start(CONFIG.format(drain=30).replace("workers = 8", "workers = 1") + "time_limit = 0.3\n", STUCK)
    for number in range(MOST_LOST):
        peer.publish("work", number)
    assert daemon.wait() == 70
    assert {int(message.body) for message in peer.left("work.archive")} == set(range(MOST_LOST))
    assert f"{MOST_LOST} threads are stuck" in daemon.output
    assert "threading.Event().wait()" in daemon.output  # where it hangs


def test_a_wrong_password_is_tried_three_times_and_exits_77_with_the_brokers_words(start: StartDaemon, url: str) -> None:
    config = CONFIG.format(drain=30) + "[broker]\nlogin_patience = 2\n"
    daemon = start(config, SLOW, at=url.replace("guest:guest", "guest:wrong"), wait=False)
    assert daemon.wait() == 77
    assert "CRITICAL rpcd: the broker refused the login: 403 ACCESS_REFUSED - Login was refused" in daemon.output
    assert "wrong" not in daemon.output


def test_an_unknown_virtual_host_exits_77(start: StartDaemon, url: str) -> None:
    config = CONFIG.format(drain=30) + "[broker]\nlogin_patience = 0.2\n"
    daemon = start(config, SLOW, at=url.rpartition("/")[0] + "/nowhere", wait=False)
    assert daemon.wait() == 77
    assert "vhost nowhere not found" in daemon.output


def test_a_broken_config_exits_78_and_lists_every_mistake(start: StartDaemon) -> None:
    daemon = start(
        """
        [service]
        drain_timeout = "5m"
        [queues.work]
        tpye = "quorum"
        [consumers.work]
        queue = "wrok"
        handler = "handlers_of_test:nobody"
        workers = 0
        [consumers.other]
        queue = "work"
        handler = "no_such_module:handle"
        """,
        SLOW,
        wait=False,
    )
    assert daemon.wait() == 78
    listed = [line.partition("rpcd.toml: ")[2] for line in daemon.lines]
    assert len(listed) == 6
    for start_of_line in (
        "service.drain_timeout: expected a number of seconds, got a string",
        "queues.work.tpye: unknown key; did you mean 'type'?",
        "consumers.work.workers: expected a whole number from 1, got 0",
        "consumers.work.queue: there is no [queues.wrok]; did you mean 'work'?",
        "consumers.work.handler: handlers_of_test:nobody: 'handlers_of_test' has no 'nobody'",
        "consumers.other.handler: no_such_module:handle: there is no module 'no_such_module'",
    ):
        assert any(line.startswith(start_of_line) for line in listed), start_of_line


def test_a_queue_that_is_there_with_other_arguments_exits_78_and_says_the_way_out(start: StartDaemon, peer: Peer) -> None:
    peer.channel.queue_declare("work", durable=True)
    daemon = start(CONFIG.format(drain=30), SLOW, wait=False)
    assert daemon.wait() == 78
    assert "queues.work: the broker refused queue 'work': 406 PRECONDITION_FAILED - inequivalent arg" in daemon.output
    assert "set passive = true" in daemon.output


def test_a_daemonised_twistd_works_the_same(start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, url: str) -> None:
    start(CONFIG.format(drain=30), SLOW).stop()
    subprocess.run(
        [str(TWISTD), "rpcd", "--config", "rpcd.toml"],
        cwd=tmp_path,
        env={"RABBITMQ_URL": url, "PATH": "/usr/bin:/bin"},
        check=True,
        timeout=30,
    )
    pid = int((tmp_path / "twistd.pid").read_text())
    assert peer.call("work", 5).json["data"] == {"n": 5}
    os.kill(pid, signal.SIGTERM)
    peer.until(lambda: not (tmp_path / "twistd.pid").exists())
    peer.until(lambda: "stopped, exit code 0" in (tmp_path / "twistd.log").read_text())
