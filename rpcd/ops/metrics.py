"""Metrics for Prometheus: `rpcd_*` families, read from counters and live objects when somebody scrapes, never before.

The families are one table, `FAMILIES`; the reference page is made from it. Every field of `core.stats` has its metric by
itself. Labels are names from the config, outcomes and codes: nothing that a message brings.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from rpcd.core.stats import BOUNDS, CallStats, OutboxStats, Stats
from rpcd.ops.lag import Lag
from rpcd.ops.log_queue import LOG_QUEUE

COUNTER, GAUGE, HISTOGRAM, INFO = "counter", "gauge", "histogram", "info"

PREFIX = "rpcd_"

CONSUMER = ("consumer", "queue")

STATES = ("consuming", "connecting", "paused", "tripped", "draining", "stopped")
"""What a consumer may do; a state that is not here is shown while it lasts."""

Values: TypeAlias = tuple[str, ...]
Samples: TypeAlias = Iterator[tuple[Values, Any]]


@attrs.frozen
class Watched:
    """What metrics are read from, on the reactor."""

    consumers: Sequence[Any]
    publisher: Any
    depths: Any
    lag: Lag
    phase: Any
    version: str
    since: float
    """When the daemon began, in seconds since the epoch."""
    ready: Callable[[], bool]


@attrs.frozen
class Family:
    """One metric: what it is called, what it says, and where its values come from."""

    name: str
    """Without `rpcd_`, and without the `_total` that counters end in."""
    kind: str
    sentence: str
    labels: Values
    read: Callable[[Watched], Samples]

    @property
    def shown(self) -> str:
        """The name of its samples."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == COUNTER else ''}"


# Where values come from -----------------------------------------------------------------------------


def _one(name: str, kind: str, sentence: str, get: Callable[[Watched], float]) -> Family:
    return Family(name, kind, sentence, (), lambda watched: iter([((), get(watched))]))


def _consumers(watched: Watched) -> Iterator[tuple[Values, Any]]:
    return (((each.name, each.plan.title), each) for each in watched.consumers)


def _outboxes(watched: Watched) -> Iterator[tuple[Values, Any]]:
    publisher = watched.publisher
    return iter([(("copies",), publisher.copies), (("publications",), publisher.publications)])


def _of_consumers(name: str, sentence: str, get: Callable[[Any], float], kind: str = GAUGE) -> Family:
    return Family(name, kind, sentence, CONSUMER, lambda watched: ((at, get(each)) for at, each in _consumers(watched)))


def _of_outboxes(name: str, sentence: str, get: Callable[[Any], float]) -> Family:
    return Family(name, GAUGE, sentence, ("channel",), lambda watched: ((at, get(box)) for at, box in _outboxes(watched)))


def _counted(kind: type[Any], labels: Values, owners: Callable[[Watched], Iterator[tuple[Values, Any]]]) -> list[Family]:
    """Make a family of every counter of a class; those that name the same one share it."""
    families: dict[str, list[attrs.Attribute[Any]]] = {}
    for field in attrs.fields(kind):
        families.setdefault(field.metadata.get("family") or field.name, []).append(field)

    def family(name: str, fields: "list[attrs.Attribute[Any]]") -> Family:
        about = fields[0].metadata
        own = (about["divided"],) if "divided" in about else tuple(about.get("label", ()))

        def read(watched: Watched) -> Samples:
            for at, owner in owners(watched):
                for field in fields:
                    for more, value in _values(field.metadata, getattr(owner.stats, field.name)):
                        yield (*at, *more), value

        return Family(name, COUNTER, about.get("sentence", f"{name.replace('_', ' ')}."), (*labels, *own), read)

    return [family(name, fields) for name, fields in families.items()]


def _values(about: Mapping[str, Any], value: Any) -> Samples:
    if isinstance(value, dict):
        for each in dict.fromkeys((*about["known"], *value)):
            yield (each,), value.get(each, 0)
    else:
        yield tuple(about.get("label", {}).values()), value


def _states(watched: Watched) -> Samples:
    for at, each in _consumers(watched):
        now = each.state
        for state in dict.fromkeys((*STATES, now)):
            yield (*at, state), state == now


def _retries(watched: Watched) -> Samples:
    return (((at.consumer, at.queue, at.step), found) for at, found in watched.depths.known() if at.step is not None)


def _archives(watched: Watched) -> Samples:
    return (((at.consumer, at.queue), found) for at, found in watched.depths.known() if at.step is None)


def _durations(watched: Watched) -> Samples:
    for at, each in _consumers(watched):
        yield at, each.durations


# The table ------------------------------------------------------------------------------------------

FAMILIES: tuple[Family, ...] = (
    Family("info", INFO, "Which rpcd this is.", ("version",), lambda watched: iter([((watched.version,), 1)])),
    _one("ready", GAUGE, "1 while /ready says 200.", lambda watched: watched.ready()),
    _one(
        "start_time_seconds",
        GAUGE,
        "When the daemon began, or began anew at a reload, since the epoch.",
        lambda watched: watched.since,
    ),
    _one(
        "reload_refused",
        GAUGE,
        "1 after a reload that was refused, until one succeeds.",
        lambda watched: watched.phase.refused is not None,
    ),
    _one(
        "reactor_lag_seconds",
        GAUGE,
        "The longest that the reactor was blocked within the last minute, probed every second.",
        lambda watched: watched.lag.longest,
    ),
    _one("reactor_stalls", COUNTER, "How often it was blocked for over a second.", lambda watched: watched.lag.stalls),
    _one("log_lines_dropped", COUNTER, "Log lines that could not be written.", lambda _watched: LOG_QUEUE.dropped),
    # consumers
    _of_consumers("connected", "1 while the consumer's connection serves.", lambda each: each.connection.trouble is None),
    _of_consumers("consuming", "1 while the broker delivers to it.", lambda each: each.consuming),
    Family("consumer_state", GAUGE, "1 for what the consumer does, 0 for all else.", (*CONSUMER, "state"), _states),
    _of_consumers(
        "blocked", "1 while the broker blocks its connection (an alarm).", lambda each: each.hindrance.blocked is not None
    ),
    _of_consumers(
        "queues_full",
        "Its own retry and archive queues that the broker lets nothing into.",
        lambda each: len(each.hindrance.full),
    ),
    _of_consumers("workers", "Messages that it may handle at a time.", lambda each: each.plan.section.workers),
    _of_consumers("prefetch", "Messages that the broker sends ahead.", lambda each: each.plan.section.window),
    _of_consumers(
        "unsettled",
        "Messages that were delivered and not settled yet.",
        lambda each: 0 if each.settlement.ledger.closed else each.settlement.ledger.unsettled,
    ),
    _of_consumers("handlers_running", "Handlers that run.", lambda each: len(each.workers.running)),
    _of_consumers("messages_waiting", "Messages that wait for a worker.", lambda each: each.workers.waiting),
    _of_consumers("keys_held", "Keys of its lock that a message has.", lambda each: each.workers.lanes[0]),
    _of_consumers("keys_waiting", "Messages that wait for such a key.", lambda each: each.workers.lanes[1]),
    Family(
        "retry_depth",
        GAUGE,
        "Messages that wait in a retry step, named by its milliseconds, as the broker said within the last half minute.",
        (*CONSUMER, "step"),
        _retries,
    ),
    Family("archive_depth", GAUGE, "Messages in the archive, as the broker said lately.", CONSUMER, _archives),
    _of_consumers(
        "threads_lost", "Threads, or tasks, that overran their limit and still run.", lambda each: each.workers.lost
    ),
    _of_consumers(
        "reconnects",
        "How often it has begun to consume again.",
        lambda each: max(0, each.stats.connections - 1),
        COUNTER,
    ),
    *_counted(Stats, CONSUMER, _consumers),
    Family(
        "handler_duration_seconds",
        HISTOGRAM,
        "How long workers had messages in hand: opening, the handler, building the reply.",
        CONSUMER,
        _durations,
    ),
    # the publishing connection
    _one(
        "publisher_connected",
        GAUGE,
        "1 while the publishing connection serves.",
        lambda watched: watched.publisher.connection.trouble is None,
    ),
    _one(
        "publisher_blocked",
        GAUGE,
        "1 while the broker blocks the publishing connection (an alarm).",
        lambda watched: watched.publisher.blocked is not None,
    ),
    _one(
        "publisher_reconnects",
        COUNTER,
        "How often the publishing connection was made again.",
        lambda watched: max(0, watched.publisher.connections - 1),
    ),
    _of_outboxes("confirms_pending", "Publications that are written and not confirmed yet.", lambda box: box.unconfirmed),
    _of_outboxes(
        "publications_waiting", "Publications that wait to be written.", lambda box: max(0, len(box) - box.unconfirmed)
    ),
    *_counted(OutboxStats, ("channel",), _outboxes),
    # calls to other services
    _one("calls_outstanding", GAUGE, "Calls that wait for their reply.", lambda watched: len(watched.publisher.calls)),
    *_counted(CallStats, (), lambda watched: iter([((), watched.publisher.calls)])),
)


# For whoever scrapes --------------------------------------------------------------------------------


def exposition(watched: Watched) -> Callable[[str], tuple[bytes, str]]:
    """Return what answers a scrape: takes the Accept header, returns body and content type. Loads prometheus_client."""
    from prometheus_client import (  # noqa: PLC0415  # only who serves HTTP loads it
        CollectorRegistry,
        GCCollector,
        PlatformCollector,
        ProcessCollector,
    )
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415  # the same
    from prometheus_client.registry import Collector  # noqa: PLC0415  # the same

    class Rpcd(Collector):
        """All of rpcd's own families."""

        def collect(self) -> Iterable[Any]:
            """Read them."""
            return map(_metric, FAMILIES, itertools.repeat(watched))

    registry = CollectorRegistry()
    registry.register(Rpcd())
    for kind in (ProcessCollector, PlatformCollector, GCCollector):
        kind(registry=registry)

    def answer(accept: str) -> tuple[bytes, str]:
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # the header is a stranger's; the library stumbles over a version that is none
            encode, content_type = choose_encoder("")
        return encode(registry), content_type

    return answer


def _metric(family: Family, watched: Watched) -> Any:
    """Turn a family into what the library writes."""
    from prometheus_client import metrics_core  # noqa: PLC0415  # only who serves HTTP loads it

    if family.kind == INFO:
        info = metrics_core.InfoMetricFamily(PREFIX.rstrip("_"), family.sentence, labels=())
        for values, _one in family.read(watched):
            info.add_metric((), dict(zip(family.labels, values, strict=True)))
        return info
    kinds: dict[str, Any] = {
        COUNTER: metrics_core.CounterMetricFamily,
        GAUGE: metrics_core.GaugeMetricFamily,
        HISTOGRAM: metrics_core.HistogramMetricFamily,
    }
    metric = kinds[family.kind](f"{PREFIX}{family.name}", family.sentence, labels=family.labels)
    for values, value in family.read(watched):
        if family.kind == HISTOGRAM:
            metric.add_metric(values, _cumulated(value.buckets), value.seconds)
        else:
            metric.add_metric(values, float(value))
    return metric


def _cumulated(buckets: Sequence[int]) -> list[tuple[str, int]]:
    bounds = [*map(str, BOUNDS), "+Inf"]
    return list(zip(bounds, itertools.accumulate(buckets), strict=True))
