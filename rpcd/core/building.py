"""From settings and checked handlers to the routes of a consumer: everything about them that is decided at start.

The daemon and the harness for tests build theirs here, so that a test meets the same rules.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import attrs

from rpcd.core import lint
from rpcd.core.codec import Codec
from rpcd.core.handler import Target
from rpcd.core.keys import sealing
from rpcd.core.locks import lane_keys, locks, told
from rpcd.core.policy import Policy
from rpcd.core.reply import Replies
from rpcd.core.routes import Choose, Route, Stray, by_exchange
from rpcd.core.settings import Consumer, Settings
from rpcd.core.topology import ephemeral

Handlers: TypeAlias = Target | Mapping[str, Target]
"""A consumer's handler; or several, each under the exchange whose messages it is for."""

LONGEST_IN_PROCESS = 60.0
"""Seconds that a message is kept in the process for another attempt when its queue dies with the connection."""


@attrs.frozen
class Built:
    """The routes of one consumer."""

    routes: tuple[Route, ...]
    """One for each handler."""
    exchanges: tuple[str, ...]
    """The exchange that each route is for; none for a consumer with a single handler."""
    choose: Choose | None
    """Finds the route of a message; None for a consumer with a single handler."""
    section: Consumer
    """Its settings, with the locks that its handlers have, whoever named them."""


def build(settings: Settings, name: str, handlers: Handlers, clock: Callable[[], float]) -> Built:
    """Build the routes of one consumer; `clock` gives seconds since the epoch."""
    section = settings.consumers[name]
    own = {name for key in settings.queues for name in lint.own_queues(settings, key)}
    replies = Replies(section.reply, section.reply_via, tuple(section.reply_to_allowed), own, section.max_reply)
    longest = LONGEST_IN_PROCESS if ephemeral(settings, section.queue) else None
    by_name = {} if isinstance(handlers, Target) else {settings.exchange_name(key): each for key, each in handlers.items()}
    targets = [handlers] if isinstance(handlers, Target) else list(by_name.values())
    found = locks(section.lock, [each.lock for each in targets])
    keys = lane_keys(found)
    opened = sealing(settings.broker, section)
    codec = Codec if opened is None else opened.codec
    first = Route(
        consumer=name,
        queue=settings.queue_name(section.queue),
        target=targets[0],
        codec=codec(section.accept, targets[0].body),
        policy=Policy(replies, section.on_error, section.steps, longest),
        clock=clock,
        max_body=section.max_body,
        config=section.config,
        key=keys[0],
    )
    first = first if opened is None else opened.route(first)
    routes = (
        first,
        *(
            attrs.evolve(first, target=each, codec=codec(section.accept, each.body), number=number, key=keys[number])
            for number, each in enumerate(targets[1:], start=1)
        ),
    )
    choose = _choice(dict(zip(by_name, routes, strict=True))) if by_name else None
    return Built(routes, tuple(by_name), choose, attrs.evolve(section, lock=told(found)))


def _choice(routes: Mapping[str, Route]) -> Choose:
    """Let the exchange of a message choose among routes; what comes from another one is a bad message."""
    first = next(iter(routes.values()))
    nobody = Target("", None, False, False, None, Any)
    common = {each.name: getattr(first, each.name) for each in attrs.fields(Route)}
    stray = Stray(**{**common, "target": nobody, "known": tuple(routes)})
    return by_exchange(routes, stray)
