"""Classes, callable objects and lanes, as the real daemon runs them."""

import json
import pathlib
import re
from collections import defaultdict

from daemon import StartDaemon
from peer import Peer

CLASS = """
    import logging, threading, time
    import rpcd

    class Work:
        def __init__(self, config):
            self.greeting = config["greeting"]
            self.busy = threading.Lock()
            logging.info("made in %s", threading.get_ident())

        def __call__(self, message):
            assert self.busy.acquire(blocking=False), "two threads in one instance"
            try:
                if message.body == "boom":
                    raise ValueError("boom")
                time.sleep(0.02)
                return {"id": id(self), "greeting": self.greeting}
            finally:
                self.busy.release()

        def shutdown(self, exception=None):
            logging.info("shut down by %r", exception)

    class Callable:
        def __call__(self, message):
            return {"id": id(self)}

    shared = Callable()
"""


def test_a_class_is_made_once_per_worker_with_its_own_config(start: StartDaemon, peer: Peer) -> None:
    daemon = start(
        """
        [queues.work]
        [consumers.work]
        queue = "work"
        handler = "handlers_of_test.Work"
        workers = 4
        [consumers.work.config]
        greeting = "hello"
        """,
        CLASS,
    )
    daemon.wait_for("made in", 4)
    for number in range(40):
        peer.publish("work", number, reply_to=peer.reply_queue, correlation_id=str(number))
    answers = [reply.json for reply in peer.replies(40)]
    assert {answer["data"]["greeting"] for answer in answers} == {"hello"}
    assert len({answer["data"]["id"] for answer in answers}) == 4
    assert daemon.stop() == 0
    daemon.wait_for("shut down by None", 4)


def test_an_instance_that_fails_is_shut_down_after_its_message_is_settled_and_replaced(
    start: StartDaemon, peer: Peer
) -> None:
    daemon = start(
        """
        [queues.work]
        [consumers.work]
        queue = "work"
        handler = "handlers_of_test:Work"
        config = { greeting = "hi" }
        on_error = "archive"
        """,
        CLASS,
    )
    first = peer.call("work", "ok").json["data"]["id"]
    assert peer.call("work", "boom").json["success"] is False
    daemon.wait_for("made in", 2)
    order = [line for line in daemon.lines if re.search("archived|shut down|made in", line)]
    assert [re.search("archived|shut down|made in", line)[0] for line in order] == [
        "made in",
        "archived",
        "shut down",
        "made in",
    ]
    assert "shut down by ValueError('boom')" in order[2]
    assert peer.call("work", "ok").json["data"]["id"] != first


def test_a_constructor_that_fails_is_tried_again_until_it_succeeds(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    daemon = start(
        """
        [queues.work]
        [consumers.work]
        queue = "work"
        handler = "handlers_of_test:Late"
        """,
        """
        import pathlib

        class Late:
            def __init__(self):
                pathlib.Path(__file__).with_name("database").read_text()

            def __call__(self, message):
                return "here"
        """,
        wait=False,
    )
    (line,) = daemon.wait_for("handlers_of_test:Late can't be made; next try in 0.5 s")
    assert "ERROR" in line
    (tmp_path / "database").touch()
    daemon.ready()
    assert peer.call("work").json["data"] == {"result": "here"}


def test_a_callable_object_is_shared(start: StartDaemon, peer: Peer) -> None:
    start(
        '[queues.work]\n[consumers.work]\nqueue = "work"\nhandler = "handlers_of_test:shared"\nworkers = 3\n',
        CLASS,
    )
    assert len({peer.call("work").json["data"]["id"] for _ in range(12)}) == 1


def test_on_start_is_called_before_anything_connects(start: StartDaemon, peer: Peer) -> None:
    daemon = start(
        """
        [service]
        on_start = "handlers_of_test:prepare"
        [queues.work]
        [consumers.work]
        queue = "work"
        handler = "handlers_of_test:handle"
        """,
        """
        import logging
        ready = []

        def prepare():
            ready.append(True)
            logging.info("prepared")

        def handle(message):
            return ready
        """,
    )
    assert peer.call("work").json["data"] == {"result": [True]}
    (prepared,) = daemon.wait_for("prepared")
    assert daemon.lines.index(prepared) < daemon.lines.index(daemon.wait_for("connected to")[0])


def test_an_on_start_that_fails_ends_the_process(start: StartDaemon) -> None:
    daemon = start(
        """
        [service]
        on_start = "handlers_of_test:prepare"
        [queues.work]
        [consumers.work]
        queue = "work"
        handler = "handlers_of_test:prepare"
        """,
        """
        def prepare(message=None):
            raise SystemExit("no database")
        """,
        wait=False,
    )
    assert daemon.wait() == 70
    assert "CRITICAL rpcd: service.on_start: handlers_of_test:prepare failed" in daemon.output


KEYS, EACH = 10, 30


def test_a_lock_keeps_the_order_of_each_key_and_lets_the_others_pass(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    daemon = start(
        """
        [queues.work]
        [consumers.work]
        queue = "work"
        handler = "handlers_of_test:one_at_a_time"
        workers = 8
        lock = "body.key"
        """,
        """
        import collections, json, os, pathlib, random, threading, time
        busy = collections.defaultdict(threading.Lock)
        ledger = os.open(pathlib.Path(__file__).with_name("ledger"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)

        def one_at_a_time(message):
            lock = busy[message.body["key"]]
            assert lock.acquire(blocking=False), "two of a key at once"
            time.sleep(random.random() / 200)
            os.write(ledger, json.dumps(message.body).encode() + b"\\n")
            lock.release()
        """,
    )
    for number in range(EACH):
        for key in range(KEYS):
            peer.publish("work", {"key": f"k{key}", "n": number})
    ledger = tmp_path / "ledger"
    peer.until(lambda: ledger.exists() and len(ledger.read_text().splitlines()) == KEYS * EACH)
    order = defaultdict(list)
    for line in ledger.read_text().splitlines():
        done = json.loads(line)
        order[done["key"]].append(done["n"])
    assert order == {f"k{key}": list(range(EACH)) for key in range(KEYS)}
    assert daemon.stop() == 0
    assert peer.left("work.archive") == []


def test_a_message_without_the_locks_key_is_a_bad_message(start: StartDaemon, peer: Peer) -> None:
    start(
        """
        [queues.work]
        [consumers.work]
        queue = "work"
        handler = "handlers_of_test:echo"
        lock = "body.customer"
        """,
        "def echo(message):\n    return message.body\n",
    )
    assert peer.call("work", {"customer": 1}).json["success"] is True
    assert peer.call("work", {"customre": 1}).json["data"] == {
        "place": "body.customer",
        "reason": "missing; the lock of this consumer needs it",
    }


def test_the_lines_of_a_handler_carry_the_fields_of_its_message(start: StartDaemon, peer: Peer) -> None:
    daemon = start(
        """
        [logging]
        format = "json"
        [queues.work]
        [consumers.work]
        queue = "work"
        handler = "handlers_of_test:talk"
        """,
        """
        import logging

        def talk(message):
            logging.getLogger("shop").info("a line\\nand another")
            print("printed")
        """,
    )
    peer.call("work", {}, correlation_id="c\n17")
    lines = [json.loads(line) for line in daemon.wait_for('"shop"|printed', 2)]
    for line in lines:
        assert (line["consumer"], line["queue"], line["correlation_id"], line["attempt"]) == ("work", "work", "c\\n17", 1)
    assert lines[0]["message"] == "a line\nand another"
    assert all(json.loads(line) for line in daemon.lines)


def test_a_process_that_a_handler_forks_can_be_terminated(start: StartDaemon, peer: Peer) -> None:
    handlers = """
        import multiprocessing, threading

        def wait(pipe):
            pipe.send("here")
            threading.Event().wait(60)

        def handle(message):
            context = multiprocessing.get_context("fork")
            mine, its = context.Pipe()
            child = context.Process(target=wait, args=(its,))
            child.start()
            mine.recv()
            child.terminate()
            child.join(10)
            return child.exitcode
        """
    daemon = start('[queues.work]\n[consumers.work]\nqueue = "work"\nhandler = "handlers_of_test:handle"\n', handlers)
    assert peer.call("work").json["data"] == {"result": -15}
    assert daemon.stop() == 0
