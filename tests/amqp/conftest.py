"""A reactor that is turned by hand, a broker made of bytes, threads that end with their test, and no error unheard."""

import gc
import logging
import pathlib
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for amqp_wire and amqp_rig, however pytest imports test files

from amqp_rig import Rig, connected, spread_time
from amqp_wire import LONGEST, Broker, Link, Reactor

from rpcd.amqp.channel import Channel
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.worker import DaemonPool


class Ear(logging.Handler):
    """Hears what must not happen: faults of rpcd itself, and callbacks that raise into pika."""

    def __init__(self, complaints: list[str]) -> None:
        super().__init__()
        self.complaints = complaints

    def emit(self, record: logging.LogRecord) -> None:
        ours = record.name.startswith("rpcd") and record.levelno >= logging.CRITICAL
        if ours or record.name == "pika.callback":
            self.complaints.append(record.getMessage())


@pytest.fixture(autouse=True)
def complaints() -> Iterator[list[str]]:
    """Errors that nobody handled; a test that expects some takes them out."""
    heard: list[str] = []
    ear = Ear(heard)
    ear.setLevel(logging.ERROR)

    def observe(event: dict[str, Any]) -> None:
        if "log_failure" in event:
            heard.append(f"{event.get('log_format')}: {event['log_failure'].getTraceback()}")

    gc.freeze()  # what is old already is left out of the collection at the end
    globalLogPublisher.addObserver(observe)
    logging.getLogger().addHandler(ear)
    yield heard
    gc.collect()  # a failed Deferred speaks up when it is thrown away
    logging.getLogger().removeHandler(ear)
    globalLogPublisher.removeObserver(observe)
    assert heard == []


@pytest.fixture(autouse=True)
def _same_dice() -> None:
    """Let pauses before a new connection be the same in each run."""
    random.seed(7)


@pytest.fixture
def reactor() -> Reactor:
    return Reactor()


@pytest.fixture
def broker(reactor: Reactor) -> Broker:
    made = Broker(reactor)
    reactor.listener = made
    return made


@pytest.fixture
def protocol(broker: Broker, reactor: Reactor) -> AmqpProtocol:
    """A connection that is ready."""
    return connected(broker)


@pytest.fixture
def link(protocol: AmqpProtocol, broker: Broker) -> Link:
    """The broker's side of `protocol`."""
    return broker.links[0]


@pytest.fixture
def channel(protocol: AmqpProtocol, reactor: Reactor) -> Channel:
    """A channel that is open."""
    opened: list[Channel] = []
    protocol.open_channel().addCallback(opened.append)
    reactor.run()
    return opened[0]


@pytest.fixture
def pool() -> Iterator[DaemonPool]:
    """Threads; a test that leaves one busy fails."""
    made = DaemonPool(0, 0, "test")
    made.start()
    yield made
    stopping = threading.Thread(target=made.stop, daemon=True)
    stopping.start()
    stopping.join(LONGEST)
    assert not stopping.is_alive(), "a thread of the pool does not end"


@pytest.fixture
def clocked(reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> Reactor:
    """Let every module of rpcd read the time from the reactor's clock."""
    spread_time(reactor, monkeypatch)
    return reactor


@pytest.fixture
def rig(broker: Broker, reactor: Reactor, pool: DaemonPool) -> Iterator[Callable[..., Rig]]:
    """Make a consumer and its publisher over the fake wire; whatever a test leaves running is ended."""
    made: list[Rig] = []

    def make(handler: Any, **options: Any) -> Rig:
        made.append(Rig(broker, reactor, pool, handler, **options))
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.fixture
def results() -> Callable[[Deferred[Any]], list[Any]]:
    """Collect what a Deferred ends with: a list of one value or exception, empty as long as it has not fired."""

    def collect(deferred: Deferred[Any]) -> list[Any]:
        ends: list[Any] = []
        deferred.addCallbacks(ends.append, lambda failure: ends.append(failure.value))
        return ends

    return collect
