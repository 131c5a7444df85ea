"""The promises of `conformance.py`, kept by the harness for tests."""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from conformance import CONFIG, PROMISES, World

from rpcd.core.wire import Properties
from rpcd.testing import Harness, Posted
from rpcd.testing.broker import Queue
from rpcd.testing.request import request

REPLIES = "amq.gen-conformance"

LONGEST = 30.0
"""Seconds of the harness's time that anything is waited for."""


class Seen:
    """A message as a plain client has it."""

    def __init__(self, posted: Posted) -> None:
        self.body = posted.payload
        self.headers = posted.headers
        self.properties: Properties = posted.properties

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def named(number: str, posted: Posted) -> bool:
    properties = posted.properties
    return number in (properties.message_id, properties.correlation_id)


class HarnessWorld:
    """The config in a harness; time passes while somebody waits."""

    def __init__(self, config: pathlib.Path) -> None:
        self.harness = Harness(config, reraise=False)
        self.harness.declare_queue(REPLIES)
        self.harness.declare_queue("elsewhere")
        self._replies: dict[str, Seen] = {}

    def send(self, key: str, body: Any, exchange: str, properties: Mapping[str, Any], *, asks: bool) -> None:
        said = {"reply_to": REPLIES, **properties} if asks else dict(properties)
        if asks and exchange:
            self._broker.bind(REPLIES, exchange, REPLIES, {})
        headers = said.pop("headers", None)
        self._engine.send(request(exchange, key, body, headers, said))
        self.harness.advance(0)

    @property
    def _engine(self) -> Any:
        return self.harness._engine

    @property
    def _broker(self) -> Any:
        return self._engine.broker

    def _queue(self, name: str) -> Queue:
        found: Queue = self._engine.queue(name)
        return found

    def _until(self, done: Callable[[], Any], what: str) -> Any:
        until = self.harness.now + LONGEST
        while not (found := done()):
            due = self._engine.clock.next
            assert due is not None, f"{what}; nothing more will happen: {self.harness.deliveries[-3:]}"
            assert due <= until, f"{what}: {self.harness.deliveries[-3:]}"
            self.harness.advance(due - self.harness.now)
        return found

    def _collect(self) -> None:
        replies = self._queue(REPLIES).messages
        while replies:
            each = replies.popleft()
            assert str(each.properties.correlation_id) not in self._replies, "a second reply"
            self._replies[str(each.properties.correlation_id)] = Seen(each)

    def reply(self, number: str) -> Seen:
        self._until(lambda: self.has_reply(number), f"no reply to {number}")
        return self._replies[number]

    def has_reply(self, number: str) -> bool:
        self._collect()
        return number in self._replies

    def _find(self, queue: str, number: str) -> Posted | None:
        return next((each for each in self._queue(queue).messages if named(number, each)), None)

    def get(self, queue: str, number: str) -> Seen:
        found: Posted = self._until(lambda: self._find(queue, number), f"{number} does not come to {queue}")
        self._queue(queue).messages.remove(found)
        return Seen(found)

    def holds(self, queue: str, number: str) -> bool:
        return self._find(queue, number) is not None

    def runs(self, number: str, count: int) -> list[dict[str, Any]]:
        def found() -> list[dict[str, Any]]:
            return [each.body for each in self._queue("seen").messages if named(number, each)]

        self._until(lambda: len(found()) >= count, f"{number} does not run {count} times")
        return found()

    def encrypt(self, value: str) -> str:
        return self.harness.encrypt(value)

    def lose_the_ack(self, number: str, key: str) -> None:
        self.send(key, {}, "", {"message_id": number, "correlation_id": number}, asks=True)
        self._collect()
        first = self._replies.pop(number)
        self.harness.redeliver(self.harness.deliveries[-1])
        assert self.reply(number).body == first.body


@pytest.fixture
def world(tmp_path: pathlib.Path) -> Iterator[World]:
    (tmp_path / "rpcd.toml").write_text(CONFIG)
    made = HarnessWorld(tmp_path / "rpcd.toml")
    yield made
    made.harness.close()


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_the_harness_keeps_a_promise(promise: Callable[[World], None], world: World) -> None:
    promise(world)


def test_there_are_promises_enough() -> None:
    assert len(PROMISES) >= 40
    assert len({promise.__name__ for promise in PROMISES}) == len(PROMISES)
