"""What keeps one consumer from settling what it has: an alarm of the broker, a queue that takes no copies or is silent."""

from rpcd.amqp.connection import Connection
from rpcd.amqp.plan import Plan
from rpcd.amqp.publisher import Publisher
from rpcd.core.copies import archive_queue, retry_queue


class Hindrance:
    """What hinders one consumer, read when somebody asks; reactor only."""

    def __init__(self, plan: Plan, connection: Connection, publisher: Publisher) -> None:
        """Take the consumer's own connection, and the publisher that its copies go through."""
        self._connection = connection
        self._publisher = publisher
        steps = plan.section.steps.milliseconds
        self._copies = [archive_queue(plan.title), *(retry_queue(plan.title, step) for step in steps)]

    @property
    def blocked(self) -> str | None:
        """Why the broker has blocked the connection (an alarm); None if it has not."""
        protocol = self._connection.protocol
        return protocol.blocked if protocol is not None else None

    @property
    def full(self) -> list[str]:
        """The retry and archive queues of its own that took no copy when they were last tried."""
        return [queue for queue in self._copies if self._publisher.copies.refuses(queue)]

    @property
    def silent(self) -> list[str]:
        """The retry and archive queues of its own for which a confirm did not come in time."""
        return [queue for queue in self._copies if self._publisher.copies.is_silent(queue)]

    @property
    def why(self) -> str | None:
        """What hinders it, as a sentence; None if nothing does."""
        if self.blocked is not None:
            return f"the broker blocks it: {self.blocked}"
        if full := ", ".join(self.full):
            return f"the broker refuses copies to {full}; it is full, or a policy limits it"
        silent = ", ".join(self.silent)
        return f"the broker does not confirm copies to {silent}; perhaps it has no leader" if silent else None
