"""How a handler in a test publishes and asks: the twin of the daemon's outlets, which waits for nobody."""

from collections.abc import Callable, Iterator
from typing import Any

from rpcd.core.outgoing import Outgoing
from rpcd.core.question import Question
from rpcd.testing.loop import is_running


class Confirmed:
    """What `publish_now` returns to an async handler: to be awaited, which waits for nothing and may raise."""

    def __init__(self, error: Exception | None) -> None:
        """Take what awaiting it raises."""
        self.error = error
        self.awaited = False

    def __await__(self) -> Iterator[None]:
        self.awaited = True
        if self.error is not None:
            raise self.error
        return iter(())


Ask = Callable[[Question, float | None, bool], Any]
"""Asks, with the seconds that are left until a deadline; returns what is to be awaited if that is wanted."""


class Outlet:
    """Publishes and asks for the handlers of one consumer."""

    def __init__(self, publish: Callable[[Outgoing], object], ask: Ask, *, is_async: bool) -> None:
        """Take what publishes and what asks; both raise what a handler is to see."""
        self._publish = publish
        self._ask = ask
        self._is_async = is_async
        self._unawaited: list[Confirmed] = []

    def publish_now(self, outgoing: Outgoing) -> Any:
        """Publish; raise PublishRefused, Unroutable or PublishTimeout, on an async handler's loop when that is awaited."""
        if not (self._is_async and is_running()):
            self._publish(outgoing)
            return None
        confirmed = Confirmed(None)
        try:
            self._publish(outgoing)
        except Exception as error:  # noqa: BLE001  # it is raised where it is awaited
            confirmed.error = error
        self._unawaited.append(confirmed)
        return confirmed

    def call(self, question: Question, left: float | None) -> Any:
        """Ask, and return what the reply says; of an async handler, what is to be awaited for it."""
        return self._ask(question, left, self._is_async and is_running())

    def check_forgotten(self) -> None:
        """Raise what a publication failed by that was never awaited: the daemon waits for those itself."""
        made, self._unawaited = self._unawaited, []
        for each in made:
            if each.error is not None and not each.awaited:
                raise each.error
