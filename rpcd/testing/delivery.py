"""What a test gets to see: deliveries, and replies as their callers see them."""

from collections.abc import Mapping
from typing import Any

from rpcd.core.message import Message
from rpcd.core.verdict import Halt, Outcome
from rpcd.testing.posted import Posted

_ENVELOPE = {"success", "data", "message"}


class Reply:
    """A reply as its caller sees it."""

    def __init__(self, posted: Posted) -> None:
        """Read a reply; what is no envelope (`reply = "plain"`) is a success, and its `data` the whole body."""
        self.body: Any = posted.body
        """The decoded body."""
        self.payload = posted.payload
        """The bytes of the body."""
        self.headers: Mapping[str, Any] = posted.headers
        self.properties = posted.properties
        """AMQP's properties."""
        whole = isinstance(self.body, dict) and set(self.body) == _ENVELOPE
        self.success: bool = self.body["success"] if whole else True
        """Whether the request has succeeded."""
        self.data: Any = self.body["data"] if whole else self.body
        self.message: str | None = self.body["message"] if whole else None

    def __repr__(self) -> str:
        return f"<Reply {self.body!r}>"


class Delivery:
    """One message in the hands of a consumer, and what became of it."""

    def __init__(self, consumer: str, posted: Posted, message: Message[Any]) -> None:
        """Note what was delivered; the rest is filled in as it happens."""
        self.consumer = consumer
        """The consumer's name."""
        self.message = message
        """What the handler was given."""
        self.posted = posted
        """The message as it lay in its queue."""
        self.outcome: Outcome | None = None
        """What became of it when all that it says was published; None while its handler runs."""
        self.error: BaseException | None = None
        """What the handler raised, or what its publications were refused by; None if all went well, or it did not run."""
        self.reply: Reply | None = None
        """The reply that was sent; None if there was none."""
        self.published: list[Posted] = []
        """What the handler has published, in this order."""
        self.ran = False
        """Whether the handler was called: not for a bad message, nor for a redelivery whose outcome is known."""

    @property
    def verdict(self) -> str:
        """What became of the message: `ack`, `retry`, `archive`, `requeue` or `reject`; `running` while it runs."""
        return "running" if self.outcome is None else self.outcome.verdict.value

    @property
    def reason(self) -> str:
        """Why, as the log says it; empty if the handler returned."""
        return "" if self.outcome is None else self.outcome.reason

    @property
    def halt(self) -> Halt | None:
        """The order to stop that it gave, if it gave one."""
        return None if self.outcome is None else self.outcome.halt

    def tell(self) -> str:
        """Say in a few words what became of it."""
        if self.outcome is None:
            return f"{self.consumer}: its handler still runs"
        step = f" in {self.outcome.step / 1000:g} s" if self.outcome.step else ""
        error = f" ({type(self.error).__name__})" if self.error is not None else ""
        return f"{self.consumer}: {self.verdict}{step}{f': {self.reason}' if self.reason else ''}{error}"

    def __repr__(self) -> str:
        return f"<Delivery to {self.tell()}, attempt {self.message.attempt}>"
