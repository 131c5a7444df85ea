import asyncio
import itertools
import logging
import re
import typing
from collections.abc import Callable
from typing import Any

import attrs
import msgspec
import pytest

import rpcd
from rpcd.core import errors, settings
from rpcd.core.message import Message
from rpcd.core.outcome import ON_ERROR, REQUEUE_PAUSE, TABLE, judge, rule_for, success
from rpcd.core.outgoing import Outgoing
from rpcd.core.policy import Policy
from rpcd.core.reply import UNEXPECTED, Replies
from rpcd.core.retry import Steps
from rpcd.core.tables import Headers, header
from rpcd.core.verdict import ACKED, Halt, Outcome, Verdict
from rpcd.core.wire import Properties

NOW = 1_700_000_000.0
USUAL = Steps((0.2, 1.0, 60.0, 1800.0), 5)
POLICIES = ("auto", "reply", "retry", "archive", "requeue", "drop", "halt")

SECRET = "4111-1111"


def policy(on_error: str = "auto", form: str = "envelope", steps: Steps = USUAL, longest: float | None = None) -> Policy:
    return Policy(Replies(form), on_error, steps, longest)


def message(asked: bool = True, attempt: int = 1, **others: Any) -> Message[Any]:
    properties = Properties(reply_to="amq.gen-caller", correlation_id="c1") if asked else Properties()
    return Message(properties=properties, attempt=attempt, queue="orders", **others)


def document(sent: Outgoing | None) -> Any:
    return None if sent is None else msgspec.json.decode(sent.body)


class Boom(Exception):
    pass


# The table ----------------------------------------------------------------------------------------

ROWS: list[tuple[BaseException, tuple[Verdict, bool], tuple[Verdict, bool]]] = [
    # raised, (verdict, whether a caller is told) with attempts left, the same with attempts spent
    (errors.RequestFailed("no"), (Verdict.ACK, True), (Verdict.ACK, True)),
    (errors.Nack(), (Verdict.RETRY, False), (Verdict.RETRY, False)),
    (errors.Nack(30.0), (Verdict.RETRY, False), (Verdict.RETRY, False)),
    (errors.Nack(0), (Verdict.REQUEUE, False), (Verdict.REQUEUE, False)),
    (errors.Drop(), (Verdict.REJECT, True), (Verdict.REJECT, True)),
    (errors.Retry(), (Verdict.RETRY, False), (Verdict.ARCHIVE, True)),
    (errors.Retry(30.0), (Verdict.RETRY, False), (Verdict.ARCHIVE, True)),
    (errors.Retry(0), (Verdict.RETRY, False), (Verdict.ARCHIVE, True)),
    (errors.PermanentFailure("no"), (Verdict.ARCHIVE, True), (Verdict.ARCHIVE, True)),
    (errors.HaltConsumer(), (Verdict.ACK, True), (Verdict.ACK, True)),
    (errors.HaltConsumer(3, "disk"), (Verdict.ACK, True), (Verdict.ACK, True)),
    (errors.HaltConsumer(requeue=True), (Verdict.REQUEUE, False), (Verdict.REQUEUE, False)),
    (errors.BadMessage("body.a", "missing"), (Verdict.ARCHIVE, True), (Verdict.ARCHIVE, True)),
    (errors.ReplyRefused("no"), (Verdict.ARCHIVE, False), (Verdict.ARCHIVE, False)),
    (errors.Expired(), (Verdict.ACK, False), (Verdict.ACK, False)),
    (errors.TimeLimitPassed(), (Verdict.ARCHIVE, True), (Verdict.ARCHIVE, True)),
]

UNEXPECTED_ONES: list[BaseException] = [
    Boom(SECRET),
    SystemExit(0),
    KeyboardInterrupt(),
    GeneratorExit(),
    asyncio.CancelledError(),
    MemoryError(),
    StopIteration(1),
    errors.PublishRefused("no such exchange"),
    errors.Unroutable("no queue"),
    errors.ReplyUnencodable("too long"),
    errors.PublishTimeout("silence"),
    errors.RpcdError("other"),
]


def by_policy(on_error: str, told: bool, spent: bool) -> tuple[Verdict, bool]:
    """Say what `on_error` means, in the words of the design: verdict, and whether the caller is told."""
    if on_error == "auto":
        on_error = "reply" if told else "retry"
    if on_error == "reply":
        return (Verdict.ACK, True) if told else (Verdict.ARCHIVE, False)
    if on_error == "retry":
        return (Verdict.ARCHIVE, told) if spent else (Verdict.RETRY, False)
    return {
        "archive": (Verdict.ARCHIVE, told),
        "requeue": (Verdict.REQUEUE, False),
        "drop": (Verdict.REJECT, told),
        "halt": (Verdict.REQUEUE, False),
    }[on_error]


SITUATIONS = list(itertools.product(("envelope", "plain", "none"), (True, False), (False, True)))
"""The form of replies, whether the sender asked for one, whether the attempts are spent."""


def name_of(value: Any) -> str:
    return f"{type(value).__name__}{value.args or ''}" if isinstance(value, BaseException) else str(value)


@pytest.mark.parametrize("on_error", POLICIES)
@pytest.mark.parametrize(("error", "fresh", "spent"), ROWS, ids=name_of)
def test_what_has_a_row_of_its_own_is_decided_by_it_whatever_on_error_says(
    error: BaseException, fresh: tuple[Verdict, bool], spent: tuple[Verdict, bool], on_error: str
) -> None:
    for form, asked, is_spent in SITUATIONS:
        verdict, answers = spent if is_spent else fresh
        outcome = judge(error, message(asked, 5 if is_spent else 1), policy(on_error, form), NOW)
        expected = (verdict, answers and asked and form != "none", type(error).__name__, None)
        assert (outcome.verdict, outcome.reply is not None, outcome.error, outcome.trace) == expected
        assert outcome.publications is None


@pytest.mark.parametrize("on_error", POLICIES)
@pytest.mark.parametrize("error", UNEXPECTED_ONES, ids=name_of)
def test_anything_else_is_decided_by_on_error(error: BaseException, on_error: str) -> None:
    for form, asked, is_spent in SITUATIONS:
        outcome = judge(error, message(asked, 5 if is_spent else 1), policy(on_error, form), NOW)
        verdict, answers = by_policy(on_error, asked and form != "none", is_spent)
        assert (outcome.verdict, outcome.reply is not None) == (verdict, answers)
        assert (outcome.error, outcome.publications) == (type(error).__name__, None)
        assert outcome.halt == (
            Halt(70, f"on_error is halt: {type(error).__name__}", give_back=True) if on_error == "halt" else None
        )
        if answers:
            assert document(outcome.reply) == {"success": False, "data": {}, "message": UNEXPECTED}


@pytest.mark.parametrize("error", [error for error, *_ in ROWS] + UNEXPECTED_ONES, ids=name_of)
def test_a_subclass_is_decided_as_its_base(error: BaseException) -> None:
    kind = type(f"Own{type(error).__name__}", (type(error),), {})
    own = kind.__new__(kind, *error.args)
    vars(own).update(vars(error))
    mine, base = judge(own, message(), policy(), NOW), judge(error, message(), policy(), NOW)
    assert (mine.verdict, document(mine.reply), mine.step) == (base.verdict, document(base.reply), base.step)
    assert mine.error == kind.__name__


def test_every_exception_of_rpcd_that_reaches_a_message_has_a_row() -> None:
    rows = {rule.error for rule in TABLE}
    assert rows == {
        None,
        errors.RequestFailed,
        errors.Nack,
        errors.Drop,
        errors.Retry,
        errors.PermanentFailure,
        errors.HaltConsumer,
        errors.BadMessage,
        errors.ReplyRefused,
        errors.Expired,
        errors.DeadlinePassed,
        errors.TimeLimitPassed,
        errors.PublishError,
        BaseException,
    }
    assert len(TABLE) == len(rows)


def test_every_word_of_the_setting_is_a_policy_and_the_other_way_round() -> None:
    words = typing.get_args(typing.get_type_hints(settings.Consumer)["on_error"])
    assert set(words) == set(ON_ERROR) == set(POLICIES)


@pytest.mark.parametrize(
    ("kind", "row"), [(Boom, BaseException), (errors.Unroutable, errors.PublishError), (errors.Drop, errors.Drop)]
)
def test_the_row_of_a_type_is_that_of_its_nearest_base(kind: type[BaseException], row: type[BaseException]) -> None:
    assert rule_for(kind).error is row
    assert rule_for(kind) is rule_for(kind)


# What a caller is told ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "data", "text"),
    [
        (errors.RequestFailed("blocked", {"customer": 7}), {"customer": 7}, "blocked"),
        (errors.RequestFailed(), {}, None),
        (errors.Drop(), {}, "The message was dropped"),
        (errors.PermanentFailure("no such warehouse"), {}, "no such warehouse"),
        (errors.PermanentFailure(), {}, "Permanent failure"),
        (errors.HaltConsumer(3, "disk full"), {}, "disk full"),
        (errors.HaltConsumer(), {}, "The consumer was halted"),
        (
            errors.BadMessage("body.items[1]", "Expected `int`, got `str`"),
            {"place": "body.items[1]", "reason": "Expected `int`, got `str`"},
            "Bad message: body.items[1]: Expected `int`, got `str`",
        ),
        (
            errors.BadMessage("body.a", "Field required", [("body.a", "Field required"), ("body.b", "not valid")], 3),
            {
                "place": "body.a",
                "reason": "Field required",
                "faults": [{"place": "body.a", "reason": "Field required"}, {"place": "body.b", "reason": "not valid"}],
                "more": 3,
            },
            "Bad message: body.a: Field required; body.b: not valid; and 3 more",
        ),
        (errors.TimeLimitPassed(), {}, "The time limit was passed"),
        (Boom(SECRET), {}, UNEXPECTED),
    ],
    ids=name_of,
)
def test_a_failed_caller_gets_the_three_keys(error: BaseException, data: Any, text: str | None) -> None:
    assert document(judge(error, message(), policy(), NOW).reply) == {"success": False, "data": data, "message": text}


@pytest.mark.parametrize("on_error", POLICIES)
def test_the_text_of_an_unexpected_exception_is_in_the_trace_only(on_error: str) -> None:
    outcome = judge(Boom(SECRET), message(), policy(on_error), NOW)
    assert SECRET not in str(document(outcome.reply)) + outcome.reason + str(outcome.halt)
    assert SECRET in str(outcome.trace)


@pytest.mark.parametrize("on_error", POLICIES)
def test_a_caller_that_may_not_be_answered_is_never_answered(on_error: str) -> None:
    """Whatever failed before its `reply_to` was checked: the name could be any queue of the virtual host."""
    for error in [error for error, *_ in ROWS] + UNEXPECTED_ONES:
        came = message()
        came.properties.reply_to = "payments"
        assert judge(error, came, policy(on_error), NOW).reply is None


@pytest.mark.parametrize(("on_error", "verdict"), [("auto", Verdict.RETRY), ("reply", Verdict.ARCHIVE)])
def test_nothing_is_acked_for_an_answer_that_may_not_be_sent(on_error: str, verdict: Verdict) -> None:
    came = message()
    came.properties.reply_to = "payments"
    assert judge(Boom(), came, policy(on_error), NOW).verdict is verdict


@pytest.mark.parametrize("on_error", POLICIES)
def test_a_refused_publication_says_why_and_needs_no_trace(on_error: str) -> None:
    outcome = judge(errors.PublishRefused("no exchange 'shop'"), message(), policy(on_error), NOW)
    assert outcome.reason.endswith("no exchange 'shop'")
    assert outcome.trace is None


# Retries ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("attempt", "step"), [(1, 200), (2, 1000), (3, 60_000), (4, 1_800_000)])
@pytest.mark.parametrize(("error", "on_error"), [(errors.Retry(), "archive"), (Boom(), "retry"), (Boom(), "auto")])
def test_a_retry_takes_the_next_step_and_counts(error: BaseException, on_error: str, attempt: int, step: int) -> None:
    outcome = judge(error, message(False, attempt), policy(on_error), NOW)
    assert (outcome.verdict, outcome.step, outcome.count, outcome.nacks) == (Verdict.RETRY, step, attempt, 0)


def test_a_retry_keeps_how_often_the_message_was_put_off() -> None:
    came = message(False)
    came.nacks = 3
    assert judge(errors.Retry(), came, policy(), NOW).nacks == 3


@pytest.mark.parametrize(("delay", "step"), [(None, 200), (0, 200), (0.5, 1000), (61, 1_800_000), (99_999, 1_800_000)])
def test_a_retry_waits_as_long_as_it_was_told_or_longer(delay: float | None, step: int) -> None:
    assert judge(errors.Retry(delay), message(), policy(), NOW).step == step


def test_an_archived_retry_says_that_attempts_are_spent_and_by_what() -> None:
    assert judge(Boom(), message(False, 5), policy("retry"), NOW).reason == "attempts are spent: Boom"


@pytest.mark.parametrize(("nacks", "step"), [(0, 200), (1, 1000), (3, 1_800_000), (4, 1_800_000), (10**6, 1_800_000)])
def test_nack_walks_through_the_steps_and_uses_up_no_attempt(nacks: int, step: int) -> None:
    came = message(attempt=5)
    came.nacks = nacks
    outcome = judge(errors.Nack(), came, policy(), NOW)
    assert (outcome.verdict, outcome.step, outcome.count, outcome.nacks) == (Verdict.RETRY, step, 4, nacks + 1)


def test_nack_without_steps_is_a_requeue() -> None:
    assert judge(errors.Nack(), message(), policy(steps=Steps((), 1)), NOW).verdict is Verdict.REQUEUE


@pytest.mark.parametrize("error", [errors.Retry(), errors.Nack(), Boom()])
@pytest.mark.parametrize(("deadline", "verdict"), [(NOW + 0.1, Verdict.ARCHIVE), (NOW + 0.3, Verdict.RETRY)])
def test_a_step_beyond_the_deadline_counts_as_spent(error: BaseException, deadline: float, verdict: Verdict) -> None:
    came = message(False)
    came.deadline = deadline
    assert judge(error, came, policy("retry"), NOW).verdict is verdict


class Late(errors.DeadlinePassed):
    pass


@pytest.mark.parametrize("error", [errors.DeadlinePassed(), Late()], ids=name_of)
@pytest.mark.parametrize("on_error", POLICIES)
def test_a_handler_that_gives_up_at_the_deadline_of_its_message_is_acked_and_its_caller_told(
    error: BaseException, on_error: str
) -> None:
    came = message()
    came.deadline = NOW
    came.publish("shop", "order.placed", 1)
    outcome = judge(error, came, policy(on_error), NOW)
    assert (outcome.verdict, outcome.reason, outcome.level) == (Verdict.ACK, "deadline passed while it ran", logging.INFO)
    assert (outcome.publications, outcome.trace, outcome.temporary) == (None, None, False)
    assert document(outcome.reply) == {"success": False, "data": {}, "message": "The deadline has passed"}


@pytest.mark.parametrize("deadline", [None, NOW + 0.1], ids=["none", "to come"])
@pytest.mark.parametrize("on_error", POLICIES)
def test_a_deadline_that_is_not_the_messages_own_is_an_unexpected_exception_like_any_other(
    deadline: float | None, on_error: str
) -> None:
    came, other = message(False), message(False)
    came.deadline = other.deadline = deadline
    found, boom = (judge(error, came, policy(on_error), NOW) for error in (errors.DeadlinePassed(), Boom()))
    assert (found.verdict, found.step, found.temporary) == (boom.verdict, boom.step, boom.temporary)
    assert found.trace is not None


def test_a_caller_is_told_when_its_deadline_leaves_no_room_for_a_retry() -> None:
    came = message()
    came.deadline = NOW + 0.1
    assert document(judge(errors.Retry(), came, policy(), NOW).reply)["success"] is False


def test_retries_kept_in_the_process_wait_no_longer_than_they_may() -> None:
    assert judge(errors.Retry(999), message(), policy(longest=60.0), NOW).step == 60_000
    assert judge(errors.Retry(), message(), policy(longest=60.0), NOW).step == 200


HUGE = Headers(header("h", "x" * 200_000))


@pytest.mark.parametrize("error", [errors.Retry(), errors.Nack(), Boom()])
@pytest.mark.parametrize(("longest", "verdict"), [(None, Verdict.ARCHIVE), (60.0, Verdict.RETRY)])
def test_headers_too_big_for_a_copy_end_in_the_archive(error: BaseException, longest: Any, verdict: Verdict) -> None:
    came = message(False)
    came.properties.headers = HUGE
    assert judge(error, came, policy("retry", longest=longest), NOW).verdict is verdict


def test_a_requeue_by_policy_is_held_back_for_a_while_so_that_nothing_spins() -> None:
    assert judge(Boom(), message(), policy("requeue"), NOW).step == REQUEUE_PAUSE
    assert judge(errors.Nack(0), message(), policy("requeue"), NOW).step == 0


# Halting ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "halt"),
    [
        (errors.HaltConsumer(), Halt(0, None)),
        (errors.HaltConsumer(3, "disk full"), Halt(3, "disk full")),
        (errors.HaltConsumer(3, "disk full", requeue=True), Halt(3, "disk full")),
        (errors.HaltConsumer(0, "\ud800"), Halt(0, "?")),
        (errors.HaltConsumer(0, "x" * 5000), Halt(0, "x" * 1000)),
    ],
    ids=name_of,
)
def test_an_order_to_halt_is_carried_out_with_its_own_code(error: BaseException, halt: Halt) -> None:
    assert judge(error, message(), policy(), NOW).halt == halt


@pytest.mark.parametrize("code", [256, 512, -256, 2**31])
def test_a_code_that_is_not_zero_never_ends_the_process_with_zero(code: int) -> None:
    """The operating system keeps eight bits of it: 256 would look like success, and nobody would start it again."""
    try:
        error = errors.HaltConsumer(code)
    except ValueError:
        return  # refused where the handler's author sees it
    halt = judge(error, message(), policy(), NOW).halt
    assert halt is not None
    assert halt.exit_code % 256 != 0


# judge never raises -------------------------------------------------------------------------------


class RetryWithoutDelay(rpcd.Retry):
    def __init__(self) -> None:
        pass


class NackWithoutDelay(rpcd.Nack):
    def __init__(self) -> None:
        pass


class BadWithoutPlace(rpcd.BadMessage):
    def __init__(self) -> None:
        pass


class FailedWithoutMessage(rpcd.RequestFailed):
    def __init__(self) -> None:
        pass


class HaltWithoutCode(rpcd.HaltConsumer):
    def __init__(self) -> None:
        pass


class PermanentWithoutReason(rpcd.PermanentFailure):
    def __init__(self) -> None:
        pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise Boom

    __repr__ = __str__


class UnprintableForGood(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)

    __repr__ = __str__


def cause_cycle() -> BaseException:
    first, second = Boom("first"), Boom("second")
    first.__cause__, second.__cause__ = second, first
    return first


CYCLE: dict[str, Any] = {}
CYCLE["self"] = CYCLE

HOSTILE: list[Callable[[], BaseException]] = [
    RetryWithoutDelay,
    NackWithoutDelay,
    BadWithoutPlace,
    FailedWithoutMessage,
    HaltWithoutCode,
    PermanentWithoutReason,
    Unprintable,
    UnprintableForGood,
    cause_cycle,
    lambda: errors.RequestFailed("no", {"a": object()}),
    lambda: errors.RequestFailed("no", CYCLE),
    lambda: errors.RequestFailed("no", 2**100_000),  # type: ignore[arg-type]
    lambda: errors.RequestFailed("\ud800"),
    lambda: errors.RequestFailed("x" * 100_000),
    lambda: errors.RequestFailed(Unprintable()),  # type: ignore[arg-type]
    lambda: errors.PermanentFailure("\ud800" * 5000),
    lambda: errors.PermanentFailure(Unprintable()),  # type: ignore[arg-type]
    lambda: errors.BadMessage("\ud800", "\ud800"),
    lambda: errors.BadMessage("x" * 100_000, ""),
    lambda: errors.Retry("soon"),  # type: ignore[arg-type]
    lambda: errors.Retry(float("nan")),
    lambda: errors.Retry(float("inf")),
    lambda: errors.Retry(-1),
    lambda: errors.Nack("soon"),  # type: ignore[arg-type]
    lambda: errors.Nack(float("nan")),
    lambda: errors.HaltConsumer(1, Unprintable()),  # type: ignore[arg-type]
    lambda: errors.PublishRefused("\ud800" * 5000),
    lambda: Boom("\ud800" * 5000),
    lambda: Boom("x" * 1_000_000),
    type("\N{SNOWMAN}" * 500, (Exception,), {}),
]


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: getattr(make, "__name__", "?"))
def test_judge_never_raises_whatever_it_is_given(make: Callable[[], BaseException]) -> None:
    for asked, attempt, on_error in itertools.product((True, False), (1, 5), POLICIES):
        error = make()
        strict = attrs.evolve(policy(on_error), replies=Replies(max_reply=1024))
        try:
            outcome = judge(error, message(asked, attempt), strict, NOW)
        except BaseException as fault:  # noqa: BLE001
            pytest.fail(f"judge raised {type(fault).__name__}", pytrace=False)  # pytest can't print some of these either
        assert isinstance(outcome, Outcome)
        assert outcome.error == type(error).__name__
        if outcome.reply is not None:
            assert document(outcome.reply)["success"] is False


def test_not_even_a_text_that_would_end_the_process_gets_past_judge() -> None:
    error = errors.PermanentFailure(UnprintableForGood())  # type: ignore[arg-type]
    try:
        outcome = judge(error, message(), policy("archive"), NOW)
    except BaseException as fault:  # noqa: BLE001
        pytest.fail(f"judge raised {type(fault).__name__}", pytrace=False)
    assert outcome.verdict is Verdict.ARCHIVE


@pytest.mark.parametrize(
    "make", [RetryWithoutDelay, NackWithoutDelay, BadWithoutPlace, FailedWithoutMessage, HaltWithoutCode]
)
def test_a_subclass_that_sets_nothing_counts_as_any_other_exception(make: Callable[[], BaseException]) -> None:
    outcome = judge(make(), message(), policy("requeue"), NOW)
    assert (outcome.verdict, outcome.halt) == (Verdict.REQUEUE, None)
    assert "AttributeError" in str(outcome.trace)


# Traces -------------------------------------------------------------------------------------------


def test_a_trace_starts_at_the_users_frame() -> None:
    def handler() -> None:
        raise Boom("why")

    source = "def run(handler):\n    handler()\n"
    namespace: dict[str, Any] = {"__name__": "rpcd.core.somewhere"}
    exec(compile(source, "/site-packages/rpcd/core/somewhere.py", "exec"), namespace)
    try:
        namespace["run"](handler)
    except Boom as error:
        outcome = judge(error, message(), policy(), NOW)
        # the frame of this test stands in for the worker's loop: it is cut as well when it belongs to rpcd
        error.__traceback__ = error.__traceback__.tb_next  # type: ignore[union-attr]
        outcome = judge(error, message(), policy(), NOW)
    assert "somewhere.py" not in str(outcome.trace)
    lines = str(outcome.trace).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert re.search(r"test_outcome.*in handler$", lines[1])
    assert lines[-1].endswith("Boom: why")


def test_a_trace_within_rpcd_alone_is_shown_as_a_whole() -> None:
    namespace: dict[str, Any] = {"__name__": "rpcd.core.somewhere"}
    exec(compile("def run():\n    1 / 0\n", "/rpcd/core/somewhere.py", "exec"), namespace)
    try:
        namespace["run"]()
    except ZeroDivisionError as error:
        error.__traceback__ = error.__traceback__.tb_next  # type: ignore[union-attr]
        outcome = judge(error, message(), policy(), NOW)
    assert "somewhere.py" in str(outcome.trace)


def test_a_trace_of_a_thousand_frames_is_a_short_one() -> None:
    def deeper() -> None:
        deeper()

    try:
        deeper()
    except RecursionError as error:
        outcome = judge(error, message(), policy(), NOW)
    assert str(outcome.trace).splitlines()[-1].startswith("RecursionError: ")
    assert len(str(outcome.trace).splitlines()) < 100


def test_an_exception_that_was_never_raised_has_a_trace_too() -> None:
    assert str(judge(Boom("why"), message(), policy(), NOW).trace).endswith("Boom: why")


# Success ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 7, object()])
@pytest.mark.parametrize(("form", "asked"), [("envelope", False), ("plain", False), ("none", True)])
def test_a_return_that_nobody_waits_for_is_a_plain_ack_whatever_it_is(value: Any, form: str, asked: bool) -> None:
    assert success(value, message(asked), policy(form=form)) is ACKED


def test_a_return_that_is_waited_for_is_acked_and_answered() -> None:
    outcome = success({"number": 7}, message(), policy())
    assert (outcome.verdict, outcome.publications, outcome.level) == (Verdict.ACK, None, logging.DEBUG)
    assert document(outcome.reply) == {"success": True, "data": {"number": 7}, "message": None}


@pytest.mark.parametrize("asked", [True, False])
def test_what_was_held_back_is_published_with_a_success(asked: bool) -> None:
    came = message(asked)
    came.publish("shop", "order.placed", 1)
    outcome = success(None, came, policy())
    assert (outcome.verdict, outcome.publications) == (Verdict.ACK, came.published)
    assert (outcome.reply is not None) is asked


def test_what_was_held_back_is_never_published_with_a_failure() -> None:
    came = message()
    came.publish("shop", "order.placed", 1)
    for on_error in POLICIES:
        assert judge(Boom(), came, policy(on_error), NOW).publications is None


def test_a_return_that_cannot_be_encoded_is_an_error_for_judge() -> None:
    with pytest.raises(errors.ReplyUnencodable):
        success(object(), message(), policy())


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (errors.RequestFailed(), logging.INFO),
        (errors.Nack(), logging.INFO),
        (errors.Expired(), logging.INFO),
        (errors.Retry(), logging.WARNING),
        (errors.HaltConsumer(), logging.WARNING),
        (errors.HaltConsumer(3), logging.ERROR),
        (errors.TimeLimitPassed(), logging.ERROR),
        (Boom(), logging.ERROR),
    ],
    ids=name_of,
)
def test_how_loud_the_log_is_follows_from_what_happened(error: BaseException, level: int) -> None:
    assert judge(error, message(), policy(), NOW).level == level


def test_the_shared_outcome_of_a_plain_return_is_never_changed() -> None:
    for error in [error for error, *_ in ROWS] + UNEXPECTED_ONES:
        assert judge(error, message(), policy(), NOW) is not ACKED
    assert (ACKED.error, ACKED.reply, ACKED.publications, ACKED.trace) == (None, None, None, None)
