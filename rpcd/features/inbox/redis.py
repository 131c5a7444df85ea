"""Results in Redis: for daemons of several machines, as safe as that Redis keeps what it was told."""

from collections.abc import Collection
from typing import Any

import redis

from rpcd.features.inbox.store import Claim, Held

SECONDS = 10
"""How long a command may take."""

RUNNING, KEPT = b"r", b"k"
"""What a value begins with: an owner or a result follows."""

_CLAIM = """
local had = redis.call('GET', KEYS[1])
if not had or had == ARGV[1] then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return {1}
end
return {0, had, redis.call('PTTL', KEYS[1])}
"""
_FINISH = """
local had = redis.call('GET', KEYS[1])
if had and had ~= ARGV[1] and had ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end"


class RedisStore:
    """Keys of a database, `rpcd:inbox:...`, which expire by themselves; its scripts make each step one."""

    def __init__(self, url: str) -> None:
        """Take the URL as the library knows it; nothing is connected yet."""
        self._client: Any = redis.Redis.from_url(url, socket_timeout=SECONDS, socket_connect_timeout=SECONDS)
        self._claim = self._client.register_script(_CLAIM)
        self._finish = self._client.register_script(_FINISH)
        self._release = self._client.register_script(_RELEASE)
        self._renew = self._client.register_script(_RENEW)

    def open(self) -> None:
        """See that it can be reached."""
        self._client.ping()

    def claim(self, held: Held, lease: float) -> Claim:
        """Claim a message, or say why it can't be."""
        had = self._claim(keys=[_key(held)], args=[_owner(held), _milliseconds(lease)])
        if had[0] == 1:
            return Claim()
        if had[1].startswith(KEPT):
            return Claim(had[1][len(KEPT) :])
        return Claim(left=max(had[2], 1) / 1000)

    def finish(self, held: Held, kept: bytes, keep: float) -> bool:
        """Keep the result of a claimed message."""
        return bool(self._finish(keys=[_key(held)], args=[_owner(held), KEPT + kept, _milliseconds(keep)]))

    def release(self, held: Held) -> None:
        """Give up a claim."""
        self._release(keys=[_key(held)], args=[_owner(held)])

    def renew(self, held: Collection[Held], lease: float) -> None:
        """Let claims last from now."""
        for each in held:
            self._renew(keys=[_key(each)], args=[_owner(each), _milliseconds(lease)])

    def clean(self) -> None:
        """Do nothing: what is too old has expired."""


def _key(held: Held) -> bytes:
    return b"rpcd:inbox:" + held[0].hex().encode()


def _owner(held: Held) -> bytes:
    return RUNNING + held[1].encode()


def _milliseconds(seconds: float) -> int:
    return max(1, round(1000 * seconds))
