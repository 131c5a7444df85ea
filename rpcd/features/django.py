"""A layer that lets handlers use Django as its views do: set up at start, each message treated like a request.

Django keeps a database connection for each thread, and looks after it when a request begins and ends: it closes what is
broken, too old, or stuck in an aborted transaction. Nobody would do that for a message. So here its two signals are sent
around each, and what a handler has left in a transaction is dropped, that the next message finds a connection that works.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from rpcd.core.errors import Problem
from rpcd.core.handler import Handler, HandlerError, awaits
from rpcd.core.load import table as structured
from rpcd.core.message import Message
from rpcd.core.setting import setting

try:
    import django
    from asgiref.sync import ThreadSensitiveContext, sync_to_async
    from django.conf import settings as configured
    from django.core import signals
    from django.db import connections
except ImportError as missing:
    raise HandlerError('the layer django needs Django: pip install "rpcd[django]"') from missing

MODULE = "DJANGO_SETTINGS_MODULE"
"""Django's own environment variable for its settings."""


@attrs.frozen
class Django:
    """`[layers.django]`: Django's settings."""

    settings: str | None = setting(
        "Dotted path of Django's settings module; DJANGO_SETTINGS_MODULE in the environment wins.", None
    )


def check(table: Mapping[str, Any], _place: Path) -> tuple[Django, list[Problem]]:
    """Set Django up, before any handler is imported that may import its models; what that raises comes through."""
    settings, wrong = structured(table, Django)
    if settings.settings is not None:
        os.environ.setdefault(MODULE, settings.settings)
    if not configured.configured and not os.environ.get(MODULE):
        wrong.append(Problem("settings", "missing", f"name Django's settings module here, or in {MODULE}"))
    if not wrong:
        django.setup()
    return settings, wrong


def layer(handler: Handler, _settings: Django) -> Handler:
    """Treat each message like a request."""
    return _around_async(handler) if awaits(handler) else _around(handler)


def _around(handler: Handler) -> Handler:
    def around(message: Message[Any]) -> Any:
        outside = _begin()
        try:
            return handler(message)
        except BaseException:
            _distrust()
            raise
        finally:
            _end(outside)

    return around


def _around_async(handler: Handler) -> Handler:
    """Give each message a thread of its own for what Django runs in one, so that its messages do not wait for each other."""

    async def around(message: Message[Any]) -> Any:
        async with ThreadSensitiveContext():
            outside = await sync_to_async(_begin)()
            try:
                return await handler(message)
            except BaseException:
                await sync_to_async(_distrust)()
                raise
            finally:
                await sync_to_async(_end)(outside)
                await sync_to_async(connections.close_all)()  # the thread ends, and nobody else could use them

    return around


def _begin() -> set[str]:
    """Begin a message; return which connections are in a transaction that began outside of it, as in a test."""
    signals.request_started.send(sender=Message, environ={})
    return {each.alias for each in connections.all(initialized_only=True) if each.in_atomic_block}


def _distrust() -> None:
    """Let Django see whether its connections still work: it would trust them after some errors, in a transaction or not."""
    for each in connections.all(initialized_only=True):
        each.errors_occurred = True


def _end(outside: set[str]) -> None:
    """End a message; a connection whose transaction was begun and never ended is dropped, and with it the transaction."""
    for each in connections.all(initialized_only=True):
        if each.in_atomic_block and each.alias not in outside:
            each.close()
            del connections[each.alias]
    signals.request_finished.send_robust(sender=Message)
