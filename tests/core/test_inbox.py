"""What the inbox recognises messages by, what it keeps, and how its SQLite store behaves."""

import asyncio
import contextlib
import logging
import pathlib
import shutil
import stat
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rpcd
from rpcd.core.errors import Nack
from rpcd.core.wire import Properties
from rpcd.features import inbox
from rpcd.features.inbox.keeper import Keeper
from rpcd.features.inbox.record import answer, identify, keep
from rpcd.features.inbox.settings import Inbox, file_of
from rpcd.features.inbox.sqlite import SqliteStore
from rpcd.features.inbox.store import Claim, Held

HERE = pathlib.Path("/etc/rpcd")


def message(body: Any = None, **options: Any) -> rpcd.Message[Any]:
    named = {name: options.pop(name) for name in ("message_id", "reply_to") if name in options}
    options.setdefault("queue", "orders")
    made = rpcd.Message(body, properties=Properties(**named), **options)
    made.exchange = options.get("exchange", "")
    return made


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ({"url": "mysql://here"}, "url: expected sqlite:///PATH"),
        ({"url": "sqlite:"}, "url: it names no file"),
        ({"url": "sqlite://host/file"}, "url: it names no file"),
        ({"urll": "x"}, "urll: unknown key; did you mean 'url'?"),
        ({"key": "headers"}, "key: it is none of"),
        ({"key": "correlation_id"}, "key: it is none of"),
        ({"lease": 0.5}, "lease: expected 1 second or more"),
        ({"keep": "1d"}, "keep: expected a number of seconds"),
    ],
)
def test_a_mistake_in_its_settings_is_told_with_its_place(table: Any, what: str) -> None:
    _, (problem,) = inbox.check(table, HERE)
    assert str(problem).startswith(what)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://shop:100%swordfish@host/db",
        "postgresql://shop:pa@swordfish@host/db",
        "postgresql://shop:pa/swordfish@host/db",
        "postgresql://shop:swordfish@[::1/db",
        "postgresql://shop@host/db?swordfish",
        "redis://shop:swordfish/7@host/0",
        "redis://shop:pa#swordfish@host/0",
        "rediss://shop:swordfish@host:99999/0",
    ],
)
def test_a_url_that_its_library_would_not_understand_is_a_mistake_and_no_password_is_told(url: str) -> None:
    _, (problem,) = inbox.check({"url": url}, HERE)
    assert problem.path == "url"
    assert "percent-encode" in str(problem)
    assert "swordfish" not in str(problem)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://shop:100%25@one:5432,two:5433/db?target_session_attrs=read-write",
        "postgresql:///shop?host=/run/postgresql",
        "postgresql://shop@[::1]:5432/db",
        "redis://:secret@host:6379/0",
        "rediss://host",
    ],
)
def test_a_url_that_its_library_understands_is_taken(url: str) -> None:
    assert inbox.check({"url": url}, HERE)[1] == []


@pytest.mark.parametrize(
    ("url", "environment", "file"),
    [
        ("sqlite:///var/lib/x.db", {}, "/var/lib/x.db"),
        ("sqlite:x.db", {}, "/etc/rpcd/x.db"),
        ("sqlite:a%20b.db", {}, "/etc/rpcd/a b.db"),
        (None, {"STATE_DIRECTORY": "/var/lib/rpcd/shop:/other"}, "/var/lib/rpcd/shop/inbox.sqlite3"),
        (None, {"XDG_STATE_HOME": "/home/me/state"}, "/home/me/state/rpcd/inbox.sqlite3"),
    ],
)
def test_the_file_is_where_the_url_says_or_in_the_state_directory(url: Any, environment: Any, file: str) -> None:
    assert file_of(url, HERE, environment) == pathlib.Path(file)


# Recognising --------------------------------------------------------------------------------------


def test_a_message_is_recognised_by_its_id_and_its_body_in_its_queue_and_exchange() -> None:
    find = identify("message_id", "")
    first = find(message(message_id="m1", payload=b"a"))
    assert first == find(message(message_id="m1", payload=b"a", attempt=3, redelivered=True, headers={"x-retry-count": 2}))
    others = [
        find(message(message_id="m2", payload=b"a")),
        find(message(message_id="m1", payload=b"b")),
        find(message(message_id=b"m1", payload=b"a")),
        find(message(message_id="m1", payload=b"a", queue="other")),
        find(message(message_id="m1", payload=b"a", exchange="shop")),
        identify("message_id", "staging")(message(message_id="m1", payload=b"a")),
    ]
    assert len({first, *others}) == 1 + len(others)
    assert find(message(payload=b"a")) is find(message(message_id="", payload=b"a")) is None


def test_a_message_may_be_recognised_by_a_header_or_a_part_of_its_body_alone() -> None:
    by_header, by_body = identify("headers.idempotency-key", ""), identify("body.order.id", "")
    assert by_header(message(headers={"idempotency-key": "k"}, payload=b"a")) == by_header(
        message(headers={"idempotency-key": "k"}, payload=b"b")
    )
    assert by_header(message()) is None
    one = message({"order": {"id": 1}})
    assert by_body(one) == by_body(message({"order": {"id": 1, "more": True}}))
    assert by_body(one) != by_body(message({"order": {"id": "1"}}))
    assert by_body(message({"order": 5})) is by_body(message(None)) is by_body(message({"order": {"id": [1]}})) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(), lambda inner: st.dictionaries(st.text(), inner)
)


@given(JSON, st.none() | st.text())
def test_what_is_kept_is_answered_as_it_was(value: Any, text: str | None) -> None:
    first = message(reply_to="amq.gen-1")
    first.publish("", "before")
    first.publish("shop", "order.placed", {"number": 1}, headers={"a": 1}, mandatory=True, message_id="m")
    again = message(reply_to="amq.gen-1")
    assert answer(keep(value, first, 1), again) == value
    (sent,) = again.published
    assert [getattr(sent, name) for name in sent.__slots__] == [getattr(first.published[1], name) for name in sent.__slots__]
    reply = answer(keep(rpcd.Reply({"a": value}, text), first, 1), again)
    assert (reply.data, reply.message) == ({"a": value}, text)


def test_bytes_are_kept_as_they_are_for_a_plain_reply_sends_them_so() -> None:
    first = message(reply_to="amq.gen-1")
    assert answer(keep(b"\xff\x00", first, 0), first) == b"\xff\x00"
    assert answer(keep(memoryview(b"\xff"), first, 0), first) == b"\xff"


def test_nothing_is_encoded_that_nobody_waits_for() -> None:
    assert answer(keep(object(), message(), 0), message()) is None


# The layer ----------------------------------------------------------------------------------------


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "state" / "inbox.sqlite3"


@pytest.fixture
def keeper(file: pathlib.Path, clock: Clock) -> Keeper:
    return Keeper(Inbox(), lambda: SqliteStore(file, clock))


class Handler:
    def __init__(self) -> None:
        self.runs = 0
        self.error: BaseException | None = None

    def __call__(self, its: rpcd.Message[Any]) -> Any:
        self.runs += 1
        its.publish("", "done", {"run": self.runs})
        if self.error is not None:
            raise self.error
        return {"run": self.runs}


def request() -> rpcd.Message[Any]:
    return message(message_id="m1", payload=b"{}", reply_to="amq.gen-1")


def test_a_duplicate_is_answered_and_published_again_without_running(keeper: Keeper) -> None:
    handler = Handler()
    call = inbox.layer(handler, keeper)
    assert call(request()) == {"run": 1}
    again = request()
    assert call(again) == {"run": 1}
    assert [each.body for each in again.published] == [b'{"run":1}']
    assert handler.runs == 1


def test_a_message_without_an_id_runs_each_time_and_that_is_said_once(
    keeper: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Handler()
    call = inbox.layer(handler, keeper)
    with caplog.at_level(logging.INFO, "rpcd.inbox"):
        for _ in range(3):
            call(message(payload=b"{}"))
    assert handler.runs == 3
    assert caplog.messages == [inbox.NO_KEY]


@pytest.mark.parametrize("error", [ValueError(), rpcd.Retry(), rpcd.RequestFailed(), SystemExit(3)])
def test_a_failure_is_not_kept(keeper: Keeper, error: BaseException) -> None:
    handler = Handler()
    call = inbox.layer(handler, keeper)
    handler.error = error
    with pytest.raises(type(error)):
        call(request())
    handler.error = None
    assert call(request()) == {"run": 2}


def test_a_claim_whose_message_is_given_up_before_it_was_made_is_released(file: pathlib.Path, clock: Clock) -> None:
    begun, gate, made = threading.Event(), threading.Event(), threading.Event()

    class Slow(SqliteStore):
        def claim(self, held: Held, lease: float) -> Claim:
            begun.set()
            assert gate.wait(30)
            claim = super().claim(held, lease)
            made.set()
            return claim

    async def handler(_message: rpcd.Message[Any]) -> int:
        return 1

    async def main() -> None:
        call = inbox.layer(handler, Keeper(Inbox(), lambda: Slow(file, clock)))
        first = asyncio.ensure_future(call(request()))
        await asyncio.to_thread(begun.wait)
        first.cancel("the time limit of this message has passed")
        await asyncio.wait([first])
        assert first.cancelled()
        gate.set()
        await asyncio.to_thread(made.wait)
        for _ in range(300):
            with contextlib.suppress(Nack):  # until the keeper's own thread has given it up
                assert await call(request()) == 1
                return
            await asyncio.sleep(0.05)
        raise AssertionError("it is held for ever")

    asyncio.run(main())


def test_what_cannot_be_sent_is_not_kept(keeper: Keeper) -> None:
    runs = []

    def handler(its: Any) -> Any:
        runs.append(its)
        return object()

    call = inbox.layer(handler, keeper)
    for _ in range(2):
        call(request())
    assert len(runs) == 2


def test_work_that_nobody_will_do_is_no_success(keeper: Keeper) -> None:
    async def later() -> None: ...

    call = inbox.layer(lambda its: later(), keeper)
    with pytest.raises(TypeError, match="which nobody runs"):
        call(message(message_id="m1"))


def test_a_message_that_runs_elsewhere_comes_back_later(keeper: Keeper, file: pathlib.Path, clock: Clock) -> None:
    other = Keeper(Inbox(), lambda: SqliteStore(file, clock))
    began, go_on = threading.Event(), threading.Event()

    def slow(its: Any) -> Any:
        began.set()
        go_on.wait(30)
        return "done"

    first: list[Any] = []
    thread = threading.Thread(target=lambda: first.append(inbox.layer(slow, keeper)(request())))
    thread.start()
    began.wait(30)
    handler = Handler()
    call = inbox.layer(handler, other)
    with pytest.raises(Nack) as raised:
        call(request())
    assert raised.value.delay == inbox.FIRST_WAIT
    patient = request()
    patient.nacks = 20
    with pytest.raises(Nack) as raised:
        call(patient)
    assert raised.value.delay == 60.0
    go_on.set()
    thread.join()
    assert (call(request()), first, handler.runs) == ("done", ["done"], 0)


def test_without_its_store_a_message_waits_and_with_unguarded_it_runs(
    file: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Handler()
    for unguarded in (False, True):
        keeper = Keeper(Inbox(unguarded=unguarded), lambda: SqliteStore(file))
        call = inbox._around(handler, keeper, identify("message_id", ""))  # never opened: there is no such file
        if unguarded:
            assert call(request()) == {"run": 1}
        else:
            with pytest.raises(Nack):
                call(request())
    assert [line.partition("; ")[2] for line in caplog.messages] == [
        "messages wait for it in their retry steps",
        "messages run without it",
    ]
    assert all(line.startswith("the inbox can't be reached: OperationalError: ") for line in caplog.messages)


# The SQLite store ---------------------------------------------------------------------------------


@pytest.mark.parametrize("unguarded", [True, False])
def test_a_store_that_was_not_there_is_made_as_soon_as_it_can_be(file: pathlib.Path, clock: Clock, unguarded: bool) -> None:
    keeper = Keeper(Inbox(unguarded=unguarded), lambda: SqliteStore(file, clock))
    handler = Handler()
    if not unguarded:
        call = inbox.layer(handler, keeper)
        shutil.rmtree(file.parent)  # later; what is connected already goes on
        keeper._made = None
        with pytest.raises(Nack):
            call(request())
    else:
        file.parent.write_text("in its way")
        call = inbox.layer(handler, keeper)
        call(request())
        file.parent.unlink()
    for _ in range(3):
        call(request())
    assert handler.runs == 1 + unguarded


@pytest.fixture
def store(file: pathlib.Path, clock: Clock) -> SqliteStore:
    made = SqliteStore(file, clock)
    made.open()
    return made


def test_the_file_is_its_owners_alone(store: SqliteStore, file: pathlib.Path) -> None:
    store.claim((b"k", "a"), 60)
    assert {stat.S_IMODE(each.stat().st_mode) for each in file.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_only_one_may_claim_a_message_until_the_lease_ends(store: SqliteStore, clock: Clock) -> None:
    assert store.claim((b"k", "a"), 60) == Claim()
    assert store.claim((b"k", "a"), 60) == Claim()  # again, for its answer may have been lost
    assert store.claim((b"k", "b"), 60) == Claim(left=60.0)
    clock.now += 50
    store.renew([(b"k", "a")], 60)
    clock.now += 50
    assert store.claim((b"k", "b"), 60).left == 10.0
    clock.now += 10
    assert store.claim((b"k", "b"), 60) == Claim()
    assert not store.finish((b"k", "a"), b"late", 100)
    assert store.finish((b"k", "b"), b"result", 100)
    assert store.claim((b"k", "a"), 60) == Claim(b"result")


def test_a_result_is_forgotten_when_it_is_old(store: SqliteStore, clock: Clock) -> None:
    store.claim((b"k", "a"), 60)
    store.finish((b"k", "a"), b"result", 100)
    clock.now += 99
    store.clean()
    assert store.claim((b"k", "b"), 60).kept == b"result"
    clock.now += 1
    assert store.claim((b"k", "b"), 60) == Claim()
    clock.now += 60
    store.clean()
    store.finish((b"k", "c"), b"result", 100)
    assert store.claim((b"k", "b"), 60).kept == b"result"


def test_a_released_message_may_run_and_a_result_is_never_released(store: SqliteStore) -> None:
    store.claim((b"k", "a"), 60)
    store.release((b"k", "b"))
    assert store.claim((b"k", "b"), 60).left > 0
    store.release((b"k", "a"))
    assert store.claim((b"k", "b"), 60) == Claim()
    store.finish((b"k", "b"), b"result", 100)
    store.release((b"k", "b"))
    assert store.claim((b"k", "c"), 60).kept == b"result"


def test_of_many_threads_one_gets_the_message(file: pathlib.Path) -> None:
    stores = [SqliteStore(file) for _ in range(4)]
    stores[0].open()
    free: list[int] = []

    def claim(number: int) -> None:
        mine = stores[number % 4]
        free.extend(key for key in range(20) if mine.claim((str(key).encode(), str(number)), 60) == Claim())

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(free) == list(range(20))
