"""The inbox with real daemons, a real broker and real databases: a duplicate is answered, and runs nowhere."""

import pathlib
import re
import signal
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from daemon import Daemon, StartDaemon
from databases import Postgresql, Redis
from peer import Peer
from proxy import UP, Link, Proxy

from rpcd.features.inbox.postgresql import PostgresqlStore
from rpcd.features.inbox.redis import RedisStore
from rpcd.features.inbox.sqlite import SqliteStore
from rpcd.features.inbox.store import Claim, Store
from rpcd.ops.rabbitmq import PrivateNode

HANDLERS = """
    import asyncio, os, pathlib, time
    import rpcd

    folder = pathlib.Path(__file__).parent

    def noted(message):
        with (folder / "runs").open("a") as runs:
            runs.write(f"{os.getpid()} {message.message_id}\\n")
        message.publish("", "placed", {"pid": os.getpid()})
        return {"pid": os.getpid()}

    def work(message):
        return noted(message)

    async def work_async(message):
        await asyncio.sleep(0)
        return noted(message)

    def slow(message):
        noted(message)
        while not (folder / "gate").exists():
            time.sleep(0.01)
        return {"pid": os.getpid()}

    async def forgets(message):
        noted(message)
        if message.body:
            message.publish_now("no-such-exchange", "key")  # not awaited: it fails the handler all the same

    async def slow_async(message):
        noted(message)
        while not (folder / "gate").exists():
            await asyncio.sleep(0.01)
        return {"pid": os.getpid()}
"""

CONFIG = """
    [queues.work]
    [queues.placed]
    [consumers.work]
    queue = "work"
    handler = "handlers_of_test:{handler}"
    layers = ["inbox"]
    retry = {{ delays = [0.1, 0.5] }}
    [layers.inbox]
    url = "{url}"
    lease = {lease}
"""

ACKS = re.compile(rb"\x01..\x00\x00\x00\x0d\x00\x3c\x00\x50.{9}\xce", re.DOTALL)
"""Frames of basic.ack."""


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def url_of_store(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """A store of each kind, as a config names it."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/inbox.sqlite3"
    server: Postgresql | Redis = request.getfixturevalue("postgresql" if request.param == "postgresql" else "redis_server")
    return server.url if isinstance(server, Redis) else server.url()


@pytest.fixture
def proxies(node: PrivateNode) -> Iterator[list[Proxy]]:
    """A proxy for each of two daemons."""
    both = [Proxy(node.port), Proxy(node.port)]
    yield both
    for each in both:
        each.close()


def runs(folder: pathlib.Path) -> list[int]:
    """Return by which process the handler was run, each time."""
    file = folder / "runs"
    return [int(line.split()[0]) for line in file.read_text().splitlines()] if file.exists() else []


def withhold_acks(link: Link, way: str, piece: bytes) -> bytes:
    """Let everything pass but acks: what goes out before them, the reply, arrives."""
    return ACKS.sub(b"", piece) if way == UP and link.name == "work" else piece


@pytest.mark.parametrize("handler", ["work", "work_async"])
def test_a_daemon_that_is_killed_between_its_reply_and_its_ack_has_its_message_answered_by_another(
    start: StartDaemon, peer: Peer, url: str, proxies: list[Proxy], url_of_store: str, tmp_path: pathlib.Path, handler: str
) -> None:
    config = CONFIG.format(handler=handler, url=url_of_store, lease=60)
    daemons = [start(config, HANDLERS, at=each.url(url)) for each in proxies]
    for each in proxies:
        each.tamper = withhold_acks
    asked = {"message_id": str(uuid.uuid4()), "reply_to": peer.reply_queue, "correlation_id": "c"}
    peer.publish("work", {"order": 1}, **asked)
    (first,) = peer.replies()
    (pid,) = runs(tmp_path)
    number = next(number for number, each in enumerate(daemons) if each.process.pid == pid)
    killed, other = daemons[number], daemons[1 - number]
    proxies[1 - number].tamper = None
    killed.signal(signal.SIGKILL)
    killed.wait()
    (second,) = peer.replies()
    assert (second.body, second.properties.correlation_id) == (first.body, "c")
    assert first.json == {"success": True, "data": {"pid": pid}, "message": None}
    other.wait_for("answered from the inbox")
    assert [each.json for each in peer.take("placed", 2)] == [{"pid": pid}] * 2  # as promised: again, rather than not
    assert other.stop() == 0
    assert runs(tmp_path) == [pid]
    assert peer.left("work") == peer.left("work.archive") == []


def test_a_client_that_asks_twice_gets_the_same_answer_twice(
    start: StartDaemon, peer: Peer, url_of_store: str, tmp_path: pathlib.Path
) -> None:
    start(CONFIG.format(handler="work", url=url_of_store, lease=60), HANDLERS)
    message_id = str(uuid.uuid4())
    answers = [peer.call("work", {"order": 1}, message_id=message_id).body for _ in range(3)]
    assert len(set(answers)) == len(runs(tmp_path)) == 1
    peer.call("work", {"order": 2}, message_id=message_id)  # another body: ids of clients may not be unique
    peer.call("work", {"order": 1})
    assert len(runs(tmp_path)) == 3


def test_a_handler_that_forgot_to_await_what_then_failed_has_no_success_that_is_kept(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    start(CONFIG.format(handler="forgets", url=f"sqlite://{tmp_path}/inbox.sqlite3", lease=60), HANDLERS)
    answers = [peer.call("work", {"a": 1}, message_id="m").json["success"] for _ in range(2)]
    assert (answers, len(runs(tmp_path))) == ([False, False], 2)


@pytest.mark.parametrize("handler", ["slow", "slow_async"])
def test_a_duplicate_waits_while_the_first_one_runs_elsewhere(
    start: StartDaemon, peer: Peer, url_of_store: str, tmp_path: pathlib.Path, handler: str
) -> None:
    config = CONFIG.format(handler=handler, url=url_of_store, lease=60)
    daemons = [start(config, HANDLERS) for _ in range(2)]
    asked = {"message_id": str(uuid.uuid4()), "reply_to": peer.reply_queue}
    for number in range(2):
        peer.publish("work", {"order": 1}, correlation_id=str(number), **asked)
    lines: Callable[[Daemon], list[str]] = lambda each: [line for line in each.lines if "put off by Nack" in line]  # noqa: E731
    peer.until(lambda: bool(sum(len(lines(each)) for each in daemons)))
    (tmp_path / "gate").touch()
    first, second = peer.replies(2)
    assert first.body == second.body
    assert len(runs(tmp_path)) == 1


def test_the_message_of_a_daemon_that_was_killed_while_it_ran_is_run_by_another_when_its_lease_has_ended(
    start: StartDaemon, peer: Peer, url_of_store: str, tmp_path: pathlib.Path
) -> None:
    config = CONFIG.format(handler="slow", url=url_of_store, lease=2).replace("retry =", "prefetch = 1\n    retry =")
    first = start(config, HANDLERS)
    asked = {"message_id": str(uuid.uuid4()), "reply_to": peer.reply_queue}
    peer.publish("work", {}, **asked)
    peer.until(lambda: len(runs(tmp_path)) == 1)
    second = start(config, HANDLERS)
    peer.publish("work", {}, **asked)
    second.wait_for("put off by Nack", 6)  # half a second each: by now the lease would have ended, were it not renewed
    assert runs(tmp_path) == [first.process.pid]
    first.signal(signal.SIGKILL)
    first.wait()
    (tmp_path / "gate").touch()
    assert [each.json["data"] for each in peer.replies(2)] == [{"pid": second.process.pid}] * 2
    assert runs(tmp_path) == [first.process.pid, second.process.pid]


@pytest.mark.parametrize("kind", ["postgresql", "redis"])
def test_while_the_database_is_down_messages_wait_and_then_they_run(
    start: StartDaemon, peer: Peer, tmp_path_factory: pytest.TempPathFactory, tmp_path: pathlib.Path, kind: str
) -> None:
    server = Postgresql() if kind == "postgresql" else Redis(tmp_path_factory.mktemp("own"))
    at = server.url if isinstance(server, Redis) else server.url()
    server.start()
    try:
        daemon = start(CONFIG.format(handler="work", url=at, lease=60), HANDLERS)
        message_id = str(uuid.uuid4())
        before = peer.call("work", {}, message_id=message_id)
        server.stop()
        peer.publish("work", {"order": 2}, message_id=str(uuid.uuid4()), reply_to=peer.reply_queue)
        daemon.wait_for("the inbox can't be reached: .*; messages wait for it in their retry steps")
        daemon.wait_for("put off by Nack", 2)
        assert len(runs(tmp_path)) == 1
        server.start()
        assert peer.replies()[0].json["success"] is True
        daemon.wait_for("the inbox can be reached again")
        assert peer.call("work", {}, message_id=message_id).body == before.body
        assert len(runs(tmp_path)) == 2
        assert daemon.stop() == 0
    finally:
        server.remove() if isinstance(server, Postgresql) else server.stop()


def test_a_daemon_without_its_store_is_not_ready_and_says_why(start: StartDaemon, peer: Peer) -> None:
    daemon = start(CONFIG.format(handler="work", url="postgresql://nobody@127.0.0.1:1/none", lease=60), HANDLERS, wait=False)
    daemon.wait_for("handlers_of_test:work can't be made; next try in 0.5 s")
    daemon.wait_for("connection failed|Connection refused")
    assert daemon.stop() == 0
    assert "ready, consuming" not in daemon.output


# What every store must do -------------------------------------------------------------------------


@pytest.fixture
def store(url_of_store: str, tmp_path: pathlib.Path) -> Store:
    kind = url_of_store.partition(":")[0]
    made: Store
    if kind == "sqlite":
        made = SqliteStore(tmp_path / "inbox.sqlite3")
    else:
        made = PostgresqlStore(url_of_store) if kind == "postgresql" else RedisStore(url_of_store)
    made.open()
    made.open()
    return made


def test_a_claim_is_one_owners_until_it_is_finished_or_released(store: Store) -> None:
    key = uuid.uuid4().bytes * 2
    assert store.claim((key, "a"), 60) == store.claim((key, "a"), 60) == Claim()
    busy = store.claim((key, "b"), 60)
    assert busy.kept is None
    assert 0 < busy.left <= 60
    store.release((key, "b"))
    assert store.claim((key, "b"), 60).left > 0
    store.release((key, "a"))
    assert store.claim((key, "b"), 60) == Claim()
    assert not store.finish((key, "a"), b"wrong", 60)
    assert store.finish((key, "b"), b"\x00result", 60)
    assert store.finish((key, "b"), b"\x00result", 60)  # again, for its answer may have been lost
    store.release((key, "b"))
    assert store.claim((key, "a"), 60) == Claim(b"\x00result")


def test_a_lease_ends_unless_it_is_renewed_and_a_result_when_it_is_old(store: Store) -> None:
    lost, renewed, old = (uuid.uuid4().bytes * 2 for _ in range(3))
    for key in (lost, renewed, old):
        assert store.claim((key, "a"), 0.05) == Claim()
    store.renew([(renewed, "a"), (lost, "b")], 60)
    store.finish((old, "a"), b"result", 0.05)
    deadline = time.monotonic() + 30
    while store.claim((lost, "b"), 60) != Claim() or store.claim((old, "b"), 60) != Claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert store.claim((renewed, "b"), 60).left > 30
    store.clean()
    assert store.claim((renewed, "b"), 60).left > 30
