"""One AMQP channel over pika's inner channel: calls as Deferreds that always end, and frames of our own making.

What is asked of the broker goes through pika, which keeps the channel's state. What is written in numbers (acks, replies,
publications) is packed by `core.wire` and written straight to the transport. When the channel ends, whatever the reason,
every pending call fails with that reason and everyone who asked is told, once.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred, fail, succeed

from rpcd.amqp.reader import OnDelivery, Reader
from rpcd.amqp.waiting import Once
from rpcd.core.errors import ConsumerCancelled
from rpcd.core.outgoing import Outgoing
from rpcd.core.wire import Properties, ack_frame, get_frame, nack_frame, publish_frames

_HEADER_OVERHEAD = 20
"""Bytes of a content header frame that are not its property list."""

Ended: TypeAlias = Callable[[Exception], None]
"""Told once, on the reactor, why something came to its end."""


OnConfirm: TypeAlias = Callable[[int, bool, bool], None]
"""Told a publication's sequence number, whether all lower ones are meant too, and whether the broker took them."""
OnReturn: TypeAlias = Callable[[int, str, str, str, Properties], None]
"""Told code and text of a return, exchange and key that it was published with, and its properties."""


class Channel:
    """One channel; reactor only. Made by `AmqpProtocol.open_channel`."""

    def __init__(
        self,
        inner: Any,
        write: Callable[[bytes], None],
        frame_max: int,
        translate: Callable[[Exception], Exception],
        clock: Any,
        reader: Reader,
    ) -> None:
        """Wrap pika's channel; `translate` turns its reason for closing into one of rpcd's errors."""
        self.number: int = inner.channel_number
        self.clock = clock
        self.reason: Exception | None = None
        self._inner = inner
        self._write = write
        self._frame_max = frame_max
        self._translate = translate
        self._reader = reader
        self._calls: set[Deferred[Any]] = set()
        self._cancels: dict[str, Once] = {}
        self._ended: list[Ended] = []
        inner.add_on_close_callback(self._on_close)

    @property
    def is_open(self) -> bool:
        """Whether frames may be written."""
        return bool(self._inner.is_open)

    @property
    def consumer_tags(self) -> Sequence[str]:
        """The consumers that are alive as far as pika knows."""
        return list(self._inner.consumer_tags) if self.is_open else []

    def when_closed(self, ended: Ended) -> None:
        """Call `ended` with the reason when the channel closes; at once if it has."""
        if self.reason is not None:
            ended(self.reason)
        else:
            self._ended.append(ended)

    def call(self, name: str, **arguments: Any) -> Deferred[Any]:
        """Ask the broker (`queue_declare`, `basic_qos`, ...) and return its answer; fails when the channel closes.

        Cancelling or timing out the Deferred is safe: a late answer is ignored.
        """
        if self.reason is not None:  # perhaps before the channel closes: then pika would wait for an answer
            return fail(self.reason)
        answer: Deferred[Any] = Deferred()
        self._calls.add(answer)

        def answered(frame: Any) -> None:
            self._calls.discard(answer)
            if not answer.called:  # timed out, or failed with a consumer that the broker has cancelled
                answer.callback(frame.method)

        try:
            getattr(self._inner, name)(callback=answered, **arguments)
        except Exception as error:  # noqa: BLE001  # pika raises some errors here and calls back others
            self._calls.discard(answer)
            return fail(self._translate(error))
        return answer

    def consume(
        self, queue: str, tag: str, on_delivery: OnDelivery, exclusive: bool, arguments: Any, *, auto_ack: bool = False
    ) -> Deferred[Any]:
        """Start a consumer; deliveries may come before this fires, and the broker's cancel counts as the channel's end."""
        self._reader.deliver_to(self.number, on_delivery)
        self._inner.add_on_cancel_callback(
            lambda _frame: self._end(ConsumerCancelled(f"the broker cancelled the consumer of {queue!r}"))
        )
        return self.call(
            "basic_consume",
            queue=queue,
            on_message_callback=_never,
            exclusive=exclusive,
            auto_ack=auto_ack,
            consumer_tag=tag,
            arguments=dict(arguments),
        )

    def cancel(self, tag: str) -> Deferred[None]:
        """Cancel a consumer; fires when the broker delivers nothing more to it, at once if there is no such consumer."""
        if tag in self._cancels:
            return self._cancels[tag].wait()
        if tag not in self.consumer_tags:
            return succeed(None)
        cancelled = self._cancels[tag] = Once()
        self.call("basic_cancel", consumer_tag=tag).addCallbacks(
            lambda _method: self._cancelled(tag, cancelled), lambda failure: cancelled.fail(failure.value)
        )
        return cancelled.wait()

    def _cancelled(self, tag: str, cancelled: Once) -> None:
        del self._cancels[tag]
        cancelled.fire()

    def get(self, queue: str, on_delivery: OnDelivery) -> Deferred[bool]:
        """Take one message (`basic.get`); fires when `on_delivery` was told of it, or with False if the queue is empty.

        Only while nothing is consumed on this channel, and one at a time. A late answer is delivered all the same.
        """
        if self.reason is not None:
            return fail(self.reason)
        answer: Deferred[bool] = Deferred()
        self._calls.add(answer)

        def answered(found: bool) -> None:
            self._calls.discard(answer)
            if not answer.called:
                answer.callback(found)

        def delivered(*delivery: Any) -> None:
            on_delivery(*delivery)
            answered(True)

        self._reader.deliver_to(self.number, delivered, lambda: answered(False))
        self._write(get_frame(self.number, queue))
        return answer

    def confirm(self, on_confirm: OnConfirm, on_return: OnReturn) -> Deferred[Any]:
        """Switch publisher confirms on; publish only when this has fired, else the counts of both sides differ."""

        def confirmed(frame: Any) -> None:
            method = frame.method
            on_confirm(method.delivery_tag, method.multiple, method.NAME == "Basic.Ack")

        self.when_returned(on_return)
        return self.call("confirm_delivery", ack_nack_callback=confirmed)

    def when_returned(self, on_return: OnReturn) -> None:
        """Call `on_return` for every mandatory message that the broker gives back."""

        def returned(_inner: Any, method: Any, properties: Properties, _body: bytes) -> None:
            on_return(method.reply_code, method.reply_text, method.exchange, method.routing_key, properties)

        self._inner.add_on_return_callback(returned)

    def publish(self, outgoing: Outgoing) -> None:
        """Write one publication; the caller checks `is_open` first. Raises, and writes nothing, if no frame can hold it."""
        if len(outgoing.properties) > self._frame_max - _HEADER_OVERHEAD:
            raise ValueError(f"properties of {len(outgoing.properties)} bytes; the broker takes frames of {self._frame_max}")
        self._write(
            publish_frames(
                self.number,
                outgoing.exchange,
                outgoing.routing_key,
                outgoing.mandatory,
                outgoing.properties,
                outgoing.body,
                self._frame_max,
            )
        )

    def ack(self, acks: Sequence[tuple[int, bool]]) -> None:
        """Write acks, given as (tag, multiple), in one go; the caller checks `is_open` first."""
        number = self.number
        self._write(b"".join([ack_frame(number, tag, multiple) for tag, multiple in acks]))

    def nack(self, tag: int, requeue: bool) -> None:
        """Write basic.nack for one tag; the caller checks `is_open` first."""
        self._write(nack_frame(self.number, tag, requeue))

    def close(self) -> Deferred[Any]:
        """Close the channel; fires when the broker has agreed, which proves that it read every ack before. Never fails."""
        done: Deferred[Any] = Deferred()
        self.when_closed(lambda _reason: None if done.called else done.callback(None))
        if self.is_open:
            try:
                self._inner.close()
            except Exception as error:  # noqa: BLE001  # raised if it closed in the meantime: then it is closed
                self._end(self._translate(error))
        return done

    def _on_close(self, _inner: Any, reason: Exception) -> None:
        self._end(self._translate(reason))

    def _end(self, reason: Exception) -> None:
        if self.reason is not None:
            return
        self.reason = reason
        self._reader.forget(self.number)
        calls, self._calls = self._calls, set()
        for call in calls:
            if not call.called:
                call.errback(reason)
        ended, self._ended = self._ended, []
        for each in ended:
            each(reason)


def _never(*_delivery: object) -> None:
    """Stand in for pika's own callback: the reader takes deliveries before pika sees them."""
    raise RuntimeError("a delivery went past the reader")
