"""Everything about one consumer that is decided before it connects, and the names that a person sees in RabbitMQ's pages."""

import os
import secrets
import socket
from collections.abc import Callable
from typing import Any

import attrs

from rpcd.core import settings
from rpcd.core.copies import Circumstances
from rpcd.core.errors import BrokerRefused
from rpcd.core.policy import Policy
from rpcd.core.routes import Choose, Route
from rpcd.core.topology import Declaration
from rpcd.core.verdict import Halt


@attrs.frozen
class Plan:
    """One consumer's plan."""

    name: str
    section: settings.Consumer
    queue: str
    """The queue's name in the broker; empty if the broker chooses it."""
    title: str
    """The queue's name, or its section's if the broker chooses it: retry and archive are named after it."""
    declarations: list[Declaration]
    routes: tuple[Route, ...]
    """One for each handler; all share the consumer's policy, and have a lock or none has."""
    who: Circumstances
    publish_timeout: float
    exchanges: tuple[str, ...] = ()
    """The exchange that each route is for; none for a consumer with a single handler."""
    choose: Choose | None = None
    """Finds the route of a message on the reactor; None for a consumer with a single handler, which has no choice."""
    config: str = ""
    """The name of the config file; RabbitMQ's pages show it."""
    delivery_limit: int | None = None
    """How often a message may come back before the broker gives it up; less than 0 is no limit, None is not counted."""

    @property
    def policy(self) -> Policy:
        """What the consumer decides by, whichever handler a message is for."""
        return self.routes[0].policy

    @property
    def connection_name(self) -> str:
        """What RabbitMQ's pages show for the connection."""
        return connection_name(self.name, self.config)

    @property
    def consumer_tag(self) -> str:
        """A tag that tells a person which process it is; never the same twice."""
        return f"rpcd.{self.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(3)}"[:250]


def connection_name(what: str, config: str = "") -> str:
    """Say for RabbitMQ's pages what a connection is for, of which config, on which machine and in which process."""
    return f"rpcd {what}{f' of {config}' if config else ''} on {socket.gethostname()} (pid {os.getpid()})"


@attrs.frozen
class Overseer:
    """What a consumer tells the service that it belongs to; all on the reactor."""

    refused: Callable[[BrokerRefused], None]
    """A person has to mend something before a first start can succeed."""
    consuming: Callable[[Any], None]
    """This consumer consumes, for the first time or again."""
    halted: Callable[[Any, Halt], None]
    """A handler of this consumer ordered a halt."""
    exhausted: Callable[[Any], None]
    """So many threads are written off that only a restart helps."""
    changed: Callable[[], object] = lambda: None
    """What a consumer would report has changed."""
