"""What is wrong with settings although each of them is right by itself."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rpcd.core import keys
from rpcd.core.copies import archive_queue, retry_queue
from rpcd.core.errors import Problem
from rpcd.core.locks import lane_key
from rpcd.core.retry import milliseconds
from rpcd.core.settings import Consumer, Exchange, Queue, Settings
from rpcd.core.tables import MAX_SHORT, table
from rpcd.core.topology import kind_of

MAX_16_BITS = 65535
"""The largest heartbeat and prefetch: AMQP has 16 bits for each."""

LONGEST_STEP = 4_294_967
"""Seconds: the broker takes a queue's TTL as 32 bits of milliseconds."""

LONGEST_SOCKET = 107
"""Bytes of a unix socket's path that the kernel takes; see unix(7)."""

SMALLEST_REPLY = 1024
"""Bytes that a reply must be allowed to have, so that a failure can always be told."""

_NOT_FOR = {
    "quorum": {"x-max-priority", "x-queue-mode", "x-queue-version", "x-queue-master-locator"},
    "classic": {"x-delivery-limit", "x-max-in-memory-length", "x-max-in-memory-bytes", "x-quorum-initial-group-size"},
}
"""Arguments that every version of the broker refuses for queues of a type."""

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d]\w*(\.[^\W\d]\w*)*|\.[^\W\d]\w*)")

_PACKAGE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def lint(settings: Settings) -> list[Problem]:
    """Return every problem that more than one setting, or more than its type, is needed to see."""
    return [
        *_broker(settings),
        *_service(settings),
        *_exchanges(settings),
        *_queues(settings),
        *_twice(settings),
        *_consumers(settings),
        *_shared(settings),
        *keys.problems(settings),
    ]


def dotted(path: str) -> bool:
    """Tell whether a text looks like package.module:Name or package.module.Name."""
    return _DOTTED.fullmatch(path) is not None


def package(path: str) -> bool:
    """Tell whether a text looks like package.module."""
    return _PACKAGE.fullmatch(path) is not None


def _broker(settings: Settings) -> Iterator[Problem]:
    broker = settings.broker
    if not 0 <= broker.heartbeat <= MAX_16_BITS:
        yield Problem("broker.heartbeat", f"expected 0 to {MAX_16_BITS} seconds, got {broker.heartbeat}")
    if (broker.tls.certificate is None) != (broker.tls.key is None):
        yield Problem("broker.tls", "a certificate needs its key, and a key its certificate", "set both or none")
    if broker.tls != type(broker.tls)() and broker.url.startswith("amqp://"):
        yield Problem("broker.tls", "the URL says amqp://, which is plain TCP", "write amqps:// to use TLS")
    if not broker.connect_timeout:
        yield Problem("broker.connect_timeout", "no connection is made in 0 seconds")


def _service(settings: Settings) -> Iterator[Problem]:
    service = settings.service
    if service.on_start is not None and not dotted(service.on_start):
        yield Problem("service.on_start", f"{service.on_start!r} is no dotted path", "expected package.module:function")
    for name in ("confirm_timeout", "publish_timeout"):
        if getattr(service, name) == 0:
            yield Problem(f"service.{name}", "expected more than 0 seconds")
    for index, module in enumerate(service.modules):
        if not _PACKAGE.fullmatch(module):
            yield Problem(f"service.modules[{index}]", f"{module!r} is no module", "expected package.module")
    if service.control is not None and not 0 < len(service.control.encode(errors="replace")) <= LONGEST_SOCKET:
        yield Problem("service.control", f"expected a path of 1 to {LONGEST_SOCKET} bytes")
    if not settings.consumers and not service.modules:
        yield Problem("consumers", "there is no [consumers.NAME] section, so there is nothing to do")


def _exchanges(settings: Settings) -> Iterator[Problem]:
    for key, exchange in settings.exchanges.items():
        path = f"exchanges.{key}"
        yield from _name(path, settings.exchange_name(key), exchange)
        yield from _arguments(f"{path}.arguments", exchange.arguments)
        if not settings.exchange_name(key):
            yield Problem(path, "the default exchange can't be declared", "remove the section; it always exists")
        if len(exchange.type.encode(errors="replace")) > MAX_SHORT:
            yield Problem(f"{path}.type", f"more than {MAX_SHORT} bytes")
        if not exchange.type:
            yield Problem(f"{path}.type", "empty", "expected direct, fanout, topic or headers")


def _twice(settings: Settings) -> Iterator[Problem]:
    for kind, sections, name in (
        ("queues", settings.queues, settings.queue_name),
        ("exchanges", settings.exchanges, settings.exchange_name),
    ):
        first: dict[str, str] = {}
        for key in sections:
            other = first.setdefault(name(key), key)
            if other != key and name(key):
                yield Problem(f"{kind}.{key}", f"its name is that of {kind}.{other}", "keep one of them")


def _name(path: str, name: str, section: Exchange | Queue) -> Iterator[Problem]:
    if len(name.encode(errors="replace")) > MAX_SHORT:
        yield Problem(path, f"its name has more than {MAX_SHORT} bytes")
    if name.startswith("amq.") and not section.passive:
        yield Problem(path, "names that start with `amq.` belong to the broker", "set passive = true to use one that exists")


def _queues(settings: Settings) -> Iterator[Problem]:
    for key, queue in settings.queues.items():
        path = f"queues.{key}"
        name = settings.queue_name(key)
        yield from _name(path, name, queue)
        yield from _arguments(f"{path}.arguments", queue.arguments)
        for index, binding in enumerate(queue.bindings):
            for number, key_ in enumerate(binding.routing_keys):
                if len(key_.encode(errors="replace")) > MAX_SHORT:
                    yield Problem(f"{path}.bindings[{index}].routing_keys[{number}]", f"more than {MAX_SHORT} bytes")
            yield from _arguments(f"{path}.bindings[{index}].arguments", binding.arguments)
        if queue.type == "quorum" and (queue.exclusive or queue.auto_delete or queue.durable is False or not name):
            yield Problem(
                f"{path}.type",
                "a quorum queue is always durable, has a name, and outlives its connection",
                'write type = "classic", or drop exclusive, auto_delete, durable and the empty name',
            )
        if queue.passive and not name:
            yield Problem(path, "a queue that the broker names can't be passive", "give its name, or drop passive")
        kind = kind_of(settings, key)
        for argument in sorted(set(queue.arguments) & _NOT_FOR.get(kind, set())) if not queue.passive else ():
            what = f"the broker refuses it for a {kind} queue"
            yield Problem(f"{path}.arguments.{argument}", what, "remove it, or choose another type")


def _arguments(path: str, arguments: Mapping[str, Any]) -> Iterator[Problem]:
    try:
        table(arguments)
    except (TypeError, ValueError) as error:
        yield Problem(path, str(error))


def _consumers(settings: Settings) -> Iterator[Problem]:
    for key, consumer in settings.consumers.items():
        path = f"consumers.{key}"
        if consumer.queue not in settings.queues:
            yield Problem(
                f"{path}.queue", f"there is no [queues.{consumer.queue}]", _closest(consumer.queue, settings.queues)
            )
        yield from _handler(path, consumer)
        yield from _limits(path, consumer)
        yield from _retry(path, consumer, settings)
        yield from _archive(path, consumer)
        yield from _arguments(f"{path}.arguments", consumer.arguments)
        if consumer.lock:
            try:
                lane_key(consumer.lock)
            except ValueError as error:
                yield Problem(f"{path}.lock", str(error))


def _handler(path: str, consumer: Consumer) -> Iterator[Problem]:
    if (consumer.handler is None) == (consumer.namespace is None):
        said = "missing" if consumer.handler is None else "stands beside `namespace`"
        yield Problem(f"{path}.handler", said, "give a handler (package.module:Name), or a namespace (package.name)")
    if consumer.handler is not None and not dotted(consumer.handler):
        yield Problem(f"{path}.handler", f"{consumer.handler!r} is no dotted path", "expected package.module:Name")
    if consumer.namespace is not None and not _PACKAGE.fullmatch(consumer.namespace):
        yield Problem(f"{path}.namespace", f"{consumer.namespace!r} is no package", "expected package.name")
    if consumer.exchanges and consumer.namespace is None:
        yield Problem(f"{path}.exchanges", "only a namespace has handlers for exchanges", "set namespace, or use bindings")


def _archive(path: str, consumer: Consumer) -> Iterator[Problem]:
    if consumer.archive.max_length is None and consumer.archive.overflow != "reject-publish":
        yield Problem(f"{path}.archive.overflow", "the archive has no limit, so it never overflows", "set max_length, too")


def _closest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else "add the section (with passive = true if the queue is made elsewhere)"


def _limits(path: str, consumer: Consumer) -> Iterator[Problem]:
    least = 1 if consumer.lock == "*" else consumer.workers  # one at a time: the other workers idle, but nothing waits
    if not least <= consumer.window <= MAX_16_BITS:
        yield Problem(f"{path}.prefetch", f"expected from {least} (the workers) to {MAX_16_BITS}, got {consumer.window}")
    if not consumer.time_limit:
        yield Problem(f"{path}.time_limit", "no handler can run in 0 seconds")
    if consumer.max_reply < SMALLEST_REPLY:
        yield Problem(f"{path}.max_reply", f"expected at least {SMALLEST_REPLY} bytes, so that a failure can be told")
    if consumer.kill_switch.failures < 0:
        yield Problem(f"{path}.kill_switch.failures", f"expected 0 (never) or more, got {consumer.kill_switch.failures}")
    if not consumer.kill_switch.interval:
        yield Problem(
            f"{path}.kill_switch.interval", "expected more than 0 seconds", "write failures = 0 for no kill switch"
        )
    if not consumer.accept:
        yield Problem(
            f"{path}.accept",
            "empty, so no message could ever be opened",
            'expected content types, such as ["application/json"]',
        )
    for index, accepted in enumerate(consumer.accept):
        if accepted.count("/") != 1 or accepted != accepted.strip().lower() or ";" in accepted:
            yield Problem(
                f"{path}.accept[{index}]",
                f"{accepted!r} is no content type",
                "expected type/subtype, in lower case, without parameters",
            )


def _retry(path: str, consumer: Consumer, settings: Settings) -> Iterator[Problem]:
    delays = consumer.retry.delays
    if not delays and consumer.steps.attempts > 1:
        yield Problem(
            f"{path}.retry.attempts",
            "there are no delays, so there is only one attempt",
            "add delays, or write attempts = 1",
        )
    for index, delay in enumerate(delays):
        if not 0 < delay <= LONGEST_STEP:
            yield Problem(
                f"{path}.retry.delays[{index}]",
                f"expected more than 0 and at most {LONGEST_STEP} seconds, got {delay:g}",
            )
    queue = settings.queue_name(consumer.queue) if consumer.queue in settings.queues else ""
    longest = retry_queue(queue, max((milliseconds(delay) for delay in delays), default=0))
    if len(longest.encode(errors="replace")) > MAX_SHORT:
        yield Problem(f"queues.{consumer.queue}", f"the name leaves no room for its retry queue {longest!r} in 255 bytes")


def _shared(settings: Settings) -> Iterator[Problem]:
    """Check what several consumers, or a queue and the queues that rpcd adds to another, have in common."""
    first: dict[str, str] = {}
    for key, consumer in settings.consumers.items():
        if consumer.queue not in settings.queues:
            continue
        other = first.setdefault(consumer.queue, key)
        if other != key:
            if settings.queues[consumer.queue].exclusive or not settings.queue_name(consumer.queue):
                yield Problem(f"consumers.{key}.queue", f"the queue is exclusive and consumers.{other} has it already")
            elif settings.consumers[other].archive != consumer.archive:
                yield Problem(
                    f"consumers.{key}.archive",
                    f"differs from consumers.{other}.archive, but their queue has one archive",
                )
    added = {name: key for key in first for name in own_queues(settings, key) if name != settings.queue_name(key)}
    for key, queue in settings.queues.items():
        if settings.queue_name(key) in added and not queue.passive:
            yield Problem(
                f"queues.{key}",
                f"rpcd declares this queue itself, beside queues.{added[settings.queue_name(key)]}",
                "set passive = true to use it",
            )


def own_queues(settings: Settings, key: str) -> set[str]:
    """Return the names of a queue and of all that rpcd adds to it: no reply is ever sent there."""
    name = settings.queue_name(key)
    steps = {delay for consumer in settings.consumers.values() if consumer.queue == key for delay in consumer.retry.delays}
    retries = {retry_queue(name, milliseconds(delay)) for delay in steps} if name else set()
    return {name or key, archive_queue(name or key)} | retries
