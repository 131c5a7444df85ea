"""What is done with the messages of archives: one sweep over them, with one of four things to do.

A message leaves its archive by an ack, and only after what was to be done with it is safe: written to the disk (`drop
--export`), or confirmed by the broker (`replay`). Whatever happens before that, it is still there for the next run.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred

from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import Once, unless
from rpcd.cli.archive_read import FIRST_PAGE, GROWTH, LARGEST_PAGE, Place, Reading, Worn, limit_of
from rpcd.core.archived import Archived, Wanted
from rpcd.core.errors import ObjectMissing

BATCH = 1000
"""Messages that are acked in one go."""


class Enough(Exception):  # no error: nobody wants more
    """Nothing more can be done with any message: nobody reads the result, or it can't be written."""


@attrs.define
class Report:
    """How far a sweep came."""

    seen: int = 0
    done: int = 0
    """Messages that what was asked for is done with."""
    hindered: dict[str, int] = attrs.field(factory=dict)
    """How many were left where they are, and why."""
    waiting: int = 0
    """Messages that were there at the beginning."""
    missing: list[ObjectMissing] = attrs.field(factory=list)
    """Archives that are not there."""
    error: BaseException | None = None
    interrupted: bool = False


class Deed(Protocol):
    """What is done with the messages that somebody means; reactor only."""

    report: Report

    async def begin(self, protocol: AmqpProtocol) -> None:
        """Prepare what needs a connection."""

    def room(self) -> int:
        """Return how many messages the next page may have."""

    def take(self, tag: int, message: Archived) -> bool:
        """Take one message that is meant; return False if it is to stay after all."""

    async def settle(self, reading: Reading) -> None:
        """Do it with all that was taken, and ack what leaves."""

    def stop(self) -> None:
        """Begin nothing more; what is under way comes to its end."""


class Reads:
    """Shows messages as they come; all of them stay."""

    def __init__(self, show: Callable[[Archived], object]) -> None:
        """Take what shows one; it may raise Enough."""
        self.report = Report()
        self._show = show

    async def begin(self, protocol: AmqpProtocol) -> None:
        """Need nothing."""

    def room(self) -> int:
        """Keep nothing, so that a page may be as large as can be."""
        return LARGEST_PAGE

    def take(self, _tag: int, message: Archived) -> bool:
        """Show one message."""
        self._show(message)
        self.report.done += 1
        return True

    async def settle(self, reading: Reading) -> None:
        """Leave all where they are."""

    def stop(self) -> None:
        """Have nothing under way."""


class Drops:
    """Takes messages out of the archive for good."""

    def __init__(self, keep: Callable[[Archived], object], kept: Callable[[], object]) -> None:
        """Take what writes a message down first, and what makes sure that all of them are on the disk."""
        self.report = Report()
        self._keep = keep
        self._kept = kept
        self._tags: list[int] = []

    async def begin(self, protocol: AmqpProtocol) -> None:
        """Need nothing."""

    def room(self) -> int:
        """Keep no more than numbers."""
        return LARGEST_PAGE

    def take(self, tag: int, message: Archived) -> bool:
        """Write it down."""
        self._keep(message)
        self._tags.append(tag)
        return True

    async def settle(self, reading: Reading) -> None:
        """Ack what is written down; even if nobody wants more by now."""
        self._kept()
        tags, self._tags = self._tags, []
        for start in range(0, len(tags), BATCH):
            reading.ack(tags[start : start + BATCH])
            await reading.settled()
            self.report.done += len(tags[start : start + BATCH])

    def stop(self) -> None:
        """Have nothing under way that would not end at once."""


class Sweep:
    """One run over archives, on one connection; reactor only."""

    def __init__(self, places: Sequence[Place], wanted: Wanted, limit: int | None, deed: Deed, wear: bool) -> None:
        """Prepare to do something with the messages that are `wanted`, `limit` of them at most."""
        self.progress: Callable[[int, int], None] = lambda _done, _seen: None
        """Told how many messages it is done with, and how many were seen."""
        self.counted: Callable[[int], None] = lambda _waiting: None
        """Told how many messages there are, as far as archives were opened."""
        self.report = deed.report
        self._places = places
        self._wanted = wanted
        self._left = limit
        self._deed = deed
        self._wear = wear
        self._reading: Reading | None = None
        self._stopped = False

    async def run(self, connect: Callable[[], Any]) -> Report:
        """Sweep; a signal ends it in good order. Only what happens before anything was read is raised."""
        protocol = await connect()
        await self._deed.begin(protocol)
        sweeping = Deferred.fromCoroutine(self._sweep(protocol))
        try:
            await unless(Once(), sweeping)
        except CancelledError:
            self.report.interrupted = self._stopped = True
            self._deed.stop()
            if self._reading is not None:
                self._reading.stop()
            await sweeping
        return self.report

    async def _sweep(self, protocol: AmqpProtocol) -> None:
        for place in self._places:
            if self._finished:
                return
            self._reading = reading = Reading(protocol, place)
            try:
                await self._one(protocol, reading)
            except ObjectMissing as error:
                self.report.missing.append(error)
            except Enough:
                return
            except Exception as error:  # noqa: BLE001  # told with how far it came
                self.report.error = error
                return
            finally:
                await reading.close()

    @property
    def _finished(self) -> bool:
        return self._stopped or self._left == 0

    async def _one(self, protocol: AmqpProtocol, reading: Reading) -> None:
        waiting = await reading.open()
        self.report.waiting += waiting
        self.counted(self.report.waiting)
        if waiting and not self._wear and (limit := await limit_of(protocol, reading.place)) is not None:
            raise Worn(_worn(reading.place.archive, limit))
        try:
            waiting = await self._pages(reading, waiting)
        except Enough:
            await self._deed.settle(reading)
            await self._pass_over(reading, waiting)
            raise
        await self._pass_over(reading, waiting)

    async def _pages(self, reading: Reading, waiting: int) -> int:
        """Do it page by page; return how many messages are left that were not looked at."""
        page = FIRST_PAGE
        while waiting and not self._finished:
            size = min(page, waiting, LARGEST_PAGE, max(1, self._deed.room()))
            if self._left is not None and self._wanted.everything:
                size = min(size, self._left)
            came = await reading.page(size, self._consider)
            await self._deed.settle(reading)
            page *= GROWTH
            waiting = waiting - came if came == size else 0
        return waiting

    async def _pass_over(self, reading: Reading, waiting: int) -> None:
        """Take the rest of what came back to the queue before, so that all of it goes back in its order."""
        while waiting > 0 and reading.among_returned and not self._stopped:
            came = await reading.page(size := min(waiting, LARGEST_PAGE), lambda _tag, _message: None)
            waiting = waiting - came if came == size else 0

    def _consider(self, tag: int, message: Archived) -> None:
        self.report.seen += 1
        meant = self._left != 0 and self._wanted.matches(message)
        if meant and self._deed.take(tag, message) and self._left is not None:
            self._left -= 1
        self.progress(self.report.done, self.report.seen)


def _worn(archive: str, limit: int) -> str:
    return (
        f"archive {archive!r} has a delivery limit of {limit}: each reading counts, and what was read too often is dropped "
        "by the broker; lift it (rabbitmqctl set_policy, delivery-limit = -1; or make the queue without), or say --wear"
    )
