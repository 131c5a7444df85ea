"""How a handler in a test publishes at once: the twin of the daemon's outlets, which waits for nobody."""

from collections.abc import Callable, Iterator
from typing import Any

from rpcd.core.outgoing import Outgoing


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


class Outlet:
    """Publishes for the handlers of one consumer."""

    def __init__(self, publish: Callable[[Outgoing], object], *, is_async: bool) -> None:
        """Take what publishes, and raises what a handler is to see."""
        self._publish = publish
        self._is_async = is_async
        self._unawaited: list[Confirmed] = []

    def publish_now(self, outgoing: Outgoing) -> Any:
        """Publish; raise PublishRefused, Unroutable or PublishTimeout, an async handler's when that is awaited."""
        if not self._is_async:
            self._publish(outgoing)
            return None
        confirmed = Confirmed(None)
        try:
            self._publish(outgoing)
        except Exception as error:  # noqa: BLE001  # it is raised where it is awaited
            confirmed.error = error
        self._unawaited.append(confirmed)
        return confirmed

    def check_forgotten(self) -> None:
        """Raise what a publication failed by that was never awaited: the daemon waits for those itself."""
        made, self._unawaited = self._unawaited, []
        for each in made:
            if each.error is not None and not each.awaited:
                raise each.error
