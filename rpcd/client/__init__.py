"""Asking rpcd's services, and publishing, from any other Python program.

`rpcd.Client` blocks or returns futures, `rpcd.AsyncClient` is awaited on an asyncio loop, `rpcd.TwistedClient` returns
Deferreds. All three have the same engine: one connection, kept by a thread of its own.
"""

from rpcd.client.asynchronous import AsyncClient
from rpcd.client.blocking import Client
from rpcd.client.deferring import TwistedClient

__all__ = ["AsyncClient", "Client", "TwistedClient"]
