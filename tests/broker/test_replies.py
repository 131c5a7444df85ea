"""The reply contract: forms, ways, and correlation ids of any kind."""

from daemon import StartDaemon
from peer import Peer

HANDLERS = """
    import rpcd

    def echo(message):
        if message.body == "fail":
            raise rpcd.RequestFailed("no")
        return message.body

    def raw(message):
        return message.payload[::-1]
"""


def test_a_plain_reply_is_the_bare_value(start: StartDaemon, peer: Peer) -> None:
    start(
        """
        [queues.plain]
        [consumers.plain]
        queue = "plain"
        handler = "handlers_of_test:echo"
        reply = "plain"
        [queues.raw]
        [consumers.raw]
        queue = "raw"
        handler = "handlers_of_test:raw"
        reply = "plain"
        accept = ["application/octet-stream"]
        """,
        HANDLERS,
    )
    assert peer.call("plain", [1, "tea"]).body == b'[1,"tea"]'
    assert peer.call("plain", "fail").json == {"success": False, "data": {}, "message": "no"}
    reply = peer.call("raw", b"\x00\xff")
    assert (reply.body, reply.properties.content_type) == (b"\xff\x00", "application/octet-stream")


def test_reply_none_never_answers(start: StartDaemon, peer: Peer) -> None:
    start(
        """
        [queues.silent]
        [consumers.silent]
        queue = "silent"
        handler = "handlers_of_test:echo"
        reply = "none"
        [queues.loud]
        [consumers.loud]
        queue = "loud"
        handler = "handlers_of_test:echo"
        """,
        HANDLERS,
    )
    for body in ("fail", b"{bad", 17):
        peer.publish("silent", body, reply_to=peer.reply_queue)
    assert peer.get("silent.archive").body == b"{bad"
    peer.call("loud", {"the": "only reply"})


def test_replies_go_through_the_requests_own_exchange_when_told_so(start: StartDaemon, peer: Peer) -> None:
    start(
        """
        [exchanges.rpc]
        type = "direct"
        [queues.node1]
        bindings = [{ exchange = "rpc", routing_keys = ["node1"] }]
        [consumers.node1]
        queue = "node1"
        handler = "handlers_of_test:echo"
        reply_via = "request-exchange"
        [consumers.node1.retry]
        delays = [0.1]
        """,
        HANDLERS,
    )
    peer.channel.queue_bind(peer.reply_queue, "rpc", peer.reply_queue)
    reply = peer.call("node1", {"a": 1}, exchange="rpc")
    assert reply.json["data"] == {"a": 1}
    assert reply.method.exchange == "rpc"


def test_a_queue_that_is_allowed_by_name_is_answered(start: StartDaemon, peer: Peer) -> None:
    start(
        """
        [queues.work]
        [consumers.work]
        queue = "work"
        handler = "handlers_of_test:echo"
        reply_to_allowed = ["replies.*"]
        """,
        HANDLERS,
    )
    peer.channel.queue_declare("replies.shop", durable=True)
    peer.publish("work", {"a": 1}, reply_to="replies.shop")
    assert peer.get("replies.shop").json["data"] == {"a": 1}


def test_text_and_raw_bodies_are_opened_as_what_they_are(start: StartDaemon, peer: Peer) -> None:
    start(
        """
        [queues.any]
        [consumers.any]
        queue = "any"
        handler = "handlers_of_test:kinds"
        accept = ["application/json", "text/plain", "application/octet-stream"]
        """,
        """
        def kinds(message):
            return {"type": type(message.body).__name__, "length": len(message.body)}
        """,
    )
    assert peer.call("any", "grüße".encode(), content_type="text/plain").json["data"] == {"type": "str", "length": 5}
    raw = peer.call("any", b"\x00\x01", content_type="application/octet-stream").json
    assert raw["data"] == {"type": "bytes", "length": 2}
    json = peer.call("any", [1, 2, 3], content_type="application/json; charset=UTF-8").json
    assert json["data"] == {"type": "list", "length": 3}
    bad = peer.call("any", b"\xff", content_type="text/plain").json
    assert bad["data"] == {"place": "body", "reason": "not UTF-8 (byte 0)"}


def test_typed_bodies_are_checked_and_never_quoted(start: StartDaemon, peer: Peer) -> None:
    start(
        """
        [queues.orders]
        [consumers.orders]
        queue = "orders"
        handler = "handlers_of_test:order"
        """,
        """
        import dataclasses
        import rpcd

        @dataclasses.dataclass
        class Order:
            customer: str
            items: list[str]

        def order(message: rpcd.Message[Order]):
            return {"customer": message.body.customer, "count": len(message.body.items)}
        """,
    )
    assert peer.call("orders", {"customer": "ada", "items": ["tea"]}).json["data"] == {"customer": "ada", "count": 1}
    wrong = peer.call("orders", {"customer": "ada", "items": ["tea", 4711]}).json
    assert wrong["data"] == {"place": "body.items[1]", "reason": "Expected `str`, got `int`"}
    assert b"4711" in peer.get("orders.archive").body
