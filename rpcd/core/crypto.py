"""Opening and sealing Fernet tokens with several keys, newest first; the time is an argument.

A token is taken in its one written form only: Fernet itself skips over characters that are not base64. Tokens are not bound
to their field or their message: one that is moved elsewhere is opened there. See github.com/fernet/spec.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from rpcd.core.errors import BadValue

SKEW = 60
"""How many seconds a sender's clock may be ahead of ours."""

UNREADABLE = "cannot be decrypted"
EXPIRED = "cannot be decrypted: the token has expired"
FROM_FUTURE = "cannot be decrypted: the token is from the future (is the sender's clock right?)"

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_STAMP = slice(1, 9)
_STAMP_CHARACTERS = 12


class Keyring:
    """Fernet keys, newest first: the first one seals, all of them open. Any thread may use it."""

    def __init__(self, keys: Sequence[str], ttl: float | None = None) -> None:
        """Take the keys, and how many seconds old a token may be when its message arrives for the first time."""
        self.ttl = ttl
        self._fernets = MultiFernet([Fernet(key) for key in keys])
        self._marks = [hashlib.sha256(b"rpcd first arrival " + base64.urlsafe_b64decode(key)).digest() for key in keys]

    def open(self, token: Any, arrived: float | None = None) -> bytes:
        """Decrypt a token (text or bytes); raise BadValue for whatever is none, and for one that is out of its time.

        `arrived` is when the message came for the first time, in seconds since the epoch; None leaves the age alone.
        """
        written = _written(token)
        try:
            value = self._fernets.decrypt(written)
        except InvalidToken:
            raise BadValue(UNREADABLE) from None
        if self.ttl is not None and arrived is not None:
            _check_age(written, self.ttl, arrived)
        return value

    def seal(self, value: bytes, now: float) -> str:
        """Encrypt under the newest key; `now` is in seconds since the epoch."""
        return self._fernets.encrypt_at_time(value, int(now)).decode()

    def rotate(self, token: Any) -> str:
        """Encrypt what a token holds under the newest key; it stays as old as it is. Raise BadValue if it is none."""
        try:
            return self._fernets.rotate(_written(token)).decode()
        except InvalidToken:
            raise BadValue(UNREADABLE) from None

    def mark(self, arrived: float, payload: bytes) -> str:
        """Write down when a message arrived for the first time, so that nobody without a key can say otherwise."""
        when = f"{arrived:.3f}"
        return f"{when} {_signed(self._marks[0], when, payload)}"

    def arrival(self, mark: Any, payload: bytes) -> float | None:
        """Return what `mark` wrote down for the same bytes, or None if it was somebody else."""
        if not isinstance(mark, str) or not mark.isascii():
            return None
        when, _, signature = mark.partition(" ")
        if any(hmac.compare_digest(_signed(key, when, payload), signature) for key in self._marks):
            return float(when)
        return None


def _written(token: Any) -> bytes:
    """Return a token's characters; raise BadValue for what Fernet would not have written."""
    if isinstance(token, str) and token.isascii():
        token = token.encode()
    if not isinstance(token, bytes) or token.rstrip(b"=").translate(None, _ALPHABET):
        raise BadValue(UNREADABLE)
    return token


def _check_age(written: bytes, ttl: float, arrived: float) -> None:
    """Raise BadValue for a true token that is too old, or not made yet."""
    made = int.from_bytes(base64.urlsafe_b64decode(written[:_STAMP_CHARACTERS])[_STAMP], "big")
    if made + ttl < int(arrived):
        raise BadValue(EXPIRED)
    if made > arrived + SKEW:
        raise BadValue(FROM_FUTURE)


def _signed(key: bytes, when: str, payload: bytes) -> str:
    signature = hmac.new(key, f"{when}\n".encode(), hashlib.sha256)
    signature.update(payload)
    return signature.hexdigest()
