"""A private RabbitMQ node for tests, with a virtual host for each."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from rpcd.ops.rabbitmq import NodeError, PrivateNode

__all__ = ["Node", "NodeError"]

BATCH = 10
"""Virtual hosts made at a time: it takes half a second however many they are."""


class Node:
    """A node that runs until it is stopped."""

    def __init__(self, directory: Path) -> None:
        """Start it in an empty directory; raise NodeError if it can't be, which says what to install."""
        self._node = PrivateNode(directory)
        self._node.start()
        self._names = self._made()

    def _made(self) -> Iterator[str]:
        numbers = itertools.count(1)
        while True:
            batch = [f"test{next(numbers)}" for _ in range(BATCH)]
            self._node.add_virtual_hosts(batch)
            yield from batch

    @property
    def url(self) -> str:
        """The URL of its default virtual host, which all tests share."""
        return self._node.url()

    def fresh_url(self) -> str:
        """Return the URL of a virtual host that nobody has used."""
        return self._node.url(next(self._names))

    def stop(self) -> None:
        """End the node and all that it has started."""
        self._node.stop()
