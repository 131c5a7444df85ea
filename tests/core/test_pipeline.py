import asyncio
import functools
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

import rpcd
from rpcd.core.codec import Codec
from rpcd.core.handler import target
from rpcd.core.ledger import Ledger
from rpcd.core.locks import lane_key
from rpcd.core.message import Message
from rpcd.core.pipeline import Job, opened, perform, perform_async, run
from rpcd.core.policy import Policy
from rpcd.core.reply import Replies
from rpcd.core.routes import Route
from rpcd.core.tables import Headers
from rpcd.core.verdict import ACKED, Outcome, Verdict
from rpcd.core.wire import Properties

NOW = 1_700_000_000.0


class Boom(Exception):
    pass


class Explosive(msgspec.Struct):
    """A body type that does something nobody expects while it is decoded."""

    kind: str

    def __post_init__(self) -> None:
        raise {"exit": SystemExit(0), "boom": Boom()}[self.kind]


def ignore(message: Message[Any]) -> Any:
    return None


def route(kind: Any = Any, on_error: str = "auto", lock: str | None = None, **others: Any) -> Route:
    return Route(
        consumer="shop-orders",
        queue="orders",
        target=target("shop.orders:it", ignore),
        codec=Codec(["application/json"], kind),
        policy=Policy(Replies(), on_error),
        clock=lambda: NOW,
        key=None if lock is None else lane_key(lock),
        **others,
    )


def job(body: bytes = b'{"a": 1}', asked: bool = False, by: Route | None = None, **properties: Any) -> Job:
    if asked:
        properties = {"reply_to": "amq.gen-caller", **properties}
    message = Message[Any](
        payload=body, properties=Properties(**properties), exchange="shop", routing_key="order", queue="orders"
    )
    return Job(message, by if by is not None else route(), Ledger(), 1)


def outcome_of(done: Job) -> Outcome:
    assert done.outcome is not None
    return done.outcome


def test_a_fresh_job_has_no_outcome_and_is_claimed_by_nobody() -> None:
    fresh = job()
    assert (fresh.outcome, fresh.claimed, fresh.entered, fresh.key, fresh.joined, fresh.tag) == (
        None,
        False,
        False,
        None,
        None,
        1,
    )


def test_a_handler_gets_the_opened_message_and_its_return_is_a_success() -> None:
    seen: list[Any] = []
    done = job()
    perform(done, lambda message: seen.append(message.body))
    assert (seen, done.outcome) == ([{"a": 1}], ACKED)


def test_a_request_is_answered_with_what_the_handler_returned() -> None:
    done = job(asked=True)
    perform(done, lambda message: message.body)
    reply = outcome_of(done).reply
    assert reply is not None
    assert msgspec.json.decode(reply.body) == {"success": True, "data": {"a": 1}, "message": None}


@pytest.mark.parametrize("body", [b"", b"{", b'"\\ud800"'])
def test_a_message_that_cannot_be_opened_never_reaches_the_handler(body: bytes) -> None:
    done = job(body)
    perform(done, lambda message: pytest.fail("run"))
    assert (outcome_of(done).verdict, outcome_of(done).error) == (Verdict.ARCHIVE, "BadMessage")


@pytest.mark.parametrize(("kind", "error"), [("exit", "SystemExit"), ("boom", "Boom")])
def test_whatever_the_users_types_raise_while_decoding_becomes_an_outcome(kind: str, error: str) -> None:
    done = job(f'{{"kind": "{kind}"}}'.encode(), by=route(Explosive, "archive"))
    perform(done, lambda message: pytest.fail("run"))
    assert (outcome_of(done).verdict, outcome_of(done).error) == (Verdict.ARCHIVE, error)


RAISED: list[BaseException] = [
    SystemExit(0),
    SystemExit(),
    KeyboardInterrupt(),
    GeneratorExit(),
    StopIteration(None),
    Boom(),
    rpcd.Retry(),
    rpcd.PublishTimeout(),
    BaseException(),
]


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_nothing_that_a_handler_raises_passes_for_a_success(error: BaseException, asked: bool) -> None:
    def handler(message: Message[Any]) -> Any:
        message.publish("shop", "order.placed")
        raise error

    done = job(asked=asked)
    perform(done, handler)
    outcome = outcome_of(done)
    assert outcome is not ACKED
    assert (outcome.publications, outcome.error) == (None, type(error).__name__)
    assert outcome.reply is None or b'"success":false' in outcome.reply.body
    assert asked or outcome.verdict is not Verdict.ACK


def test_a_handler_that_closes_its_own_generator_is_no_success_either() -> None:
    def steps() -> Iterator[int]:
        yield 1

    def handler(message: Message[Any]) -> Any:
        running = steps()
        next(running)
        running.throw(GeneratorExit)

    done = job()
    perform(done, handler)
    assert outcome_of(done).error == "GeneratorExit"


async def coroutine(message: Message[Any]) -> Any: ...


def generator(message: Message[Any]) -> Iterator[Any]:
    yield message


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Stand for a decorator of the user's: nothing about it tells that what it calls is async or a generator."""

    @functools.wraps(function)
    def wrapper(message: Message[Any]) -> Any:
        return function(message)

    return wrapper


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("inner", [coroutine, generator])
@pytest.mark.parametrize("asked", [True, False])
def test_a_return_of_something_that_has_not_run_yet_is_no_success(inner: Any, asked: bool) -> None:
    """The message would be acked although not a line of its handler was executed."""
    done = job(asked=asked, by=route(on_error="archive"))
    perform(done, wrapped(inner))
    assert outcome_of(done).verdict is Verdict.ARCHIVE


def test_run_hands_back_what_was_raised_for_the_instance_that_failed() -> None:
    error = Boom()

    def handler(message: Message[Any]) -> Any:
        raise error

    assert run(job(), handler) is error
    assert run(job(), ignore) is None


def test_a_reply_that_cannot_be_encoded_is_judged_like_an_exception() -> None:
    done = job(asked=True, by=route(on_error="archive"))
    assert isinstance(run(done, lambda message: object()), rpcd.PublishError)
    assert (outcome_of(done).verdict, outcome_of(done).error) == (Verdict.ARCHIVE, "ReplyUnencodable")


def test_what_is_published_leaves_only_with_a_success() -> None:
    done = job()
    perform(done, lambda message: message.publish("shop", "order.placed", 1))
    assert [each.routing_key for each in outcome_of(done).publications or []] == ["order.placed"]


def test_a_deadline_that_passes_in_the_lane_keeps_the_handler_from_running() -> None:
    now = [NOW]
    waiting = job(expiration="5000", by=Route(**{**_fields(route()), "clock": lambda: now[0]}))
    waiting.message.received = NOW
    assert opened(waiting)
    now[0] = NOW + 5
    run(waiting, lambda message: pytest.fail("run"))
    assert (outcome_of(waiting).verdict, outcome_of(waiting).error) == (Verdict.ACK, "Expired")


def _fields(found: Route) -> dict[str, Any]:
    return {name: getattr(found, name) for name in ("consumer", "queue", "target", "codec", "policy", "key")}


def test_opening_reads_the_key_of_the_lane() -> None:
    locked = job(by=route(lock="body.a"))
    assert opened(locked)
    assert (locked.key, locked.outcome) == (1, None)


def test_without_a_lock_there_is_no_key() -> None:
    free = job()
    assert opened(free)
    assert free.key is None


@pytest.mark.parametrize("body", [b"{}", b"[1]", b'{"a": {}}', b'{"a": [1]}'])
def test_a_message_without_a_usable_key_is_a_bad_message_and_is_not_run(body: bytes) -> None:
    keyless = job(body, by=route(lock="body.a"))
    assert not opened(keyless)
    assert (outcome_of(keyless).verdict, outcome_of(keyless).error) == (Verdict.ARCHIVE, "BadMessage")


@pytest.mark.parametrize("lock", ["*", "routing_key", "headers.x-rpcd-routing-key"])
@pytest.mark.parametrize("forged", [{"a": 1}, [1], 7, None])
def test_the_key_of_an_opened_job_can_always_be_a_lanes_key(lock: str, forged: Any) -> None:
    """Any client may write these headers and publish to the queue by its name; a lane's key that can't be hashed would end
    the worker that enters it, and leave the message unsettled."""
    message = Message[Any](
        payload=b"{}",
        headers={"x-rpcd-exchange": "shop", "x-rpcd-routing-key": forged},
        routing_key="orders",
        queue="orders",
    )
    job = Job(message, route(lock=lock), Ledger(), 1)
    if opened(job):
        assert isinstance(hash(job.key), int)
    else:
        assert (outcome_of(job).verdict, outcome_of(job).error) == (Verdict.ARCHIVE, "BadMessage")


def test_a_reply_is_never_sent_to_a_name_that_was_not_checked() -> None:
    """Headers that can't be read fail first; the failure must not go to a queue that no reply may go to."""
    unreadable = Headers(b"\x01kT" + b"\xff" * 8, "a timestamp is out of range")
    done = job(reply_to="payments", headers=unreadable)
    perform(done, lambda message: pytest.fail("run"))
    assert (outcome_of(done).verdict, outcome_of(done).reply) == (Verdict.ARCHIVE, None)


def test_headers_that_cannot_be_read_are_told_to_a_caller_that_may_be_told() -> None:
    unreadable = Headers(b"\x01kT" + b"\xff" * 8, "a timestamp is out of range")
    done = job(asked=True, headers=unreadable)
    perform(done, lambda message: pytest.fail("run"))
    assert outcome_of(done).verdict is Verdict.ARCHIVE
    reply = outcome_of(done).reply
    assert reply is not None
    assert msgspec.json.decode(reply.body)["data"] == {"place": "headers", "reason": "a timestamp is out of range"}


def test_a_settled_job_tells_whoever_waits_for_it() -> None:
    told: list[str] = []
    done = job()
    done.done()
    done.waiter = lambda: told.append("settled")
    done.done()
    assert told == ["settled"]


# Async handlers -----------------------------------------------------------------------------------


def test_an_async_handler_is_awaited_and_judged_like_any_other() -> None:
    async def handler(message: Message[Any]) -> Any:
        await asyncio.sleep(0)
        return message.body

    done, bad = job(asked=True), job(b"{")
    assert asyncio.run(perform_async(done, handler)) is None
    assert asyncio.run(perform_async(bad, handler)) is None
    reply = outcome_of(done).reply
    assert reply is not None
    assert msgspec.json.decode(reply.body)["data"] == {"a": 1}
    assert outcome_of(bad).verdict is Verdict.ARCHIVE
    with pytest.raises(RuntimeError, match="the handler has returned"):
        done.message.publish("e", "k")


@pytest.mark.parametrize("error", [*RAISED, asyncio.CancelledError()], ids=lambda error: type(error).__name__)
def test_nothing_that_an_async_handler_raises_leaves_it(error: BaseException) -> None:
    async def handler(message: Message[Any]) -> Any:
        message.publish("shop", "order.placed")
        raise error

    done = job()
    assert asyncio.run(perform_async(done, handler)) is not None
    assert outcome_of(done) is not ACKED
    assert outcome_of(done).publications is None


def test_an_async_handler_that_returns_work_or_is_not_async_at_all_is_no_success() -> None:
    async def returns_work(_message: Message[Any]) -> Any:
        return coroutine(_message)

    for handler in (returns_work, lambda _message: None):
        done = job()
        asyncio.run(perform_async(done, handler))
        assert outcome_of(done).error == "TypeError"
