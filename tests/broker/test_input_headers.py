"""Headers and properties that no honest client sends: each costs its own message at most, and is kept as it came."""

import json
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from canary import CANARY
from inputs import Inputs, ended
from proxy import DOWN, Link, Proxy
from raw import Content, RawPeer, Refused, counted, field, number, short, string

from rpcd.core.copies import MAX_HEADERS
from rpcd.core.tables import split_headers
from rpcd.ops.rabbitmq import PrivateNode

HANDLERS = """
    import rpcd

    def handle(message):
        what = message.body
        if what["do"] == "retry" and message.attempt <= what["times"]:
            raise rpcd.Retry
        if what["do"] == "archive":
            raise rpcd.PermanentFailure("as told")
        return {"attempt": message.attempt, "nacks": message.nacks, "headers": sorted(message.headers)}
"""

CONFIG = """
    [queues.quorum]
    [queues.classic]
    type = "classic"
    [consumers.quorum]
    queue = "quorum"
    handler = "input_handlers:handle"
    retry = { delays = [0.05], attempts = 3 }
    [consumers.classic]
    queue = "classic"
    handler = "input_handlers:handle"
    retry = { delays = [0.05], attempts = 3 }
"""

KINDS = ("quorum", "classic")
BOTH = pytest.mark.parametrize("queue", KINDS)

OUR_FAMILIES = (b"x-rpcd-", b"x-retry-count", b"x-deadline", b"x-delivery-count")

MARK = string(b"mark", CANARY.encode())


@pytest.fixture(scope="module")
def inputs(node: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inputs]:
    made = Inputs(node, "input-headers", tmp_path_factory.mktemp("headers"), CONFIG, HANDLERS)
    yield from ended(made, *KINDS)


def body(do: str, **more: object) -> bytes:
    return json.dumps({"do": do, "canary": CANARY, **more}).encode()


def nested(kind: bytes, levels: int) -> bytes:
    """A value of tables or arrays within each other, without its type's letter."""
    value = counted(b"")
    for _ in range(levels):
        value = counted((short(b"k") if kind == b"F" else b"") + kind + value)
    return value


def own_headers(content: Content) -> dict[bytes, bytes]:
    """Names and whole entries; of duplicates the last."""
    return dict(split_headers(content.headers))


def theirs(headers: bytes) -> list[bytes]:
    """The application's entries; the broker sorts them when it adds its own `x-delivery-count`, as quorum queues do."""
    return sorted(entry for name, entry in split_headers(headers) if not name.startswith(OUR_FAMILIES))


def sorts(inputs: Inputs) -> bool:
    """Tell whether the broker sorts headers by name and keeps the first of duplicates, as RabbitMQ does from 4.0 on."""
    return int(inputs.peer.connection._impl.server_properties["version"].split(".")[0]) >= 4


def kept(inputs: Inputs, raw: bytes) -> bytes:
    """The entries of a table as the broker hands them on."""
    first = dict(reversed(list(split_headers(raw))))
    return b"".join(entry for _, entry in sorted(first.items())) if sorts(inputs) else raw


def brokers(content: Content) -> set[bytes]:
    """What the broker's dead-lettering has put there."""
    return {name for name in own_headers(content) if name.startswith((b"x-death", b"x-first-death", b"x-last-death"))}


# Tables that can't be read ------------------------------------------------------------------------

UNREADABLE = {
    "01-a_timestamp_of_2_to_the_63": MARK + field(b"t", b"T", struct.pack(">Q", 1 << 63)),
    "01-the_largest_timestamp": MARK + field(b"t", b"T", b"\xff" * 8),
    "02-a_table_nested_900_deep": MARK + field(b"deep", b"F", nested(b"F", 900)),
    "02-a_table_nested_17_deep": MARK + field(b"deep", b"F", nested(b"F", 16)),
    "03-an_array_nested_900_deep": MARK + field(b"deep", b"A", nested(b"A", 900)),
}


@BOTH
@pytest.mark.parametrize("case", UNREADABLE)
def test_input_01_02_03_headers_that_cannot_be_read_are_archived_as_they_came(inputs: Inputs, queue: str, case: str) -> None:
    raw = UNREADABLE[case]
    inputs.raw.publish(queue.encode(), body("return"), headers=raw, message_id=case.encode())
    found = inputs.archived(queue)
    assert found.body == body("return")
    assert found.properties["message_id"] == case.encode()
    assert own_headers(found)[b"x-rpcd-headers"] == field(b"x-rpcd-headers", b"x", counted(kept(inputs, raw)))
    assert b"bad message: headers: " in own_headers(found)[b"x-rpcd-reason"]
    inputs.neighbour(queue)


@BOTH
def test_input_01_a_request_with_such_headers_is_answered_too(inputs: Inputs, queue: str) -> None:
    inputs.raw.publish(
        queue.encode(),
        body("return"),
        headers=UNREADABLE["01-the_largest_timestamp"],
        reply_to=inputs.peer.reply_queue.encode(),
        correlation_id=b"c",
    )
    (reply,) = inputs.peer.replies()
    assert reply.properties.correlation_id == "c"
    assert reply.json["data"] == {"place": "headers", "reason": "a timestamp is out of range"}
    inputs.archived(queue)
    inputs.neighbour(queue)


UNKNOWN = field(b"wrong", b"Z", b"\x00" * 8)
NO_NUMBER = field(b"wrong", b"d", struct.pack(">d", float("nan")))
INFINITE = field(b"wrong", b"d", struct.pack(">d", float("inf")))


@pytest.mark.parametrize("header", [UNKNOWN, NO_NUMBER, INFINITE], ids=["unknown_type", "not_a_number", "infinity"])
def test_input_04_05_the_broker_cuts_a_publisher_of_what_it_cannot_read_itself(inputs: Inputs, header: bytes) -> None:
    client = RawPeer(inputs.url)
    with pytest.raises(Refused):
        client.publish(b"quorum", body("return"), headers=header)
    client.close()
    inputs.neighbour("quorum")


def test_input_04_an_unknown_field_type_that_arrives_all_the_same_is_archived(
    node: PrivateNode, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory
) -> None:
    honest = string(b"forged-on-the-way", CANARY.encode())
    forged = honest.replace(b"wayS", b"wayZ")

    def tamper(_link: Link, way: str, piece: bytes) -> bytes:
        return piece.replace(honest, forged) if way == DOWN else piece  # a header's frame is in one piece on loopback

    proxy.tamper = tamper
    config = CONFIG.replace("[queues.quorum]", '[queues.quorum]\ntype = "classic"', 1)
    node.add_virtual_hosts(["input-forged"])
    at = proxy.url(node.url("input-forged"))
    inputs = Inputs(node, "input-forged", tmp_path_factory.mktemp("forged"), config, HANDLERS, at)
    for _ in ended(inputs, *KINDS):
        for queue in KINDS:
            inputs.raw.publish(queue.encode(), body("return"), headers=honest)
            found = inputs.archived(queue)
            assert own_headers(found)[b"x-rpcd-headers"] == field(b"x-rpcd-headers", b"x", counted(forged))
            inputs.neighbour(queue)


# Values that must not change ----------------------------------------------------------------------

FAITHFUL = {
    "05-doubles_and_floats": field(b"d", b"d", struct.pack(">d", 1.5)) + field(b"f", b"f", struct.pack(">f", 1.5)),
    "06-small_integers": field(b"b", b"b", b"\xff") + field(b"B", b"B", b"\xff") + field(b"s", b"s", b"\xff\xfe"),
    "06-unsigned_integers": field(b"u", b"u", b"\xff\xfe") + field(b"i", b"i", b"\xff\xff\xff\xff"),
    "06-a_string_that_is_no_utf8": string(b"S", b"\xff\xfe\x00"),
    "06-bytes_and_void": field(b"x", b"x", counted(b"\x00\xff")) + field(b"V", b"V", b""),
    "06-a_decimal": field(b"D", b"D", b"\x02\x00\x00\x00\x07"),
    "07-duplicate_keys": number(b"twice", 1) + string(b"twice", b"two"),
    "09-a_key_that_is_no_utf8": string(b"\xff\xfe", b"v"),
    "09-an_empty_key": string(b"", b"v"),
    "12-a_timestamp_in_a_header": field(b"T", b"T", struct.pack(">Q", 4_000_000_000)),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("case", FAITHFUL)
def test_input_05_06_07_09_headers_are_archived_byte_for_byte(inputs: Inputs, queue: str, case: str) -> None:
    raw = FAITHFUL[case] + MARK
    inputs.raw.publish(queue.encode(), body("archive"), headers=raw)
    assert theirs(inputs.archived(queue).headers) == theirs(kept(inputs, raw))
    inputs.neighbour(queue)


@BOTH
@pytest.mark.parametrize("case", FAITHFUL)
def test_input_05_06_07_09_headers_go_through_a_retry_unchanged(inputs: Inputs, queue: str, case: str) -> None:
    raw = FAITHFUL[case] + MARK
    inputs.raw.publish(queue.encode(), body("retry", times=9), headers=raw)
    found = inputs.archived(queue)
    assert theirs(found.headers) == theirs(kept(inputs, raw))
    assert own_headers(found)[b"x-rpcd-attempt"] == field(b"x-rpcd-attempt", b"I", struct.pack(">i", 3))
    assert brokers(found) == set()
    inputs.neighbour(queue)


# Properties ---------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("correlation_id", [b"\xff\x00\xfe", b"c" * 255, b"", b"a\nb\x1b[31m"])
def test_input_08_11_a_correlation_id_of_any_bytes_is_echoed(inputs: Inputs, queue: str, correlation_id: bytes) -> None:
    client = RawPeer(inputs.url)
    replies = reply_queue(inputs)
    client.publish(queue.encode(), body("return"), correlation_id=correlation_id, reply_to=replies)
    assert reply_of(client, replies).properties["correlation_id"] == correlation_id
    client.close()
    inputs.neighbour(queue)


@BOTH
def test_input_11_a_request_without_a_correlation_id_is_answered_without_one(inputs: Inputs, queue: str) -> None:
    client = RawPeer(inputs.url)
    replies = reply_queue(inputs)
    client.publish(queue.encode(), body("return"), reply_to=replies)
    assert "correlation_id" not in reply_of(client, replies).properties
    client.close()
    inputs.neighbour(queue)


@BOTH
@pytest.mark.parametrize("name", ["content_type", "content_encoding"])
def test_input_08_a_type_or_encoding_that_is_no_utf8_is_not_accepted(inputs: Inputs, queue: str, name: str) -> None:
    inputs.raw.publish(queue.encode(), body("return"), **{name: b"\xff\xfe"})
    found = inputs.archived(queue)
    assert found.properties[name] == b"\xff\xfe"
    assert f"bad message: {name}: ".encode() in own_headers(found)[b"x-rpcd-reason"]
    inputs.neighbour(queue)


@BOTH
@pytest.mark.parametrize("reply_to", [b"amq.gen-x\x00y", b"q\nforged line", b"\xff\xfe", b"x\x1b[2J"])
def test_input_10_a_reply_to_with_control_characters_forges_no_line(inputs: Inputs, queue: str, reply_to: bytes) -> None:
    inputs.raw.publish(queue.encode(), body("return"), reply_to=reply_to, message_id=b"id\nforged id \x1b[2J")
    if reply_to.startswith(b"amq.gen-"):  # a name that the broker could have given: its queue is just not there
        inputs.daemon.wait_for(r"its caller has gone: 312 NO_ROUTE, key amq.gen-x\\x00y")
    else:
        found = inputs.archived(queue)
        assert found.properties["reply_to"] == reply_to
        assert b"reply_to is not allowed here" in own_headers(found)[b"x-rpcd-reason"]
    inputs.neighbour(queue)
    assert not any(line.startswith(("forged", "y")) or "\x1b" in line for line in inputs.daemon.lines)


@BOTH
@pytest.mark.parametrize("timestamp", [1 << 63, (1 << 64) - 1, 0])
@pytest.mark.parametrize("expiration", [None, b"60000", b"4294967295"])
def test_input_12_any_timestamp_is_handled_and_kept(
    inputs: Inputs, queue: str, timestamp: int, expiration: bytes | None
) -> None:
    properties = {"timestamp": timestamp} | ({} if expiration is None else {"expiration": expiration})
    inputs.raw.publish(queue.encode(), body("archive"), **properties)
    found = inputs.archived(queue)
    assert found.properties["timestamp"] == timestamp
    assert "expiration" not in found.properties
    inputs.neighbour(queue)


@BOTH
@pytest.mark.parametrize("size", [100_000, MAX_HEADERS, MAX_HEADERS + 1, 130_000])
@pytest.mark.parametrize("do", ["archive", "retry"])
def test_input_13_headers_that_nearly_fill_a_frame(inputs: Inputs, queue: str, size: int, do: str) -> None:
    raw = string(b"big", CANARY.encode() + b"x" * (size - 9 - len(CANARY)))
    assert len(raw) == size
    inputs.raw.publish(queue.encode(), body(do, times=9), headers=raw, message_id=b"m" * 255, correlation_id=b"c" * 255)
    found = inputs.archived(queue)
    own = own_headers(found)
    if size > MAX_HEADERS:
        assert own[b"x-rpcd-headers-dropped"] == field(b"x-rpcd-headers-dropped", b"I", struct.pack(">i", size))
        assert b"big" not in own
    else:
        assert own[b"big"] == raw
    tried = 3 if do == "retry" and size <= MAX_HEADERS else 1  # what could not be carried on whole is not carried on
    assert own[b"x-rpcd-attempt"] == field(b"x-rpcd-attempt", b"I", struct.pack(">i", tried))
    assert found.body == body(do, times=9)
    inputs.neighbour(queue)


# Forged headers of our own ------------------------------------------------------------------------

FORGED: dict[str, Callable[[bytes], bytes]] = {
    "a_string": lambda name: string(name, b"forged"),
    "the_largest_integer": lambda name: number(name, (1 << 63) - 1),
    "the_smallest_integer": lambda name: number(name, -1 << 63),
    "a_table": lambda name: field(name, b"F", counted(string(b"k", b"v"))),
    "an_array": lambda name: field(name, b"A", counted(b"I\x00\x00\x00\x07")),
    "true": lambda name: field(name, b"t", b"\x01"),
    "void": lambda name: field(name, b"V", b""),
    "the_largest_double": lambda name: field(name, b"d", struct.pack(">d", 1.7e308)),
    "no_utf8": lambda name: string(name, b"\xff"),
}

OURS = (
    b"x-retry-count",
    b"x-rpcd-nacks",
    b"x-deadline",
    b"x-rpcd-copy",
    b"x-rpcd-exchange",
    b"x-rpcd-routing-key",
    b"x-rpcd-attempt",
    b"x-rpcd-reason",
    b"x-rpcd-headers",
    b"x-death",
    b"x-first-death-queue",
    b"x-last-death-reason",
    b"x-delivery-count",
)


@BOTH
@pytest.mark.parametrize("case", FORGED)
def test_input_14_forged_headers_of_ours_are_clamped_or_dropped(inputs: Inputs, queue: str, case: str) -> None:
    names = [
        name for name in OURS if (name, case) != (b"x-deadline", "the_smallest_integer")
    ]  # a sender that gave up long ago
    raw = b"".join(FORGED[case](name) for name in names) + MARK
    inputs.raw.publish(queue.encode(), body("archive"), headers=raw, message_id=b"m")
    found = inputs.archived(queue)
    own = own_headers(found)
    assert own[b"mark"] == MARK
    told = [name for name, _ in split_headers(found.headers)]
    assert len(told) == len(set(told))
    assert brokers(found) == set()
    assert b"x-rpcd-headers" not in own
    count = None if sorts(inputs) else number(b"x-delivery-count", 0)  # the archive's own; from 4.0 on none at first
    assert own.get(b"x-delivery-count") == count
    attempt = 3 if case == "the_largest_integer" else 2 if case == "true" else 1
    assert own[b"x-rpcd-attempt"] == field(b"x-rpcd-attempt", b"I", struct.pack(">i", attempt))
    inputs.neighbour(queue)


@BOTH
@pytest.mark.parametrize("case", FORGED)
def test_input_14_a_forged_retry_still_ends(inputs: Inputs, queue: str, case: str) -> None:
    names = [name for name in OURS if name != b"x-deadline"]
    raw = b"".join(FORGED[case](name) for name in names) + MARK
    inputs.raw.publish(queue.encode(), body("retry", times=9), headers=raw, message_id=b"m")
    own = own_headers(inputs.archived(queue))
    assert own[b"x-rpcd-attempt"] == field(b"x-rpcd-attempt", b"I", struct.pack(">i", 3))
    assert own[b"mark"] == MARK
    inputs.neighbour(queue)


@BOTH
def test_input_14_a_forged_deadline_in_the_past_is_the_senders_own_loss(inputs: Inputs, queue: str) -> None:
    late = f"late-{queue}"
    inputs.raw.publish(
        queue.encode(), body("archive"), headers=number(b"x-deadline", -1 << 63) + MARK, message_id=late.encode()
    )
    inputs.daemon.wait_for(f"deadline passed before it started.* queue={queue} message_id={late}")
    inputs.neighbour(queue)
    assert inputs.peer.left(queue) == []


def test_input_15_the_broker_refuses_a_publisher_that_claims_to_be_somebody_else(inputs: Inputs) -> None:
    client = RawPeer(inputs.url)
    with pytest.raises(Refused):
        client.publish(b"classic", body("archive"), user_id=b"somebody-else")
    client.close()
    inputs.neighbour("classic")


@pytest.mark.parametrize(("name", "value"), [("delivery_mode", 77), ("expiration", b"soon")])
def test_input_16_the_broker_refuses_the_publisher_itself(inputs: Inputs, name: str, value: Any) -> None:
    client = RawPeer(inputs.url)
    try:
        client.publish(b"classic", body("archive"), **{name: value})
    except Refused:
        pass
    else:  # some versions take the one or other as it is
        assert inputs.archived("classic").body == body("archive")
    client.close()
    inputs.neighbour("classic")


@BOTH
def test_input_16_a_copy_never_keeps_what_the_broker_would_act_upon(inputs: Inputs, queue: str) -> None:
    inputs.raw.publish(
        queue.encode(), body("retry", times=9), priority=255, expiration=b"60000", user_id=b"guest", delivery_mode=1
    )
    found = inputs.archived(queue).properties
    assert {"priority", "expiration", "user_id"} & found.keys() == set()
    assert found["delivery_mode"] == 2
    inputs.neighbour(queue)


@BOTH
def test_input_29_priority_255_is_no_harm_and_expiration_0_may_vanish(inputs: Inputs, queue: str) -> None:
    inputs.raw.publish(queue.encode(), body("archive"), priority=255)
    assert inputs.archived(queue).body == body("archive")
    inputs.raw.publish(queue.encode(), body("return"), expiration=b"0")  # given to a consumer at once, or gone
    inputs.neighbour(queue)


def reply_queue(inputs: Inputs) -> bytes:
    """A queue that looks as if the broker had named it, and that a raw client can read."""
    name = "amq_raw.replies"
    inputs.peer.channel.queue_declare(name, durable=True)
    return name.encode()


def reply_of(client: RawPeer, queue: bytes) -> Content:
    deadline = time.monotonic() + 30
    while (found := client.get(queue)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found
