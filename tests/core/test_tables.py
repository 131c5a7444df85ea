import datetime as dt
import decimal
import functools
import math
import struct
from typing import Any

import pika.data
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from labels import label

from rpcd.core.tables import (
    MAX_DEPTH,
    Headers,
    header,
    join_headers,
    read_headers,
    short,
    split_headers,
    table,
    text,
)

PROPERTY = settings(max_examples=30, deadline=None)

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
DECIMALS = st.builds(
    lambda scaled, places: decimal.Decimal(scaled).scaleb(-places), st.integers(-(10**9), 10**9), st.integers(0, 9)
)
TIMES = st.datetimes(dt.datetime(1970, 1, 2), dt.datetime(2100, 1, 1)).map(  # noqa: DTZ001
    lambda time: time.replace(microsecond=0, tzinfo=dt.timezone.utc)
)
EXACT = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.binary(max_size=12)
    | DECIMALS
    | TIMES
)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    values = st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
    )
    return st.dictionaries(NAMES, values, max_size=5)


TABLES = nested(EXACT | st.floats(allow_nan=False))
PIKA_TABLES = nested(EXACT)  # pika can't write floats, and reads them as integers


def framed(entries: bytes) -> bytes:
    return struct.pack(">I", len(entries)) + entries


def read(entries: bytes) -> Headers:
    """Read a table that lies between other properties, as it does in a frame."""
    headers, end = read_headers(b"before" + framed(entries) + b"behind, where a cut table must not read on", 6)
    assert end == 6 + 4 + len(entries)
    assert headers.raw == entries
    return headers


def entry(name: bytes, kind: bytes, data: bytes = b"") -> bytes:
    return bytes((len(name),)) + name + kind + data


def deep(kind: bytes, levels: int) -> bytes:
    """Build tables or arrays within each other, `levels` of them."""
    inner = b""
    for _ in range(levels):
        inner = kind + framed(inner)
        if kind == b"F":
            inner = b"\x01k" + inner
    return inner if kind == b"F" else b"\x01k" + inner


# Reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data", "value"),
    [
        (b"t", b"\x01", True),
        (b"t", b"\x00", False),
        (b"t", b"\x07", True),
        (b"b", b"\xff", -1),
        (b"B", b"\xff", 255),
        (b"s", b"\xff\xfe", -2),
        (b"U", b"\xff\xfe", -2),
        (b"u", b"\xff\xfe", 65534),
        (b"I", b"\xff\xff\xff\xff", -1),
        (b"i", b"\xff\xff\xff\xff", 2**32 - 1),
        (b"l", b"\xff" * 8, -1),
        (b"L", b"\xff" * 8, -1),
        (b"f", struct.pack(">f", 1.5), 1.5),
        (b"d", struct.pack(">d", 1.5), 1.5),
        (b"D", b"\x02\x00\x00\x00\x7d", decimal.Decimal("1.25")),
        (b"D", b"\xff\xff\xff\xff\xff", decimal.Decimal("-1E-255")),
        (b"S", framed(b"\xc3\xa4"), "ä"),
        (b"S", framed(b"\xff"), b"\xff"),
        (b"S", framed(b""), ""),
        (b"x", framed(b"a"), b"a"),
        (b"T", struct.pack(">Q", 0), dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)),
        (b"V", b"", None),
        (b"A", framed(b"t\x01V"), [True, None]),
        (b"A", framed(b""), []),
        (b"F", framed(b"\x01at\x01"), {"a": True}),
        (b"F", framed(b""), {}),
    ],
)
def test_every_field_type_is_read(kind: bytes, data: bytes, value: Any) -> None:
    headers = read(entry(b"k", kind, data))
    assert (dict(headers), headers.fault) == ({"k": value}, None)
    assert type(headers["k"]) is type(value)


def test_an_empty_table_has_no_entries_and_no_fault() -> None:
    headers = read(b"")
    assert (dict(headers), headers.fault) == ({}, None)


def test_of_duplicate_names_the_last_counts_and_the_bytes_keep_both() -> None:
    raw = entry(b"k", b"t", b"\x00") + entry(b"k", b"t", b"\x01")
    assert (dict(read(raw)), read(raw).raw) == ({"k": True}, raw)


def test_a_name_that_is_no_utf8_cannot_be_asked_for_and_stays_in_the_bytes() -> None:
    raw = entry(b"\xff", b"t", b"\x01") + entry(b"k", b"V")
    headers = read(raw)
    assert (dict(headers), headers.fault, headers.raw) == ({"k": None}, None, raw)


def test_an_empty_name_is_a_name() -> None:
    assert dict(read(entry(b"", b"t", b"\x01"))) == {"": True}


@pytest.mark.parametrize("kind", [b"F", b"A"])
def test_sixteen_levels_are_read(kind: bytes) -> None:
    assert read(deep(kind, MAX_DEPTH - 1)).fault is None


@pytest.mark.parametrize("kind", [b"F", b"A"])
@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 900, 5000])
def test_deeper_nesting_is_a_fault_and_no_crash(kind: bytes, levels: int) -> None:
    headers = read(deep(kind, levels))
    assert (dict(headers), headers.fault) == ({}, "headers are nested deeper than 16")


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        (entry(b"k", b"T", struct.pack(">Q", 2**63)), "a timestamp is out of range"),
        (entry(b"k", b"T", struct.pack(">Q", 2**64 - 1)), "a timestamp is out of range"),
        (entry(b"k", b"T", struct.pack(">Q", 253402300800)), "a timestamp is out of range"),
        (entry(b"k", b"Z"), "field type 'Z' is unknown"),
        (entry(b"k", b"\xff"), "field type 'ÿ' is unknown"),
        (entry(b"k", b"S", struct.pack(">I", 2**32 - 1)), "a field is longer than its table"),
        (entry(b"k", b"A", framed(b"S" + struct.pack(">I", 5))), "a field is longer than its table"),
    ],
)
def test_what_cannot_be_read_leaves_an_empty_table_that_says_why(entries: bytes, fault: str) -> None:
    headers = read(entry(b"good", b"t", b"\x01") + entries)
    assert (dict(headers), headers.fault) == ({}, fault)


@pytest.mark.parametrize(
    "entries",
    [
        b"\x01kI\x00\x00",
        b"\x01kI",
        b"\x01k",
        b"\x01",
        b"\x09k",
        b"\x01kS\x00\x00",
        b"\x01kT" + b"\x00" * 7,
        b"\x01kA\x00\x00\x00\x02I\x00",
        b"\x01kF\x00\x00\x00\x02\x01k",
    ],
)
def test_a_cut_table_is_a_fault_and_never_reads_on_into_what_follows(entries: bytes) -> None:
    headers = read(entries)
    assert dict(headers) == {}
    assert headers.fault is not None


def test_a_size_beyond_the_end_of_the_frame_raises_nothing() -> None:
    headers, end = read_headers(struct.pack(">I", 2**32 - 1) + entry(b"k", b"t", b"\x01"), 0)
    assert (dict(headers), headers.raw, end) == ({"k": True}, entry(b"k", b"t", b"\x01"), 2**32 + 3)


@PROPERTY
@given(st.binary(min_size=4, max_size=60), st.binary(max_size=10))
@example(b"\x00\x00\x00\x08\x01kT" + b"\xff" * 8, b"")
def test_arbitrary_bytes_never_raise_anything(encoded: bytes, more: bytes) -> None:
    headers, _ = read_headers(encoded + more, 0)
    assert headers.fault is None or not headers


@PROPERTY
@given(st.binary(max_size=40))
@example(b"\x01kI\x00\x00")
@example(b"\x01kS\x00\x00\x00\x05abc")
def test_headers_without_a_fault_can_always_be_copied(entries: bytes) -> None:
    if read(entries).fault is None:
        assert join_headers(part for _, part in split_headers(entries)) == entries


@PROPERTY
@given(TABLES, st.data())
def test_a_table_with_one_byte_changed_is_read_or_has_a_fault(values: dict[str, Any], data: st.DataObject) -> None:
    raw = bytearray(table(values))
    assume(raw)
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    headers = read(bytes(raw))
    assert headers.fault is None or not headers


# Splitting ----------------------------------------------------------------------------------------


def test_headers_are_split_without_looking_at_their_values() -> None:
    entries = [entry(b"a", b"T", b"\xff" * 8), entry(b"\xff", b"S", framed(b"\xff")), deep(b"F", 900)]
    assert list(split_headers(b"".join(entries))) == [(b"a", entries[0]), (b"\xff", entries[1]), (b"k", entries[2])]


@pytest.mark.parametrize(
    "raw",
    [
        b"\x01",
        b"\x01k",
        b"\x05k",
        b"\x01kI\x00",
        b"\x01kS\x00\x00\x00",
        b"\x01kS\x00\x00\x00\x05abc",
        b"\x01kF\xff\xff\xff\xff",
        b"\x01kZ",
    ],
)
def test_splitting_a_cut_table_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"cut|longer|unknown"):
        list(split_headers(raw))


@PROPERTY
@given(TABLES)
def test_split_headers_joined_again_are_the_same_bytes(values: dict[str, Any]) -> None:
    raw = table(values)
    names, entries = zip(*split_headers(raw), strict=True) if raw else ((), ())
    assert [name.decode() for name in names] == list(values)
    assert join_headers(entries) == raw


@PROPERTY
@given(st.binary(max_size=40))
def test_splitting_arbitrary_bytes_gives_them_back_or_is_a_value_error(raw: bytes) -> None:
    try:
        entries = [part for _, part in split_headers(raw)]
    except ValueError:
        return
    assert join_headers(entries) == raw


# Writing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (True, b"t\x01"),
        (False, b"t\x00"),
        (0, b"I\x00\x00\x00\x00"),
        (2**31 - 1, b"I\x7f\xff\xff\xff"),
        (2**31, b"l\x00\x00\x00\x00\x80\x00\x00\x00"),
        (-(2**31), b"I\x80\x00\x00\x00"),
        (-(2**63), b"l\x80" + b"\x00" * 7),
        (1.5, b"d" + struct.pack(">d", 1.5)),
        ("ä", b"S\x00\x00\x00\x02\xc3\xa4"),
        (b"\xff", b"x\x00\x00\x00\x01\xff"),
        (None, b"V"),
        (decimal.Decimal("1.25"), b"D\x02\x00\x00\x00\x7d"),
        (decimal.Decimal("1E+3"), b"D\x00\x00\x00\x03\xe8"),
        (decimal.Decimal("-0.5"), b"D\x01\xff\xff\xff\xfb"),
        (dt.datetime(1970, 1, 1, 0, 0, 9, tzinfo=dt.timezone.utc), b"T" + struct.pack(">Q", 9)),
        (dt.datetime(1960, 1, 1, tzinfo=dt.timezone.utc), b"T" + struct.pack(">Q", 0)),
        ([True, None], b"A\x00\x00\x00\x03t\x01V"),
        ((True,), b"A\x00\x00\x00\x02t\x01"),
        ({"a": True}, b"F\x00\x00\x00\x04\x01at\x01"),
        (Headers(), b"F\x00\x00\x00\x00"),
    ],
)
def test_every_python_type_has_its_amqp_type(value: Any, encoded: bytes) -> None:
    assert header("k", value) == b"\x01k" + encoded


@pytest.mark.parametrize(
    "value",
    [
        2**63,
        -(2**63) - 1,
        decimal.Decimal("NaN"),
        decimal.Decimal("Infinity"),
        decimal.Decimal(2**31),
        decimal.Decimal("1E-256"),
        decimal.Decimal("0.0000000001") * 2**31,
        decimal.Decimal("1E-10000000"),
        "\ud800",
        {"\ud800": 1},
        {"k" * 256: 1},
        [2**63],
        {"a": {"b": 2**63}},
    ],
    ids=repr,
)
def test_a_value_that_does_not_fit_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        header("k", value)


@pytest.mark.parametrize(
    "value", [{1}, object(), dt.date(2020, 1, 1), 1j, bytearray(b"a"), [object()], {"a": {1}}], ids=label
)
def test_a_type_that_amqp_does_not_know_is_a_type_error_that_names_the_header(value: Any) -> None:
    with pytest.raises(TypeError, match=r"header '\w': AMQP has no type for"):
        header("k", value)


def test_an_error_shows_the_headers_name_and_never_its_value() -> None:
    with pytest.raises(ValueError, match=r"header 'k'") as caught:
        header("k", 987654321987654321987654321)
    assert "98765" not in str(caught.value)


@pytest.mark.parametrize("name", [1, None, ("k",)])
def test_a_name_is_a_short_string(name: Any) -> None:
    with pytest.raises(TypeError):
        header(name, 1)


@pytest.mark.parametrize("form", [lambda inner: {"k": inner}, lambda inner: [inner]])
def test_a_value_that_contains_itself_is_a_value_error(form: Any) -> None:
    value: Any = form(1)
    if isinstance(value, dict):
        value["k"] = value
    else:
        value[0] = value
    with pytest.raises(ValueError, match="nested deeper than 16"):
        header("k", value)


@pytest.mark.parametrize("levels", range(14, 18))
@pytest.mark.parametrize("form", [lambda inner: {"k": inner}, lambda inner: [inner]], ids=["tables", "arrays"])
@pytest.mark.parametrize("leaf", ["leaf", {}, []])
def test_whatever_depth_can_be_written_can_be_read(form: Any, leaf: Any, levels: int) -> None:
    value = functools.reduce(lambda inner, _: form(inner), range(levels), leaf)
    try:
        raw = header("k", value)
    except ValueError:
        return
    assert dict(read(raw)) == {"k": value}


@PROPERTY
@given(TABLES)
def test_what_is_written_is_read_as_it_was(values: dict[str, Any]) -> None:
    headers = read(table(values))
    assert (dict(headers), headers.fault) == (values, None)


@PROPERTY
@given(PIKA_TABLES)
def test_what_is_written_is_read_by_pika_as_it_was(values: dict[str, Any]) -> None:
    encoded = framed(table(values))
    assert pika.data.decode_table(encoded, 0) == (values, len(encoded))


@PROPERTY
@given(PIKA_TABLES)
def test_what_pika_writes_is_read_as_it_was(values: dict[str, Any]) -> None:
    pieces: list[bytes] = []
    pika.data.encode_table(pieces, values)
    encoded = b"".join(pieces)
    headers, end = read_headers(encoded, 0)
    assert (dict(headers), headers.fault, end) == (values, None, len(encoded))


@PROPERTY
@given(st.floats())
def test_floats_are_kept_to_the_last_bit(value: float) -> None:
    found = read(table({"k": value}))["k"]
    assert struct.pack(">d", found) == struct.pack(">d", value) or (math.isnan(found) and math.isnan(value))


# Short strings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "encoded"),
    [("", b"\x00"), ("ä", b"\x02\xc3\xa4"), (b"\xff", b"\x01\xff"), ("x" * 255, b"\xff" + b"x" * 255)],
)
def test_a_short_string_has_its_length_in_front(value: str | bytes, encoded: bytes) -> None:
    assert short(value) == encoded


@pytest.mark.parametrize("value", ["x" * 256, b"x" * 256, "ä" * 128])
def test_a_short_string_over_255_bytes_is_refused_by_its_name(value: str | bytes) -> None:
    with pytest.raises(ValueError, match="the routing key has 256 bytes; AMQP allows 255"):
        short(value, "the routing key")


@PROPERTY
@given(st.binary(max_size=255))
def test_text_that_is_no_utf8_stays_bytes_and_is_echoed_unchanged(value: bytes) -> None:
    found = text(value)
    assert short(found)[1:] == value
    assert isinstance(found, str) == (value.decode(errors="ignore").encode() == value)
