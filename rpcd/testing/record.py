"""What a harness has seen, and what is to fail: all that a test asks about afterwards."""

from collections.abc import Callable

from rpcd.core.errors import PublishError, PublishTimeout
from rpcd.core.outcome import rule_for
from rpcd.core.outgoing import Outgoing
from rpcd.testing.broker import Broker
from rpcd.testing.delivery import Delivery
from rpcd.testing.posted import Posted

Failure = Callable[[], Exception]


class Publishing:
    """Publishes to the broker in memory, unless a test wants it to fail."""

    def __init__(self, broker: Broker, published: Callable[[Posted], object]) -> None:
        """Take who is told of what handlers have published."""
        self._broker = broker
        self._published = published
        self.failures: list[Failure] = []
        self.copy_failures: list[Failure] = []
        self.ordered: list[Exception] = []
        """What has failed because the test wanted it to."""

    def __call__(self, outgoing: Outgoing) -> Posted:
        """Publish what a handler wants published; raise PublishRefused, Unroutable or PublishTimeout."""
        self._fail(self.failures)
        posted = self._broker.publish(outgoing)
        self._published(posted)
        return posted

    def copy(self, outgoing: Outgoing) -> None:
        """Publish a copy."""
        self._fail(self.copy_failures)
        self._broker.publish(outgoing)

    def _fail(self, failures: list[Failure]) -> None:
        if failures:
            error = failures.pop(0)()
            self.ordered.append(error)
            raise error


class Record:
    """Everything that has happened in a harness."""

    def __init__(self, broker: Broker) -> None:
        """Begin with nothing."""
        self.deliveries: list[Delivery] = []
        self.published: list[Posted] = []
        self.errors: list[BaseException] = []
        self.current: list[Delivery] = []
        """What is in hand right now; the last one is what runs."""
        self.publish = Publishing(broker, self._on_published)
        self._fresh: list[BaseException] = []

    def _on_published(self, posted: Posted) -> None:
        self.published.append(posted)
        if self.current:
            self.current[-1].published.append(posted)

    def unexpected(self, error: BaseException) -> bool:
        """Tell whether nobody expected an error: neither its handler, nor the test."""
        ordered = any(each is error for each in self.publish.ordered)
        return not ordered and rule_for(type(error)).error in (BaseException, PublishError)

    def note(self, error: BaseException) -> None:
        """Note what nobody expected."""
        self.errors.append(error)
        self._fresh.append(error)

    def fresh(self) -> BaseException | None:
        """Return the first error that nobody has been told of."""
        fresh, self._fresh = self._fresh, []
        return fresh[0] if fresh else None

    def clear(self) -> None:
        """Forget what has happened."""
        for each in (self.deliveries, self.published, self.errors, self._fresh):
            each.clear()


def failure(error: type[Exception] | Exception) -> Failure:
    """Return what makes an error each time that it is raised; raise TypeError for one that publishing can't fail by."""
    kind = error if isinstance(error, type) else type(error)
    if not issubclass(kind, PublishError | PublishTimeout):
        raise TypeError(f"publishing fails by PublishRefused, Unroutable or PublishTimeout, not by {kind.__name__}")
    said = f"{kind.__name__}: the test says so" if isinstance(error, type) else str(error)
    return lambda: kind(said)
