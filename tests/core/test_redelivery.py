import logging
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcd.core.codec import Codec
from rpcd.core.handler import target
from rpcd.core.identity import key_of
from rpcd.core.ledger import Ledger
from rpcd.core.message import Message
from rpcd.core.outgoing import Outgoing
from rpcd.core.pipeline import Job
from rpcd.core.policy import Policy
from rpcd.core.redelivery import KEPT, KEPT_SECONDS, LARGEST, LARGEST_KEPT, Known, Redeliveries, done
from rpcd.core.reply import Replies
from rpcd.core.routes import Route
from rpcd.core.verdict import ACKED, Outcome, Verdict
from rpcd.core.wire import Properties

PROPERTY = settings(max_examples=40, deadline=None)

ROUTE = Route(
    "c", "q", target("a:b", lambda message: None), Codec(["application/json"]), Policy(Replies()), clock=lambda: 0.0
)


def message(message_id: Any = "m1", body: bytes = b"1", headers: dict[str, Any] | None = None, **more: Any) -> Message[Any]:
    return Message(payload=body, headers=headers, properties=Properties(message_id=message_id, **more), redelivered=True)


def job(*arguments: Any, **named: Any) -> Job:
    return Job(message(*arguments, **named), ROUTE, Ledger(), 1)


def reply(size: int = 10) -> Outgoing:
    return Outgoing("", "amq.gen-x", b"x" * size, b"\x00\x00")


def outcome_of(known: Known | None) -> Outcome:
    assert known is not None
    assert known.outcome is not None
    return known.outcome


# What a message is recognised by ------------------------------------------------------------------


def test_the_same_message_has_the_same_key() -> None:
    first = message("m1", b"1", {"x-retry-count": 1}, correlation_id="c")
    again = message("m1", b"1", {"x-retry-count": 1}, correlation_id="c")
    assert key_of(first) == key_of(again)
    hash(key_of(first))


@pytest.mark.parametrize(
    "other",
    [
        message("m2", b"1", {"x-retry-count": 1}, correlation_id="c"),
        message("m1", b"2", {"x-retry-count": 1}, correlation_id="c"),
        message("m1", b"1", {"x-retry-count": 2}, correlation_id="c"),
        message("m1", b"1", {"x-retry-count": 1}, correlation_id="d"),
        message("m1", b"1", {"x-retry-count": 1, "x-rpcd-copy": "t"}, correlation_id="c"),
        message(b"m1", b"1", {"x-retry-count": 1}, correlation_id="c"),
    ],
    ids=["id", "body", "attempt", "correlation id", "copy", "bytes"],
)
def test_another_id_body_attempt_or_correlation_id_is_another_message(other: Message[Any]) -> None:
    assert key_of(other) != key_of(message("m1", b"1", {"x-retry-count": 1}, correlation_id="c"))


@pytest.mark.parametrize("place", [0, 4095, 99_936, 99_999])
def test_of_a_long_body_beginning_length_and_end_count(place: int) -> None:
    body = bytearray(100_000)
    other = bytearray(body)
    other[place] = 1
    assert key_of(message(body=bytes(body))) != key_of(message(body=bytes(other)))
    assert key_of(message(body=bytes(body))) != key_of(message(body=bytes(body) + b"\x00"))


def test_a_copys_own_id_wins_over_the_senders() -> None:
    first, second = (message(each, headers={"x-rpcd-copy": "t"}) for each in ("m1", "m2"))
    assert key_of(first) == key_of(second)


@pytest.mark.parametrize(
    "anonymous",
    [
        message(None),
        message(None, headers={"other": 1}),
        message(headers={"x-rpcd-copy": 7}),
        message(headers={"x-rpcd-copy": [1]}),
    ],
)
def test_a_message_without_a_usable_id_has_no_key(anonymous: Message[Any]) -> None:
    assert key_of(anonymous) is None


@pytest.mark.parametrize("count", ["1", 1.5, [1], None])
def test_a_forged_count_is_none(count: Any) -> None:
    assert key_of(message(headers={"x-retry-count": count})) == key_of(message())


# What is known of it ------------------------------------------------------------------------------


def test_nothing_is_known_as_long_as_no_connection_died() -> None:
    known = Redeliveries()
    known.settled(job(), None)
    assert known.recognise(message(), 1.0) is None


def test_a_message_whose_first_run_is_alive_is_joined_to_it() -> None:
    known, running = Redeliveries(), job()
    known.connection_lost([running], [], 0.0)
    assert known.recognise(message(), 1.0) == Known(0.0, running, None)


def test_a_message_that_was_acked_is_acked_again_without_running() -> None:
    known = Redeliveries()
    known.settled(job(), None)
    known.connection_lost([], [], 0.0)
    assert outcome_of(known.recognise(message(), 1.0)) is ACKED


def test_a_reply_that_may_be_lost_is_sent_once_more() -> None:
    known, sent = Redeliveries(), reply()
    known.settled(job(), sent)
    known.connection_lost([], [], 0.0)
    outcome = outcome_of(known.recognise(message(), 1.0))
    assert (outcome.verdict, outcome.reply, outcome.level) == (Verdict.ACK, sent, logging.DEBUG)


def test_a_message_that_finished_too_late_takes_that_outcome() -> None:
    known, running = Redeliveries(), job()
    known.connection_lost([running], [], 0.0)
    late = Outcome(Verdict.ACK, reply=reply())
    known.finished(running, late, 5.0)
    found = known.recognise(message(), 6.0)
    assert found is not None
    assert (found.since, found.outcome) == (5.0, late)


def test_a_message_is_recognised_once() -> None:
    known = Redeliveries()
    known.connection_lost([job()], [], 0.0)
    assert known.recognise(message(), 1.0) is not None
    assert known.recognise(message(), 1.0) is None


def test_a_message_that_had_not_started_runs() -> None:
    known = Redeliveries()
    known.connection_lost([], [job()], 0.0)
    assert known.recognise(message(), 1.0) is None


def test_a_message_without_an_id_runs() -> None:
    known = Redeliveries()
    known.settled(job(None), None)
    known.connection_lost([job(None)], [job(None)], 0.0)
    assert known.recognise(message(None), 1.0) is None


def test_another_attempt_of_the_same_message_runs() -> None:
    known = Redeliveries()
    known.connection_lost([job(headers={"x-rpcd-copy": "t", "x-retry-count": 1})], [], 0.0)
    assert known.recognise(message(headers={"x-rpcd-copy": "t", "x-retry-count": 2}), 1.0) is None


@pytest.mark.parametrize(
    ("settled", "running", "unstarted"), [(2, 0, 0), (1, 1, 0), (1, 0, 1), (0, 2, 0), (0, 1, 1), (1, 1, 1), (0, 0, 2)]
)
def test_an_id_that_stood_for_more_than_one_message_is_worth_nothing(settled: int, running: int, unstarted: int) -> None:
    known = Redeliveries()
    for _ in range(settled):
        known.settled(job(), None)
    known.connection_lost([job() for _ in range(running)], [job() for _ in range(unstarted)], 0.0)
    assert [known.recognise(message(), 1.0) for _ in range(3)] == [None] * 3


def test_an_id_that_becomes_ambiguous_later_is_forgotten() -> None:
    known = Redeliveries()
    known.settled(job(), None)
    known.connection_lost([], [], 0.0)
    known.connection_lost([], [job()], 1.0)
    assert known.recognise(message(), 2.0) is None


def test_what_finishes_for_an_ambiguous_id_is_not_kept() -> None:
    known, running = Redeliveries(), job()
    known.connection_lost([running, job()], [], 0.0)
    known.finished(running, ACKED, 1.0)
    assert known.recognise(message(), 2.0) is None


def test_what_finishes_without_an_id_is_not_kept() -> None:
    known, running = Redeliveries(), job(None)
    known.connection_lost([running], [], 0.0)
    known.finished(running, ACKED, 1.0)
    assert known.recognise(message(None), 2.0) is None


@pytest.mark.parametrize(("seconds", "recognised"), [(KEPT_SECONDS - 1, True), (KEPT_SECONDS, False)])
def test_knowledge_ages(seconds: float, recognised: bool) -> None:
    known = Redeliveries()
    known.settled(job(), None)
    known.connection_lost([], [], 100.0)
    assert (known.recognise(message(), 100.0 + seconds) is not None) is recognised


@pytest.mark.parametrize(("seconds", "recognised"), [(KEPT_SECONDS - 1, True), (KEPT_SECONDS, False)])
def test_knowledge_outlives_the_next_loss_until_it_is_too_old(seconds: float, recognised: bool) -> None:
    known = Redeliveries()
    known.settled(job("m1"), None)
    known.connection_lost([], [], 0.0)
    known.connection_lost([job("m2")], [], seconds)
    assert (known.recognise(message("m1"), seconds) is not None) is recognised
    assert known.recognise(message("m2"), seconds) is not None


def test_no_body_is_kept_with_an_outcome() -> None:
    """Ten thousand of them would fill the memory."""
    known, running = Redeliveries(), job("m", body=b"x" * 10_000)
    running.message.attempt, running.message.nacks, running.message.deadline = 3, 2, 1.5
    known.connection_lost([running], [], 0.0)
    known.finished(running, ACKED, 1.0)
    found = known.recognise(message("m", body=b"x" * 10_000), 2.0)
    assert found is not None
    assert found.outcome is ACKED
    assert found.job is not None
    kept = found.job.message
    assert (kept.payload, kept.attempt, kept.nacks, kept.deadline) == (b"", 3, 2, 1.5)
    assert (kept.exchange, kept.routing_key) == (running.message.exchange, running.message.routing_key)


@pytest.mark.parametrize(("size", "kept"), [(LARGEST_KEPT, True), (LARGEST_KEPT + 1, False)])
def test_what_has_much_to_publish_is_not_kept(size: int, kept: bool) -> None:
    known, running = Redeliveries(), job("m")
    known.connection_lost([running], [], 0.0)
    known.finished(running, Outcome(Verdict.ACK, publications=[reply(size)]), 1.0)
    assert (known.recognise(message("m"), 2.0) is not None) is kept


@pytest.mark.parametrize(("size", "kept"), [(LARGEST, True), (LARGEST + 1, False)])
@pytest.mark.parametrize("late", [False, True])
def test_what_has_a_long_reply_runs_again_rather_than_leaving_its_caller_without_one(
    size: int, kept: bool, late: bool
) -> None:
    redeliveries, running = Redeliveries(), job("a")
    if late:
        redeliveries.connection_lost([running], [], 10.0)
        redeliveries.finished(running, done(reply(size)), 10.0)
    else:
        redeliveries.settled(running, reply(size))
        redeliveries.connection_lost([], [], 10.0)
    known = redeliveries.recognise(job("a").message, 10.0)
    assert (known is not None) is kept
    if known is not None:
        assert known.outcome is not None
        assert known.outcome.reply is not None


def test_not_more_is_remembered_than_can_be_on_its_way() -> None:
    redeliveries = Redeliveries(window=2)
    for name in "abcdef":
        redeliveries.settled(job(name), None)
    redeliveries.connection_lost([], [], 10.0)
    assert [name for name in "abcdef" if redeliveries.recognise(job(name).message, 10.0)] == ["c", "d", "e", "f"]


def test_not_more_is_remembered_than_may_be() -> None:
    known = Redeliveries()
    for number in range(KEPT + 50):
        known.settled(job(f"m{number}"), None)
    known.connection_lost([], [], 0.0)
    assert len(known._known) == KEPT
    assert known.recognise(message("m0"), 1.0) is None
    assert known.recognise(message(f"m{KEPT + 49}"), 1.0) is not None


def test_what_still_runs_is_the_last_thing_to_be_forgotten() -> None:
    """A consumer that has settled thousands of messages must not start a message again whose handler is at work."""
    known, running = Redeliveries(), job("alive")
    for number in range(KEPT):
        known.settled(job(f"m{number}"), None)
    known.connection_lost([running], [], 0.0)
    found = known.recognise(message("alive"), 1.0)
    assert found is not None
    assert found.job is running


def test_what_was_just_in_hand_is_kept_rather_than_what_was_lost_before() -> None:
    known = Redeliveries()
    for number in range(KEPT):
        known.settled(job(f"old{number}"), None)
    known.connection_lost([], [], 0.0)
    known.connection_lost([job("alive")], [], 1.0)
    assert known.recognise(message("alive"), 2.0) is not None


IN_HAND = st.lists(
    st.tuples(st.sampled_from(["settled", "running", "unstarted"]), st.sampled_from([None, *"abcde"])), max_size=8
)


@PROPERTY
@given(IN_HAND, st.lists(st.sampled_from([None, *"abcde"]), max_size=8))
def test_a_message_is_taken_for_one_that_ran_only_if_its_id_was_unique_and_only_once(
    in_hand: list[tuple[str, str | None]], come: list[str | None]
) -> None:
    known = Redeliveries()
    jobs = [(state, job(each)) for state, each in in_hand]
    for state, each in jobs:
        if state == "settled":
            known.settled(each, None)
    known.connection_lost(
        [each for state, each in jobs if state == "running"], [each for state, each in jobs if state == "unstarted"], 0.0
    )
    times = Counter(each for _, each in in_hand)
    handed_out: set[str | None] = set()
    for each in come:
        ran = [state for state, other in in_hand if other == each and state != "unstarted"]
        expected = each is not None and times[each] == 1 and bool(ran) and each not in handed_out
        assert (known.recognise(message(each), 1.0) is not None) is expected
        handed_out.add(each)
