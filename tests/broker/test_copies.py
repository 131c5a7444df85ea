"""Copies: what they keep and drop on a real broker, and that whoever replays one from an archive gets it handled."""

import pathlib
import struct
import time
from collections.abc import Iterator

import pika
import pytest
from inputs import Inputs, ended
from peer import Received
from raw import Content, counted, field, number, string

from rpcd.core.tables import split_headers
from rpcd.ops.rabbitmq import PrivateNode

HANDLERS = """
    import pathlib
    import rpcd

    here = pathlib.Path(__file__).parent

    def handle(message):
        what = message.body.get("do")
        if what == "wait":
            raise rpcd.Retry(60)
        if what == "put_off":
            raise rpcd.Nack(60)
        if what is None or what == "return":
            return {}
        healed = (here / message.message_id).exists()
        if not healed and what == "archive":
            raise rpcd.PermanentFailure("not healed yet")
        if not healed and what == "drop":
            raise rpcd.Drop
        if not healed:
            raise ValueError("not healed yet")
        if message.attempt < message.body["attempts"]:
            raise rpcd.Retry
        return {"attempt": message.attempt, "exchange": message.exchange, "key": message.routing_key}
"""

CONSUMER = """
    [queues.{name}]
    type = "{kind}"
    delivery_limit = 2
    bindings = [{{ exchange = "shop", routing_keys = ["{name}.#"] }}]
    [consumers.{name}]
    queue = "{name}"
    handler = "input_handlers:handle"
    on_error = "{on_error}"
    retry = {{ delays = [0.05, 0.1, 60], attempts = 3 }}
"""

QUEUES = ("quorum", "classic", "limited")

CONFIG = "\n    [exchanges.shop]" + "".join(
    CONSUMER.format(
        name=name,
        kind="classic" if name == "classic" else "quorum",
        on_error="requeue" if name == "limited" else "retry",
    )
    for name in QUEUES
)

BOTH = pytest.mark.parametrize("queue", ["quorum", "classic"])

THEIRS = (
    field(b"f", b"d", struct.pack(">d", 1.5))
    + field(b"b", b"b", b"\xff")
    + string(b"\xff\xfe", b"\xff")
    + field(b"t", b"F", counted(string(b"k", b"v")))
    + number(b"once", 1)
)

BROKERS = (
    field(b"x-death", b"A", counted(b"F" + counted(string(b"queue", b"elsewhere") + number(b"count", 3))))
    + string(b"x-first-death-queue", b"elsewhere")
    + string(b"x-last-death-reason", b"expired")
    + number(b"x-delivery-count", 7)
    + field(b"CC", b"A", counted(b""))
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("copies")


@pytest.fixture(scope="module")
def inputs(node: PrivateNode, directory: pathlib.Path) -> Iterator[Inputs]:
    made = Inputs(node, "copies", directory, CONFIG, HANDLERS)
    made.may_raise = True
    yield from ended(made, *QUEUES)


def waiting(inputs: Inputs, queue: str) -> Content:
    """Take the copy that waits in the longest retry step."""
    deadline = time.monotonic() + 30
    while (found := inputs.raw.get(f"{queue}.retry.60000".encode())) is None:
        assert time.monotonic() < deadline, inputs.daemon.output
        time.sleep(0.01)
    return found


def entries(headers: bytes) -> list[bytes]:
    """The entries that are not rpcd's; a quorum queue's own count is the broker's, made when it is read."""
    ours = (b"x-rpcd-", b"x-retry-count", b"x-deadline", b"x-delivery-count")
    return sorted(entry for name, entry in split_headers(headers) if not name.startswith(ours))


@BOTH
@pytest.mark.parametrize("do", ["wait", "put_off", "archive"])
def test_copies_keep_what_identifies_the_request_and_drop_what_steers_the_broker(
    inputs: Inputs, queue: str, do: str
) -> None:
    kept = {
        "content_type": b"application/json",
        "content_encoding": b"utf-8",
        "correlation_id": b"\xff\x00",
        "reply_to": b"amq.gen-nobody",
        "message_id": b"nobody-heals-this",
        "timestamp": (1 << 64) - 1,
        "type": b"order",
        "app_id": b"shop",
    }
    inputs.raw.publish(
        queue.encode(),
        b'{"do": "%b"}' % do.encode(),
        headers=BROKERS + THEIRS,
        expiration=b"3600000",
        priority=7,
        delivery_mode=1,
        **kept,
    )
    copy = inputs.archived(queue) if do == "archive" else waiting(inputs, queue)
    assert entries(copy.headers) == entries(THEIRS)
    assert {name: value for name, value in copy.properties.items() if name != "headers"} == {**kept, "delivery_mode": 2}
    own = dict(split_headers(copy.headers))
    assert own[b"x-retry-count"] == field(b"x-retry-count", b"I", struct.pack(">i", do == "wait"))
    assert own[b"x-rpcd-routing-key"] == string(b"x-rpcd-routing-key", queue.encode())
    (deadline,) = struct.unpack(">d", own[b"x-deadline"][-8:])
    assert time.time() + 3500 < deadline < time.time() + 3600  # the timestamp is nonsense, so it counts from arrival


@BOTH
@pytest.mark.parametrize("ago", [0, 30])
def test_copies_count_a_deadline_from_a_timestamp_that_makes_sense(inputs: Inputs, queue: str, ago: int) -> None:
    sent = int(time.time()) - ago
    inputs.raw.publish(queue.encode(), b'{"do": "wait"}', timestamp=sent, expiration=b"3600000")
    own = dict(split_headers(waiting(inputs, queue).headers))
    assert own[b"x-deadline"] == field(b"x-deadline", b"d", struct.pack(">d", sent + 1 + 3600.0))


def replayed(inputs: Inputs, queue: str, archived: Received) -> None:
    """Publish an archived message as a plain client does that knows nothing of rpcd: with everything that it has."""
    inputs.peer.channel.basic_publish("", queue, archived.body, archived.properties, mandatory=True)


def success(inputs: Inputs, correlation_id: str) -> Received:
    """Wait for the reply of success to a request; it was told of each failure, too."""
    for _ in range(10):
        for reply in inputs.peer.replies():
            assert reply.properties.correlation_id == correlation_id
            if reply.json["success"]:
                return reply
    raise AssertionError("failures only")


DEATHS = [
    ("quorum", "archive"),
    ("classic", "archive"),
    ("quorum", "drop"),
    ("classic", "drop"),
    ("limited", "fail"),
    ("quorum", "fail"),
    ("classic", "fail"),
]


@pytest.mark.parametrize(("queue", "death"), DEATHS)
@pytest.mark.parametrize("healed", ["at once", "after the second death"])
def test_copies_that_died_are_archived_replayed_retried_and_handled(
    inputs: Inputs, directory: pathlib.Path, queue: str, death: str, healed: str
) -> None:
    each = f"{queue}-{death}-{healed.replace(' ', '-')}"
    spent = death == "fail" and queue != "limited"  # the count is kept, so there is no attempt left but the last
    inputs.peer.publish(
        f"{queue}.placed",
        {"do": death, "attempts": 1 if spent else 3},
        exchange="shop",
        message_id=each,
        correlation_id=each,
        reply_to=inputs.peer.reply_queue,
        headers={"tenant": "acme"},
    )
    archived = inputs.peer.get(f"{queue}.archive", 60)
    if healed != "at once":
        replayed(inputs, queue, archived)
        archived = inputs.peer.get(f"{queue}.archive", 60)
    by_broker = death == "drop" or queue == "limited"
    assert ("x-death" in archived.headers) is by_broker
    assert archived.headers["tenant"] == "acme"
    (directory / each).touch()
    replayed(inputs, queue, archived)
    answer = success(inputs, each)
    assert answer.json["data"]["attempt"] == 3
    if not by_broker:  # rpcd's copies remember where the message came from first
        assert (answer.json["data"]["exchange"], answer.json["data"]["key"]) == ("shop", f"{queue}.placed")
    inputs.neighbour(queue)


@BOTH
def test_copies_replayed_with_a_long_history_are_not_taken_for_a_cycle(
    inputs: Inputs, directory: pathlib.Path, queue: str
) -> None:
    """The broker deletes a message that would die in a queue for the second time, if its headers say so."""
    each = f"history-{queue}"
    (directory / each).touch()
    names = (queue, f"{queue}.retry.50", f"{queue}.retry.100", f"{queue}.archive")
    history = [
        {"count": 1, "reason": "expired", "queue": name, "exchange": "", "routing-keys": [name], "time": 0} for name in names
    ]
    properties = pika.BasicProperties(
        message_id=each,
        correlation_id=each,
        reply_to=inputs.peer.reply_queue,
        delivery_mode=2,
        headers={"x-death": history, "x-first-death-queue": names[1], "x-first-death-reason": "expired"},
    )
    inputs.peer.channel.basic_publish("", queue, b'{"do": "fail", "attempts": 3}', properties, mandatory=True)
    assert success(inputs, each).json["data"]["attempt"] == 3
    inputs.neighbour(queue)
