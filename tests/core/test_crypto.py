import base64
import json
from typing import Any

import pytest
from cryptography.fernet import Fernet
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcd.core.crypto import EXPIRED, FROM_FUTURE, SKEW, UNREADABLE, Keyring
from rpcd.core.errors import BadValue

PROPERTY = settings(max_examples=100, deadline=None)

NOW = 1_700_000_000.0
OLD, NEW, OTHER = (Fernet.generate_key().decode() for _ in range(3))
RING = Keyring([NEW, OLD])


def token(value: bytes = b"correct-horse", key: str = NEW, now: float = NOW) -> str:
    return Fernet(key).encrypt_at_time(value, int(now)).decode()


@pytest.mark.parametrize("key", [NEW, OLD], ids=["new", "old"])
@pytest.mark.parametrize("value", [b"", b"x", b"correct-horse", b"\x00\xff", b"x" * 100_000], ids=len)
def test_every_key_opens_what_it_has_sealed(key: str, value: bytes) -> None:
    sealed = token(value, key)
    assert RING.open(sealed) == value
    assert RING.open(sealed.encode()) == value


def test_the_newest_key_seals() -> None:
    sealed = RING.seal(b"x", NOW)
    assert Fernet(NEW).decrypt(sealed) == b"x"
    assert Fernet(NEW).extract_timestamp(sealed) == NOW


def altered(text: str, index: int) -> str:
    return text[:index] + ("A" if text[index] != "A" else "B") + text[index + 1 :]


TOKEN = next(each for each in (token(bytes(60)) for _ in range(1000)) if "-" in each or "_" in each)

REFUSED: list[Any] = [
    "",
    " ",
    "=",
    "correct-horse",
    TOKEN[:-1],
    TOKEN[:20],
    TOKEN[:100],
    TOKEN + "A",
    TOKEN + "\n",
    " " + TOKEN,
    TOKEN[:10] + "!" + TOKEN[10:],
    TOKEN[:10] + "\n" + TOKEN[10:],
    TOKEN.replace("-", "+").replace("_", "/"),
    TOKEN.rstrip("=") + "é",
    TOKEN + "\ud800",
    TOKEN[::-1],
    altered(TOKEN, 0),
    altered(TOKEN, 14),
    altered(TOKEN, 60),
    altered(TOKEN, len(TOKEN) - 8),
    token(key=OTHER),
    "g" * 1_000_000,
    TOKEN * 1000,
    base64.b64encode(b"\x80" + bytes(8)).decode(),
    base64.b64encode(b"\x80" + bytes(100)).decode(),
    None,
    True,
    5,
    1.5,
    [],
    [TOKEN],
    {},
    {"token": TOKEN},
    bytearray(TOKEN.encode()),
    TOKEN.encode()[:-1],
    b"\xff" * 100,
]


@pytest.mark.parametrize("value", REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_token_is_refused_in_one_way(value: Any) -> None:
    for ring in (RING, Keyring([NEW], 60)):
        with pytest.raises(BadValue) as refused:
            ring.open(value, NOW)
        assert str(refused.value) == UNREADABLE
        assert refused.value.__cause__ is None
        assert refused.value.__suppress_context__ or refused.value.__context__ is None
        with pytest.raises(BadValue):
            ring.rotate(value)


@PROPERTY
@given(st.binary(max_size=300) | st.text(max_size=300))
def test_nothing_made_without_a_key_is_opened(value: bytes | str) -> None:
    with pytest.raises(BadValue):
        RING.open(value)


@PROPERTY
@given(st.binary(max_size=200), st.integers(0, 10**6), st.integers(1, 255))
def test_no_altered_token_is_opened(value: bytes, place: int, by: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(RING.seal(value, NOW)))
    raw[place % len(raw)] ^= by
    with pytest.raises(BadValue):
        RING.open(base64.urlsafe_b64encode(bytes(raw)))


@pytest.mark.parametrize(
    ("age", "refused"),
    [
        (0, None),
        (299, None),
        (300, None),
        (300.9, None),
        (301, EXPIRED),
        (10**9, EXPIRED),
        (-SKEW, None),
        (-SKEW - 1, FROM_FUTURE),
        (-(10**9), FROM_FUTURE),
    ],
)
def test_with_a_ttl_a_token_is_good_from_a_minute_before_its_time_until_it_is_too_old(
    age: float, refused: str | None
) -> None:
    ring, sealed = Keyring([NEW], 300), token()
    if refused is None:
        assert ring.open(sealed, NOW + age) == b"correct-horse"
        return
    with pytest.raises(BadValue, match=r".") as error:
        ring.open(sealed, NOW + age)
    assert str(error.value) == refused
    assert RING.open(sealed, NOW + age) == b"correct-horse"  # without a ttl any age is right


def test_only_whoever_has_a_key_learns_that_a_token_is_too_old() -> None:
    with pytest.raises(BadValue) as error:
        Keyring([NEW], 300).open(token(key=OTHER), NOW + 10**6)
    assert str(error.value) == UNREADABLE


def test_rotating_seals_under_the_newest_key_and_keeps_the_age() -> None:
    rotated = RING.rotate(token(key=OLD, now=NOW - 1000))
    assert Fernet(NEW).decrypt(rotated) == b"correct-horse"
    assert Fernet(NEW).extract_timestamp(rotated) == NOW - 1000


# When a message came for the first time -----------------------------------------------------------


def test_a_first_arrival_is_believed_if_one_of_the_keys_has_signed_it() -> None:
    mark = Keyring([OLD]).mark(NOW + 0.5, b"payload")
    assert RING.arrival(mark, b"payload") == NOW + 0.5
    assert mark.startswith("1700000000.500 ")


FORGED: list[Any] = [
    None,
    5,
    b"1700000000.000",
    "",
    " ",
    "1700000000.000",
    "1700000000.000 " + "0" * 64,
    "é é",
    Keyring([OTHER]).mark(NOW, b"payload"),
    RING.mark(NOW, b"another payload"),
    "1600000000.000 " + RING.mark(NOW, b"payload").partition(" ")[2],
    RING.mark(NOW, b"payload") + "0",
    json.dumps(NOW),
]


@pytest.mark.parametrize("mark", FORGED, ids=range(len(FORGED)))
def test_a_forged_first_arrival_is_not_believed(mark: Any) -> None:
    assert RING.arrival(mark, b"payload") is None
