"""Outcomes on the wire: what is published, confirmed, answered and acked, in which order, and what a lost channel leaves.

One thread does everything here, so that the order in which handlers finish is the test's to choose.
"""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from amqp_rig import ADDRESS, connected, make_plan, spread_time
from amqp_wire import Broker, Chan, Link, Queue, Reactor
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcd.amqp.channel import Channel
from rpcd.amqp.dial import Broker as Dialled
from rpcd.amqp.outcomes import REFUSED_SECONDS, OutcomePublisher
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.publisher import Publisher
from rpcd.amqp.settlement import Settlement
from rpcd.core import redelivery
from rpcd.core import settings as section_settings
from rpcd.core.errors import Drop, HaltConsumer, Nack, PermanentFailure, RequestFailed, Retry, TimeLimitPassed
from rpcd.core.message import Source, delivered
from rpcd.core.pipeline import Job, perform
from rpcd.core.stats import Stats
from rpcd.core.verdict import Halt

STEADY = settings(max_examples=40, deadline=None, derandomize=True, database=None)

REPLY_TO = "amq.gen-caller"
PID = bytes((131, 88, 119, 3)) + b"a@b" + bytes(12)
DIRECT = f"amq.rabbitmq.reply-to.{base64.b64encode(PID).decode()}.key"
"""A direct reply-to name of the form that RabbitMQ gives: a whole Erlang pid term."""


class Bench:
    """The settlement of one consumer, with a real publisher, over as many channels as are lost."""

    def __init__(self, broker: Broker, prefetch: int = 0, **section: Any) -> None:
        section.setdefault("reply_to_allowed", [])
        self.broker = broker
        self.reactor = broker.reactor
        self.plan = make_plan(lambda _message: None, section.pop("queue", {}), section, 60.0)
        self.route = self.plan.routes[0]
        self.publisher = Publisher(Dialled(ADDRESS, self.reactor, "0.1"), [], 30.0, 60.0, pytest.fail, "publisher")
        self.publisher.start()
        self.reactor.run()
        self.publishing = broker.links[0]
        self.stats = Stats()
        self.halts: list[Halt] = []
        self.copies_lost: list[str] = []
        self.submitted: list[Job] = []
        self.jobs: list[Job] = []
        """Jobs that are to run, in the order of their deliveries."""
        self.known: list[Job] = []
        """Jobs that are not to run, because an earlier run is known."""
        self.prefetch = prefetch
        self.protocol: AmqpProtocol
        self.channel: Channel
        outcomes = OutcomePublisher(
            self.reactor,
            self.publisher,
            self.plan.policy,
            self.plan.who,
            self.stats,
            self.plan.title,
            not self.plan.section.reply_confirm,
            self.copies_lost.append,
        )
        self.requeued: list[Job] = []
        self.settlement = Settlement(
            outcomes, self.stats, self.submitted.append, self.halts.append, self.reactor, 16, self.requeued.append
        )
        self.queue: Queue = broker.queue("orders")
        self.attach()

    def attach(self) -> None:
        """Connect, open a channel and consume."""
        self.protocol = connected(self.broker)
        opened: list[Channel] = []
        self.protocol.open_channel().addCallback(opened.append)
        self.reactor.run()
        (self.channel,) = opened
        self.channel.when_closed(self._gone)
        self.channel.call("basic_qos", prefetch_count=self.prefetch)
        self.settlement.attach(self.channel)
        self.channel.consume("orders", "tag", self._on_delivery, False, {})
        self.reactor.run()

    def _on_delivery(self, tag: int, again: bool, exchange: Any, key: Any, properties: Any, body: bytes) -> None:
        ledger = self.settlement.ledger
        ledger.admit(tag)
        message = delivered(Source("orders", "orders"), body, properties, exchange, key, again, self.reactor.seconds())
        job = Job(message, self.route, ledger, tag)
        (self.known if again and self.settlement.is_known(job) else self.jobs).append(job)

    def _gone(self, reason: Exception) -> None:
        running = [job for job in self.jobs if job.outcome is None and job.waiter is not None]
        unstarted = [job for job in self.jobs if job.outcome is None and job.waiter is None]
        self.settlement.detach(reason, running, unstarted)

    @property
    def link(self) -> Link:
        """The connection that consumes, which may be lost already."""
        return self.broker.links[-1]

    @property
    def chan(self) -> Chan:
        return self.link.chan

    def put(self, *names: Any, **properties: Any) -> list[Job]:
        """Put messages into the queue; return their jobs."""
        before = len(self.jobs)
        for name in names:
            self.queue.put(json.dumps({"name": name}).encode(), name=name, **properties)
        self.reactor.run()
        return self.jobs[before:]

    def begin(self, *jobs: Job) -> None:
        """Let handlers begin: from now on they count as running."""
        for job in jobs:
            job.waiter = lambda: None

    def run(self, job: Job, word: Any = None) -> Job:
        """Run a handler to its end: it returns the word, raises it, or calls it with the message."""

        def handler(message: Any) -> Any:
            if isinstance(word, BaseException):
                raise word
            return word(message) if callable(word) else word

        perform(job, handler)
        return job

    def finish(self, *jobs: Job) -> None:
        """Settle jobs in one batch, and let the broker do its part."""
        self.settlement.finished(list(jobs))
        self.reactor.run()

    def end(self, job: Job, word: Any = None) -> None:
        self.finish(self.run(job, word))

    def story(self) -> list[str]:
        """What was written and confirmed since the last time somebody asked, without declarations and probes."""
        words = ("publish", "confirm", "refuse", "ack", "requeue", "reject", "Basic.Cancel", "Channel.Close")
        lines = [line for line in self.broker.story if line.startswith(words) and "probe" not in line]
        self.broker.story.clear()
        return lines

    def replies(self) -> list[Any]:
        return [json.loads(each.body) for each in self.broker.published if each.key in (REPLY_TO, DIRECT)]


MakeBench = Callable[..., Bench]


@pytest.fixture
def bench(broker: Broker, clocked: Reactor) -> Iterator[MakeBench]:
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(broker, **options))
        made[-1].story()
        return made[-1]

    yield make
    for each in made:
        each.settlement.sleepers.wake()
        each.protocol.leave()
        each.publisher.stop()
        clocked.pass_time(5.0)
        assert all(link.fault is None for link in broker.links)


# The order on the wire ----------------------------------------------------------------------------


def test_a_reply_is_written_ahead_of_the_ack_of_its_request(bench: MakeBench) -> None:
    it = bench()
    (job,) = it.put("a", reply_to=REPLY_TO, correlation_id="c")
    it.end(job, {"number": 1})
    assert it.story() == [f"publish {REPLY_TO}", "ack 1"]
    assert it.replies() == [{"success": True, "data": {"number": 1}, "message": None}]
    (published,) = [each for each in it.broker.published if each.key == REPLY_TO]
    assert published.chan.link is it.link
    assert published.properties.correlation_id == "c"
    assert published.mandatory
    assert it.stats.replied == it.stats.acked == 1


def test_all_replies_of_a_batch_are_written_ahead_of_its_acks(bench: MakeBench) -> None:
    it = bench()
    jobs = it.put(*"abcd", reply_to=REPLY_TO)
    it.finish(*[it.run(job, {}) for job in (jobs[2], jobs[0], jobs[1])])
    assert it.story() == [f"publish {REPLY_TO}"] * 3 + ["ack 3+"]
    assert it.queue.acked == ["a", "b", "c"]


def test_a_confirmed_reply_is_confirmed_before_the_ack(bench: MakeBench) -> None:
    it = bench(reply_confirm=True)
    it.broker.confirms = False
    (job,) = it.put("a", reply_to=REPLY_TO)
    it.end(job, {})
    assert it.story() == [f"publish {REPLY_TO}"]
    it.broker.published[-1].chan.confirm(1)
    it.reactor.run()
    assert it.story() == ["confirm 1", "ack 1"]
    assert it.broker.published[-1].chan.link is it.publishing


def test_held_back_publications_are_confirmed_then_the_reply_then_the_ack(bench: MakeBench) -> None:
    it = bench()
    it.broker.confirms = False
    (job,) = it.put("a", reply_to=REPLY_TO)

    def publishes(message: Any) -> dict[str, Any]:
        message.publish("", "first", {})
        message.publish("", "second", {})
        return {}

    it.end(job, publishes)
    assert it.story() == ["publish first", "publish second"]
    chan = it.broker.published[-1].chan
    chan.confirm(2)
    it.reactor.run()
    assert it.story() == ["confirm 2"]
    chan.confirm(1)
    it.reactor.run()
    assert it.story() == ["confirm 1", f"publish {REPLY_TO}", "ack 1"]


def test_a_retry_is_a_copy_that_is_confirmed_before_the_ack(bench: MakeBench) -> None:
    it = bench()
    it.broker.confirms = False
    (job,) = it.put("a", message_id="m")
    it.end(job, Retry())
    assert it.story() == ["publish orders.retry.200"]
    copy = it.broker.published[-1]
    assert copy.mandatory
    assert copy.properties.message_id == "m"
    assert copy.properties.headers["x-retry-count"] == 1
    copy.chan.confirm(1)
    it.reactor.run()
    assert it.story() == ["confirm 1", "ack 1"]
    assert it.stats.retried == 1


def test_an_archived_request_copy_then_reply_then_ack(bench: MakeBench) -> None:
    it = bench()
    (job,) = it.put("a", reply_to=REPLY_TO)
    it.end(job, PermanentFailure("broken"))
    assert it.story() == ["publish orders.archive", "confirm 1", f"publish {REPLY_TO}", "ack 1"]
    assert it.replies() == [{"success": False, "data": {}, "message": "broken"}]
    assert it.stats.archived == 1


def test_a_drop_is_rejected_behind_its_reply(bench: MakeBench) -> None:
    it = bench()
    (job,) = it.put("a", reply_to=REPLY_TO)
    it.end(job, Drop())
    assert it.story() == [f"publish {REPLY_TO}", "reject 1"]
    assert it.queue.rejected == ["a"]


def test_a_nack_without_delay_is_requeued_without_a_reply(bench: MakeBench) -> None:
    it = bench()
    (job,) = it.put("a", reply_to=REPLY_TO)
    it.end(job, Nack(delay=0))
    assert it.story() == ["requeue 1"]
    (again,) = it.jobs[1:]
    assert again.message.redelivered
    it.end(again)
    assert it.queue.acked == ["a"]


def test_what_policy_requeues_is_held_for_a_moment(bench: MakeBench) -> None:
    it = bench(on_error="requeue")
    (job,) = it.put("a", message_id="m")
    it.end(job, ValueError("no"))
    it.reactor.pass_time(0.9, 0.1)
    assert it.story() == []
    it.reactor.pass_time(0.2, 0.1)
    assert it.story() == ["requeue 1"]
    assert len(it.jobs) == 2


def test_what_is_held_for_a_moment_meets_its_redelivery(bench: MakeBench) -> None:
    it = bench(on_error="requeue")
    (job,) = it.put("a", message_id="m")
    it.begin(job)
    it.end(job, ValueError("no"))
    it.link.rst()
    it.attach()
    assert (len(it.jobs), len(it.known)) == (1, 1)
    it.story()
    it.reactor.pass_time(3.0, 0.1)
    assert it.story()[0] == "requeue 1"
    assert len(it.jobs) == 2


def test_a_failed_request_is_answered_and_acked(bench: MakeBench) -> None:
    it = bench()
    (job,) = it.put("a", reply_to=REPLY_TO)
    it.end(job, RequestFailed("no", {"why": 1}))
    assert it.story() == [f"publish {REPLY_TO}", "ack 1"]
    assert it.replies() == [{"success": False, "data": {"why": 1}, "message": "no"}]


# What can't be published --------------------------------------------------------------------------


def test_a_refused_publication_is_judged_by_policy(bench: MakeBench) -> None:
    it = bench(on_error="archive")
    (job,) = it.put("a")

    def publishes(message: Any) -> None:
        message.publish("no-such-exchange", "k", {})

    it.end(job, publishes)
    assert [line for line in it.story() if not line.startswith("confirm")] == [
        "publish k",
        "publish orders.archive",
        "ack 1",
    ]
    assert it.stats.publish_failures == 1


def test_a_publication_that_is_not_confirmed_in_time_gives_the_message_back(bench: MakeBench) -> None:
    it = bench()
    it.broker.full.add("full")
    (job,) = it.put("a")
    it.end(job, lambda message: message.publish("", "full", {}))
    it.reactor.pass_time(50.0)
    assert it.queue.acked == []
    assert len(it.jobs) == 1
    it.reactor.pass_time(12.0)
    assert it.story()[-1] == "requeue 1"
    assert it.stats.requeued == it.stats.publish_failures == 1
    assert len(it.jobs) == 2


def test_a_copy_that_is_not_confirmed_in_time_gives_the_message_back(bench: MakeBench) -> None:
    it = bench()
    it.broker.full.add("orders.retry.200")
    (job,) = it.put("a")
    it.end(job, Retry())
    it.reactor.pass_time(62.0)
    assert it.story()[-1] == "requeue 1"
    assert it.queue.acked == []


def test_a_copy_without_a_queue_has_everything_declared_anew_and_the_message_given_back(bench: MakeBench) -> None:
    it = bench()
    it.broker.missing.add("orders.archive")
    (job,) = it.put("a")
    it.end(job, PermanentFailure())
    assert it.story() == ["publish orders.archive", "confirm 1", "requeue 1"]
    assert len(it.copies_lost) == 1
    assert it.queue.acked == []


def test_a_refused_copy_is_given_back_after_a_pause(bench: MakeBench) -> None:
    it = bench()
    it.broker.confirms = False
    (job,) = it.put("a")
    it.end(job, PermanentFailure())
    it.broker.published[-1].chan.close(403, "ACCESS_REFUSED - no")
    it.reactor.pass_time(REFUSED_SECONDS - 1)
    assert it.story() == ["publish orders.archive"]
    it.reactor.pass_time(1.5)
    assert it.story() == ["requeue 1"]


def test_a_confirmed_reply_to_nobody_is_counted_and_acked(bench: MakeBench) -> None:
    it = bench(reply_confirm=True)
    it.broker.missing.add(REPLY_TO)
    (job,) = it.put("a", reply_to=REPLY_TO)
    it.end(job, {})
    assert it.story()[-1] == "ack 1"
    assert it.stats.replies_unroutable == 1


# Merged acks --------------------------------------------------------------------------------------

WORDS = {
    "returns": None,
    "replies": {"x": 1},
    "drops": Drop(),
    "fails": RequestFailed("no"),
    "archives": PermanentFailure("no"),
    "retries": Retry(),
}


@STEADY
@given(st.data())
def test_no_order_of_finishing_ever_settles_a_tag_twice(data: st.DataObject) -> None:
    """RabbitMQ closes the channel over an ack of what is settled; the fake broker does as well."""
    with pytest.MonkeyPatch.context() as patch:
        reactor = Reactor()
        spread_time(reactor, patch)
        broker = Broker(reactor)
        reactor.listener = broker
        it = Bench(broker)
        count = data.draw(st.integers(1, 25))
        jobs = it.put(*range(count), reply_to=REPLY_TO)
        words = [data.draw(st.sampled_from(sorted(WORDS))) for _ in jobs]
        order = data.draw(st.permutations(range(count)))
        while order:
            size = data.draw(st.integers(1, 5))
            batch, order = order[:size], order[size:]
            it.finish(*[it.run(jobs[at], WORDS[words[at]]) for at in batch])
        assert it.chan.is_open
        assert it.chan.unsettled == {}
        assert it.settlement.ledger.unsettled == 0
        dropped = {at for at, word in enumerate(words) if word == "drops"}
        assert set(it.queue.rejected) == dropped
        assert sorted(it.queue.acked) == [at for at in range(count) if at not in dropped]


def test_an_ack_is_merged_over_what_was_rejected_and_acked_before(bench: MakeBench) -> None:
    it = bench()
    jobs = it.put(*"abcdef")
    it.finish(it.run(jobs[1]), it.run(jobs[3]))
    it.end(jobs[2], Drop())
    it.finish(it.run(jobs[0]), it.run(jobs[4]))
    assert it.story() == ["ack 2", "ack 4", "reject 3", "ack 5+"]
    assert it.chan.is_open
    it.end(jobs[5])
    assert it.story() == ["ack 6"]


# A lost channel -----------------------------------------------------------------------------------


def test_a_stale_job_is_not_acked_on_the_next_channel(bench: MakeBench) -> None:
    it = bench()
    first, second = it.put("a", "b")
    it.begin(first, second)
    it.link.rst()
    it.attach()
    assert [job.message.redelivered for job in it.jobs] == [False, False, True, True]
    it.story()
    it.finish(it.run(first), it.run(second, PermanentFailure("too late")))
    assert it.story() == []
    assert it.stats.stale_settlements == 2
    it.finish(it.run(it.jobs[2]), it.run(it.jobs[3]))
    assert it.story() == ["ack 2+"]


def test_a_redelivery_joins_the_run_that_goes_on_and_takes_its_outcome(bench: MakeBench) -> None:
    it = bench()
    (first,) = it.put("a", message_id="m", reply_to=REPLY_TO, correlation_id="c")
    it.begin(first)
    it.link.rst()
    it.attach()
    assert (len(it.jobs), len(it.known)) == (1, 1)
    assert it.settlement.ledger.unsettled == 1
    it.story()
    it.end(first, {"number": 5})
    assert it.story() == [f"publish {REPLY_TO}", "ack 1"]
    assert it.broker.published[-1].chan.link is it.link
    assert it.replies() == [{"success": True, "data": {"number": 5}, "message": None}]
    assert it.queue.acked == ["a"]
    assert it.stats.joined == 1
    assert (it.stats.duplicates_suppressed, it.stats.replies_republished) == (0, 0)


@pytest.mark.parametrize(
    ("word", "line"),
    [(Drop(), "reject 1"), (Nack(delay=0), "requeue 1"), (None, "ack 1"), (PermanentFailure(), "ack 1")],
)
def test_every_kind_of_outcome_reaches_the_redelivery(bench: MakeBench, word: Any, line: str) -> None:
    it = bench()
    (first,) = it.put("a", message_id="m")
    it.begin(first)
    it.link.rst()
    it.attach()
    it.story()
    it.end(first, word)
    assert it.story()[-1] == line


def test_what_finished_before_its_redelivery_came_is_settled_when_it_comes(bench: MakeBench) -> None:
    it = bench()
    (first,) = it.put("a", message_id="m")
    it.begin(first)
    it.link.rst()
    it.end(first, lambda message: message.publish("", "event", {}))
    assert it.broker.routing_keys() == []
    it.attach()
    assert (len(it.jobs), len(it.known)) == (1, 1)
    assert it.broker.routing_keys() == ["event"]
    assert it.queue.acked == ["a"]
    assert (it.stats.joined, it.stats.duplicates_suppressed) == (1, 1)


def test_a_run_outlives_several_connections(bench: MakeBench) -> None:
    it = bench()
    (first,) = it.put("a", message_id="m")
    it.begin(first)
    for _ in range(3):
        it.link.rst()
        it.attach()
    assert (len(it.jobs), len(it.known)) == (1, 3)
    it.end(first)
    assert it.queue.acked == ["a"]
    assert it.chan.is_open


def test_a_run_that_ends_between_two_losses(bench: MakeBench) -> None:
    it = bench()
    (first,) = it.put("a", message_id="m")
    it.begin(first)
    it.link.rst()
    it.attach()
    it.link.rst()
    it.end(first)
    it.attach()
    assert len(it.jobs) == 1
    assert it.queue.acked == ["a"]


def test_an_ack_that_may_be_lost_is_given_again_without_a_second_run(bench: MakeBench) -> None:
    it = bench()
    (first,) = it.put("a", message_id="m", reply_to=REPLY_TO, correlation_id="c")
    it.link.deaf = True
    it.end(first, {"number": 3})
    assert it.replies() == []
    it.link.rst()
    it.attach()
    assert (len(it.jobs), len(it.known)) == (1, 1)
    assert it.story()[-2:] == [f"publish {REPLY_TO}", "ack 1"]
    assert it.replies() == [{"success": True, "data": {"number": 3}, "message": None}]
    assert it.queue.acked == ["a"]
    assert (it.stats.joined, it.stats.duplicates_suppressed, it.stats.replies_republished) == (1, 1, 1)


def test_without_an_id_it_runs_again(bench: MakeBench) -> None:
    it = bench()
    (first,) = it.put("a", reply_to=REPLY_TO)
    it.link.deaf = True
    it.end(first, {})
    it.link.rst()
    it.attach()
    assert (len(it.jobs), len(it.known)) == (2, 0)


def test_ids_that_stand_for_two_messages_run_again(bench: MakeBench) -> None:
    it = bench()
    first, second = it.put("same", "same", message_id="m")
    it.begin(first)
    it.link.deaf = True
    it.end(second)
    it.link.rst()
    it.attach()
    assert (len(it.jobs), len(it.known)) == (4, 0)


def test_ids_that_stand_for_a_done_and_an_unstarted_message_run_again(bench: MakeBench) -> None:
    it = bench()
    first, _second = it.put("same", "same", message_id="m")
    it.link.deaf = True
    it.end(first)
    it.link.rst()
    it.attach()
    assert (len(it.jobs), len(it.known)) == (4, 0)


def test_the_same_id_with_another_body_is_another_message(bench: MakeBench) -> None:
    it = bench()
    first, _second = it.put("one", "other", message_id="m")
    it.link.deaf = True
    it.end(first)
    it.link.rst()
    it.attach()
    assert [json.loads(job.message.payload)["name"] for job in it.known] == ["one"]
    assert [json.loads(job.message.payload)["name"] for job in it.jobs[2:]] == ["other"]


def test_only_what_the_broker_flags_is_recognised(bench: MakeBench) -> None:
    it = bench()
    (first,) = it.put("a", message_id="m")
    it.begin(first)
    it.link.rst()
    it.queue.ready.clear()
    it.attach()
    it.put("a", message_id="m")
    assert (len(it.jobs), len(it.known)) == (2, 0)
    it.end(first)
    assert it.queue.acked == []


def test_what_is_known_is_forgotten_after_a_while(bench: MakeBench) -> None:
    it = bench()
    (first,) = it.put("a", message_id="m")
    it.link.deaf = True
    it.end(first)
    it.link.rst()
    it.reactor.pass_time(redelivery.KEPT_SECONDS + 1, 10.0)
    it.attach()
    assert (len(it.jobs), len(it.known)) == (2, 0)


def test_a_message_that_was_requeued_runs_again(bench: MakeBench) -> None:
    it = bench()
    (first,) = it.put("a", message_id="m")
    it.end(first, Nack(delay=0))
    assert (len(it.jobs), len(it.known)) == (2, 0)


def test_a_confirmed_copy_is_not_sent_again_by_the_redelivery(bench: MakeBench) -> None:
    it = bench()
    it.broker.confirms = False
    (first,) = it.put("a", message_id="m")
    it.begin(first)
    it.end(first, Retry())
    it.link.rst()
    it.broker.published[-1].chan.confirm(1)
    it.reactor.run()
    it.attach()
    assert (len(it.jobs), len(it.known)) == (1, 1)
    assert it.broker.routing_keys() == ["orders.retry.200"]
    assert it.queue.acked == ["a"]


def test_a_copy_that_is_confirmed_after_the_redelivery_came(bench: MakeBench) -> None:
    it = bench()
    it.broker.confirms = False
    (first,) = it.put("a", message_id="m")
    it.begin(first)
    it.end(first, Retry())
    it.link.rst()
    it.attach()
    assert (len(it.jobs), len(it.known)) == (1, 1)
    assert it.queue.acked == []
    it.broker.published[-1].chan.confirm(1)
    it.reactor.run()
    assert it.broker.routing_keys() == ["orders.retry.200"]
    assert it.queue.acked == ["a"]


def test_a_direct_reply_goes_out_on_its_own_channel_even_if_replies_are_confirmed(bench: MakeBench) -> None:
    """A confirm says nothing of it, and a forged one must not cost the connection that all consumers publish on."""
    it = bench(reply_confirm=True)
    (first,) = it.put("a", reply_to=DIRECT)
    it.end(first, {})
    assert it.broker.published[-1].chan.link is it.link
    assert it.queue.acked == ["a"]


# The broker that ends the connection over a forged direct reply-to ----------------------------------


@pytest.mark.parametrize(("code", "archived"), [(541, True), (320, False)])
def test_direct_replies_that_made_the_broker_end_the_connection_are_archived(
    bench: MakeBench, code: int, archived: bool
) -> None:
    it = bench()
    asks, innocent = it.put("asks", reply_to=DIRECT), it.put("innocent")
    it.link.deaf = True  # whatever it did with the reply, the request was not acked
    it.end(asks[0], {})
    it.begin(*innocent)
    it.link.close(code, "INTERNAL_ERROR")
    it.reactor.run()
    assert it.link.is_lost
    it.attach()
    names = [json.loads(job.message.payload)["name"] for job in it.jobs[2:]]
    assert ("orders.archive" in it.broker.routing_keys()) is archived
    assert names == (["innocent"] if archived else ["asks", "innocent"])
    assert it.queue.acked == (["asks"] if archived else [])


# Holding ------------------------------------------------------------------------------------------


def test_what_is_held_is_written_when_it_is_released(bench: MakeBench) -> None:
    it = bench()
    jobs = it.put(*"abc", reply_to=REPLY_TO)
    it.settlement.hold()
    it.finish(it.run(jobs[1], {}), it.run(jobs[0], Drop()))
    assert it.story() == []
    it.settlement.release()
    it.reactor.run()
    assert it.story() == [f"publish {REPLY_TO}", "ack 2", f"publish {REPLY_TO}", "reject 1"]
    it.end(jobs[2], {})
    assert it.story() == [f"publish {REPLY_TO}", "ack 3"]


def test_what_is_held_when_the_channel_goes_is_given_to_the_redelivery(bench: MakeBench) -> None:
    it = bench()
    (job,) = it.put("a", message_id="m")
    it.begin(job)
    it.settlement.hold()
    it.end(job, PermanentFailure())
    assert it.broker.routing_keys() == ["orders.archive"]
    it.link.rst()
    it.attach()
    assert (len(it.jobs), len(it.known)) == (1, 1)
    assert it.broker.routing_keys() == ["orders.archive"]
    assert it.queue.acked == ["a"]


def test_giving_back_requeues_in_the_order_of_the_tags(bench: MakeBench) -> None:
    it = bench()
    jobs = it.put(*"abcd")
    it.settlement.give_back([jobs[3], jobs[1], jobs[2]])
    it.reactor.run()
    assert [line for line in it.story() if line.startswith("requeue")] == ["requeue 2", "requeue 3", "requeue 4"]
    assert it.stats.requeued == 3


# Halting ------------------------------------------------------------------------------------------


def test_a_halt_is_told_and_held_until_the_consumer_is_cancelled(bench: MakeBench) -> None:
    it = bench()
    jobs = it.put("halts", "runs")
    it.end(jobs[0], HaltConsumer(3, "enough"))
    assert [halt.exit_code for halt in it.halts] == [3]
    it.end(jobs[1])
    assert it.story() == []
    it.settlement.release()
    it.reactor.run()
    assert it.story() == ["ack 1", "ack 2"]


def test_nothing_of_the_batch_of_a_halt_is_acked_before_the_cancel(bench: MakeBench) -> None:
    it = bench()
    jobs = it.put("before", "halts", "after")
    it.finish(it.run(jobs[0]), it.run(jobs[1], HaltConsumer()), it.run(jobs[2]))
    assert [line for line in it.story() if line.startswith("ack 3")] == []
    it.settlement.release()
    it.reactor.run()
    assert sorted(it.queue.acked) == ["after", "before", "halts"]


def test_a_second_halt_after_the_cancel_is_settled_at_once(bench: MakeBench) -> None:
    """Two handlers find out at about the same time that there is no point in going on."""
    it = bench()
    jobs = it.put("first", "second", "third")
    it.end(jobs[0], HaltConsumer(0, "enough"))
    it.settlement.ledger.drain()
    it.settlement.hold()
    it.settlement.release()  # the broker has confirmed the cancel
    it.end(jobs[1], HaltConsumer(0, "enough"))
    it.end(jobs[2])
    assert it.queue.acked == ["first", "second", "third"]
    assert len(it.halts) == 2


@pytest.mark.parametrize("trouble", ["refused", "silent", "lost"])
def test_a_halt_is_told_even_if_its_reply_can_not_be_published(bench: MakeBench, trouble: str) -> None:
    """The workers have stopped taking already: a halt that nobody hears of would leave a consumer that does nothing."""
    it = bench(reply_confirm=True, on_error="requeue")
    it.broker.confirms = False
    (job,) = it.put("a", reply_to=REPLY_TO)
    it.begin(job)
    it.end(job, HaltConsumer(3, "enough"))
    chan = it.broker.published[-1].chan
    if trouble == "refused":
        chan.close(403, "ACCESS_REFUSED - no")
    elif trouble == "lost":
        it.link.rst()
        chan.confirm(1)
    it.reactor.pass_time(70.0)
    assert [halt.exit_code for halt in it.halts] == [3]


def test_a_halt_whose_channel_is_gone_is_told_all_the_same(bench: MakeBench) -> None:
    it = bench()
    (job,) = it.put("a")
    it.begin(job)
    it.link.rst()
    it.end(job, HaltConsumer(4))
    assert [halt.exit_code for halt in it.halts] == [4]


def test_a_fault_while_settling_begins_anew_with_a_fresh_connection(bench: MakeBench, complaints: list[str]) -> None:
    it = bench()
    jobs = it.put("settled twice", "halts")
    it.end(jobs[0])
    it.settlement.claim(jobs[0], it.route.judge(Drop(), jobs[0].message))
    assert it.copies_lost == ["a message could not be settled"]
    it.settlement.ledger.drain()
    it.settlement.ledger.settle(jobs[1].tag)
    it.end(jobs[1], HaltConsumer(3))
    assert len(it.copies_lost) == 2
    assert [halt.exit_code for halt in it.halts] == [3]
    assert ["settling failed" in complaint for complaint in complaints] == [True, True]
    complaints.clear()


# Attempts in the process --------------------------------------------------------------------------

EXCLUSIVE = {"exclusive": True, "name": "orders"}


def test_a_queue_that_dies_with_its_connection_is_retried_in_the_process(bench: MakeBench) -> None:
    it = bench(queue=EXCLUSIVE, retry=_retry(1.0, 1.0))
    (job,) = it.put("a")
    it.end(job, Retry())
    assert it.story() == []
    it.reactor.pass_time(0.9, 0.1)
    assert it.submitted == []
    it.reactor.pass_time(0.2, 0.1)
    assert it.submitted == [job]
    assert job.message.attempt == 2
    assert not job.claimed
    it.end(job)
    assert it.story() == ["ack 1"]
    assert it.stats.retried == 1


def test_a_retry_in_the_process_that_meets_a_lost_connection_is_no_success(bench: MakeBench) -> None:
    """There is no copy of it that could come back: its redelivery must run, or the message would be gone."""
    it = bench(queue={"auto_delete": True})
    it.broker.confirms = False
    it.broker.exchanges.add("shop")
    (first,) = it.put("a", message_id="m")
    it.begin(first)
    it.end(first, lambda message: message.publish("shop", "k"))
    it.link.rst()
    it.attach()
    (joined,) = it.known
    it.broker.published[-1].chan.close(404, "NOT_FOUND - no exchange 'shop' in vhost '/'")
    it.reactor.run()
    assert it.submitted == [joined]
    assert it.queue.acked == []
    it.end(joined)
    assert it.queue.acked == ["a"]


def test_a_retry_in_the_process_that_ended_between_two_connections_waits_for_its_redelivery(bench: MakeBench) -> None:
    it = bench(queue={"auto_delete": True})
    (first,) = it.put("a", message_id="m")
    it.begin(first)
    it.link.rst()
    it.end(first, Retry())
    it.attach()
    assert it.queue.acked == []
    it.reactor.pass_time(1.0)
    assert it.submitted == it.known
    assert it.known[0].message.attempt == 2


def test_what_sleeps_in_the_process_can_be_given_back(bench: MakeBench) -> None:
    it = bench(queue=EXCLUSIVE, retry=_retry(1.0))
    (job,) = it.put("a")
    it.end(job, Retry())
    sleepers = it.settlement.sleepers.wake()
    assert sleepers == [job]
    it.settlement.give_back(sleepers)
    it.reactor.pass_time(2.0)
    assert it.story() == ["requeue 1"]
    assert it.submitted == []


def test_what_sleeps_in_the_process_is_dropped_with_its_channel(bench: MakeBench) -> None:
    it = bench(queue=EXCLUSIVE, retry=_retry(1.0))
    (job,) = it.put("a")
    it.end(job, Retry())
    it.link.rst()
    it.reactor.pass_time(2.0)
    assert it.submitted == []


def _retry(*delays: float) -> Any:
    return section_settings.Retry(delays=list(delays))


# Everything that settles says so ------------------------------------------------------------------


@pytest.mark.parametrize("what", ["ack", "reply", "reject", "copy", "give back", "loss"])
def test_who_waits_for_progress_is_told(bench: MakeBench, what: str) -> None:
    """A drain waits for this and looks again: what is not told is waited for for ever."""
    it = bench()
    (job,) = it.put("a", reply_to=REPLY_TO)
    it.begin(job)
    told: list[None] = []
    it.settlement.progress.wait().addCallback(told.append)
    words = {"ack": None, "reply": {}, "reject": Drop(), "copy": PermanentFailure()}
    if what in words:
        it.end(job, words[what])
    elif what == "give back":
        it.settlement.give_back([job])
    else:
        it.link.rst()
    assert told == [None]


def test_whoever_waits_for_a_settlement_is_told_once_it_is_written(bench: MakeBench) -> None:
    it = bench(on_error="drop")
    it.broker.confirms = False
    (job,) = it.put("a")
    told: list[str] = []
    job.waiter = lambda: told.append("settled")
    it.end(job, PermanentFailure())
    assert told == []
    it.broker.published[-1].chan.confirm(1)
    it.reactor.run()
    assert told == ["settled"]


def test_an_overdue_job_is_settled_once(bench: MakeBench) -> None:
    it = bench()
    (job,) = it.put("a")
    it.settlement.claim(job, it.route.judge(TimeLimitPassed(), job.message))
    it.reactor.run()
    it.end(job, {})
    assert it.story() == ["publish orders.archive", "confirm 1", "ack 1"]
    assert it.queue.acked == ["a"]
