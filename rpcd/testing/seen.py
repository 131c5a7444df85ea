"""What a test looks at: queues, publications, deliveries, errors, the time."""

from rpcd.core.copies import archive_queue, retry_queue
from rpcd.core.verdict import Halt
from rpcd.testing.delivery import Delivery
from rpcd.testing.engine import Engine
from rpcd.testing.posted import Posted


class Seen:
    """The half of a harness that is only looked at."""

    def __init__(self, engine: Engine) -> None:
        """Take what does the work."""
        self._engine = engine

    @property
    def now(self) -> float:
        """The harness's time in seconds since the epoch; only `advance`, and a `timeout` of `call`, lets it pass."""
        return self._engine.clock.now

    @property
    def published(self) -> list[Posted]:
        """What handlers have published, in this order: replies and copies for retry steps and archives are not among it."""
        return self._engine.record.published

    @property
    def deliveries(self) -> list[Delivery]:
        """Every delivery to every consumer, in the order in which they began."""
        return self._engine.record.deliveries

    @property
    def errors(self) -> list[BaseException]:
        """What handlers have raised and nobody expected: what the daemon logs with a traceback."""
        return self._engine.record.errors

    @property
    def halted(self) -> dict[str, Halt]:
        """The consumers that were told to stop by a handler, and how; they take nothing any more."""
        return {name: each.halted for name, each in self._engine.consumers.items() if each.halted is not None}

    @property
    def exit_code(self) -> int | None:
        """What the daemon would have ended with by now, because a handler told it to; None if it goes on."""
        halts = self.halted
        code = next((halt.exit_code for halt in halts.values() if halt.exit_code), None)
        return 0 if code is None and halts and len(halts) == len(self._engine.consumers) else code

    def queue(self, name: str) -> list[Posted]:
        """Return what waits in a queue, by its name in the broker, the oldest first."""
        return list(self._engine.queue(name).messages)

    def archive(self, queue: str) -> list[Posted]:
        """Return what was given up of a queue, the oldest first; why is in the headers `x-rpcd-*`."""
        return self.queue(archive_queue(queue))

    def retries(self, queue: str) -> list[Posted]:
        """Return what waits for another attempt, from the shortest retry step to the longest."""
        self.queue(queue)
        prefix = retry_queue(queue, 0)[:-1]
        steps = {int(name.removeprefix(prefix)): name for name in self._engine.broker.queues if name.startswith(prefix)}
        return [each for step in sorted(steps) for each in self.queue(steps[step])]

    def clear(self) -> None:
        """Forget deliveries, publications and errors; queues stay as they are."""
        self._engine.record.clear()
