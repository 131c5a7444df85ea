"""What the broker refuses to take: a forbidden exchange, a message that is too big, an archive that is full."""

from collections.abc import Iterator

import pytest
from daemon import StartDaemon
from peer import Peer

from rpcd.ops.rabbitmq import PrivateNode

LIMIT = 20_000
"""Bytes that a message may have on this broker while these tests run."""

HANDLERS = """
    import rpcd

    def handle(message):
        if message.body.get("exchange"):
            message.publish(message.body["exchange"], "k", "x" * message.body.get("size", 0))
            return {"published": True}
        raise rpcd.PermanentFailure("for good")
"""

CONFIG = """
[service]
publish_timeout = 1
[exchanges.vault]
type = "fanout"
[queues.taken]
bindings = [{ exchange = "vault" }]
[queues.work]
delivery_limit = 100
[consumers.work]
queue = "work"
handler = "handlers_of_test:handle"
on_error = "archive"
[queues.neighbour]
[consumers.neighbour]
queue = "neighbour"
handler = "handlers_of_test:handle"
"""


def limit(node: PrivateNode, size: int) -> None:
    """Set the largest message that fresh channels take; RabbitMQ 3.12 and newer keep it in a place of its own."""
    node.ctl(
        "eval", f"application:set_env(rabbit, max_message_size, {size}), persistent_term:put(max_message_size, {size})."
    )


@pytest.fixture
def _small_messages(node: PrivateNode) -> Iterator[None]:
    before = node.ctl("eval", "application:get_env(rabbit, max_message_size).")
    limit(node, LIMIT)
    yield
    limit(node, int(before.strip().removeprefix("{ok,").removesuffix("}")))


def test_a_forbidden_exchange_is_the_handlers_mistake_and_nobody_elses(
    start: StartDaemon, peer: Peer, node: PrivateNode, virtual_host: str
) -> None:
    peer.channel.exchange_declare("forbidden", "fanout", durable=True)
    user = f"limited-{virtual_host}"
    node.ctl("add_user", user, "pw")
    node.ctl("set_permissions", "--vhost", virtual_host, user, ".*", "^(?!forbidden).*", ".*")
    daemon = start(CONFIG, HANDLERS, at=node.url(virtual_host, user, "pw"))
    peer.publish("work", {"exchange": "forbidden"}, message_id="m", correlation_id="c")
    archived = peer.get("work.archive")
    assert archived.json == {"exchange": "forbidden"}
    assert archived.headers["x-rpcd-exception"] == "PublishRefused"
    assert "ACCESS_REFUSED" in archived.headers["x-rpcd-reason"]
    assert "forbidden" in archived.headers["x-rpcd-reason"]
    assert peer.call("neighbour", {"exchange": "vault"}).json["data"] == {"published": True}
    assert peer.get("taken").body == b'""'
    assert daemon.stop() == 0


@pytest.mark.usefixtures("_small_messages")
def test_a_publication_that_is_too_big_is_refused_alone(start: StartDaemon, peer: Peer) -> None:
    daemon = start(CONFIG, HANDLERS)
    peer.publish("work", {"exchange": "vault", "size": 2 * LIMIT})
    archived = peer.get("work.archive")
    assert archived.headers["x-rpcd-exception"] == "PublishRefused"
    assert "max size" in archived.headers["x-rpcd-reason"]
    assert peer.call("neighbour", {"exchange": "vault"}).json["data"] == {"published": True}
    assert [message.body for message in peer.take("taken", 1)] == [b'""']
    assert daemon.stop() == 0
