"""A second program with plain pika asks the real daemon a thousand times; every request gets its own right reply."""

import json

import pika
import pytest
from daemon import StartDaemon
from peer import SECONDS, Peer

CONFIG = """
[queues.square]
type = "{type}"
[consumers.square]
queue = "square"
handler = "handlers_of_test:square"
workers = 8
reply_confirm = {confirm}
"""

HANDLERS = """
    def square(message):
        return {"number": message.body["n"], "square": message.body["n"] ** 2}
"""

REQUESTS = 1000


def right(number: int, body: bytes) -> bool:
    return json.loads(body) == {"success": True, "data": {"number": number, "square": number**2}, "message": None}


@pytest.mark.parametrize(("kind", "confirm"), [("quorum", "false"), ("classic", "false"), ("quorum", "true")])
def test_a_thousand_requests_to_an_exclusive_reply_queue(start: StartDaemon, peer: Peer, kind: str, confirm: str) -> None:
    daemon = start(CONFIG.format(type=kind, confirm=confirm), HANDLERS)
    for number in range(REQUESTS):
        peer.publish("square", {"n": number}, reply_to=peer.reply_queue, correlation_id=f"n{number}")
    replies = peer.replies(REQUESTS)
    assert sorted(int(reply.properties.correlation_id[1:]) for reply in replies) == list(range(REQUESTS))
    assert all(right(int(reply.properties.correlation_id[1:]), reply.body) for reply in replies)
    assert daemon.stop() == 0
    assert peer.left("square") == []
    assert peer.left("square.archive") == []


def test_a_thousand_requests_by_direct_reply_to(start: StartDaemon, url: str) -> None:
    daemon = start(CONFIG.format(type="quorum", confirm="false"), HANDLERS)
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    replies: dict[str, bytes] = {}
    channel.basic_consume(
        "amq.rabbitmq.reply-to",
        lambda _channel, _method, properties, body: replies.__setitem__(properties.correlation_id, body),
        auto_ack=True,
    )
    for number in range(REQUESTS):
        properties = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id=str(number))
        channel.basic_publish("", "square", json.dumps({"n": number}).encode(), properties)
    while len(replies) < REQUESTS:
        before = len(replies)
        connection.process_data_events(SECONDS)
        assert len(replies) > before, f"only {before} replies came"
    assert all(right(int(number), body) for number, body in replies.items())
    connection.close()
    assert daemon.stop() == 0
    assert "came back" not in daemon.output  # mandatory direct replies would be returned although they arrive


def test_a_caller_that_has_gone_costs_nothing_but_its_reply(start: StartDaemon, peer: Peer, url: str) -> None:
    daemon = start(CONFIG.format(type="quorum", confirm="false"), HANDLERS)
    gone = Peer(url)
    name = gone.reply_queue
    gone.close()
    peer.publish("square", {"n": 3}, reply_to=name, correlation_id="lost")
    (line,) = daemon.wait_for("a reply came back, its caller has gone")
    assert "correlation_id=lost" in line
    assert right(4, peer.call("square", {"n": 4}).body)
    assert daemon.stop() == 0
    assert peer.left("square") == []
