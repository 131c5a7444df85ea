"""A layer that answers duplicates from a store: what has been handled once is not run again, whichever daemon gets it.

A message is claimed in the store before it runs, and its result is kept there before it is settled. Whoever gets the same
message later, from the broker because the first ack was lost, or from a client that sent it twice, finds the result: the
reply is sent again, and so is what the handler held back to be published; the handler does not run.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from rpcd.core.consumers import Consumer
from rpcd.core.errors import Nack, Problem
from rpcd.core.handler import Handler, awaits, check_finished
from rpcd.core.load import table as structured
from rpcd.core.message import Message
from rpcd.features.inbox.keeper import Keeper
from rpcd.features.inbox.record import Identify, answer, identify, keep
from rpcd.features.inbox.settings import ENCODE, Inbox, file_of, problems
from rpcd.features.inbox.store import Claim, Held, Store

FIRST_WAIT = 1.0
"""Seconds until a message that runs elsewhere is looked at again, at first."""

NO_KEY = "messages that have no id of the kind that `key` names run as if there were no inbox"

log = logging.getLogger("rpcd.inbox")


def check(table: Mapping[str, Any], place: Path) -> tuple[Keeper, list[Problem]]:
    """Read `[layers.inbox]`; return what the layers of all workers share, and what is wrong."""
    settings, wrong = structured(table, Inbox)
    wrong += problems(settings)
    scheme = (settings.url or "sqlite:").partition(":")[0]
    wrong += [] if wrong else _library(scheme, str(settings.url))
    return Keeper(settings, lambda: _store(settings, scheme, place)), wrong


def unfit(consumer: Consumer) -> Iterator[Problem]:
    """Tell that a consumer could not let a message wait that runs elsewhere."""
    if not consumer.retry.delays:
        what = "the inbox lets a message that runs elsewhere wait in a retry step, and there is none"
        yield Problem("retry.delays", what, "add one")


def _library(scheme: str, url: str) -> list[Problem]:
    """Tell that a store's library is not installed, or what it says of the URL; its own words may hold a password."""
    try:
        if scheme == "postgresql":
            from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415  # loaded only if it is asked for

            conninfo_to_dict(url)
        elif scheme in ("redis", "rediss"):
            from redis.connection import parse_url  # noqa: PLC0415  # the same

            parse_url(url)  # type: ignore[no-untyped-call]
    except ImportError:
        extra = "postgresql" if scheme == "postgresql" else "redis"
        return [Problem("url", f"{scheme}:// needs a library that is not installed", f'pip install "rpcd[{extra}]"')]
    except Exception:  # noqa: BLE001  # whatever it raises, a daemon with this URL would never be ready
        return [Problem("url", f"{scheme}:// with something in it that its library does not understand", ENCODE)]
    return []


def _store(settings: Inbox, scheme: str, place: Path) -> Store:
    if scheme == "postgresql":
        from rpcd.features.inbox.postgresql import PostgresqlStore  # noqa: PLC0415  # needs an extra

        return PostgresqlStore(str(settings.url))
    if scheme in ("redis", "rediss"):
        from rpcd.features.inbox.redis import RedisStore  # noqa: PLC0415  # the same

        return RedisStore(str(settings.url))
    from rpcd.features.inbox.sqlite import SqliteStore  # noqa: PLC0415  # Python may have been built without SQLite

    return SqliteStore(file_of(settings.url, place))


def layer(handler: Handler, keeper: Keeper) -> Handler:
    """Answer duplicates from the store; the handler runs for all others."""
    keeper.open()
    find = identify(keeper.settings.key, keeper.settings.scope)
    return _around_async(handler, keeper, find) if awaits(handler) else _around(handler, keeper, find)


def _around(handler: Handler, keeper: Keeper, find: Identify) -> Handler:
    def around(message: Message[Any]) -> Any:
        key = find(message)
        if key is None:
            keeper.say_once(NO_KEY)
            return handler(message)
        held, claim = keeper.claim(key)
        if claim.kept is not None:
            return _answered(claim.kept, message)
        _check_free(claim, message)
        before = len(message.published)
        try:
            value = handler(message)
            kept = _kept(value, message, before)
        except BaseException:
            keeper.release(held)
            raise
        keeper.finish(held, kept)
        return value

    return around


def _around_async(handler: Handler, keeper: Keeper, find: Identify) -> Handler:
    async def around(message: Message[Any]) -> Any:
        key = find(message)
        if key is None:
            keeper.say_once(NO_KEY)
            return await handler(message)
        held, claim = await _claimed(keeper, key)
        if claim.kept is not None:
            return _answered(claim.kept, message)
        _check_free(claim, message)
        before = len(message.published)
        try:
            value = await handler(message)
            kept = _kept(value, message, before)
        except BaseException:
            keeper.give_up(held)  # a cancelled task can't wait for it
            raise
        await asyncio.to_thread(keeper.finish, held, kept)
        return value

    return around


async def _claimed(keeper: Keeper, key: bytes) -> tuple[Held | None, Claim]:
    """Claim a message in a thread, which goes on when the task is cancelled: what it claims then is given up."""
    claiming = asyncio.ensure_future(asyncio.to_thread(keeper.claim, key))
    try:
        return await asyncio.shield(claiming)
    except asyncio.CancelledError:
        claiming.add_done_callback(lambda done: _give_up(keeper, done))
        raise


def _give_up(keeper: Keeper, done: "asyncio.Future[tuple[Held | None, Claim]]") -> None:
    if not done.cancelled() and done.exception() is None:
        keeper.give_up(done.result()[0])


def _kept(value: Any, message: Message[Any], before: int) -> bytes | None:
    """Encode a result; None for what can't be sent: it is about to fail as it would without an inbox."""
    if value is not None:
        check_finished(value)
    try:
        return keep(value, message, before)
    except (TypeError, ValueError, AttributeError, msgspec.MsgspecError):
        return None


def _answered(kept: bytes, message: Message[Any]) -> Any:
    log.info("answered from the inbox: it has been handled before")
    return answer(kept, message)


def _check_free(claim: Claim, message: Message[Any]) -> None:
    """Let a message that runs elsewhere right now come back later."""
    if claim.left > 0:
        raise Nack(min(FIRST_WAIT * 2 ** min(message.nacks, 10), max(claim.left, FIRST_WAIT)))
