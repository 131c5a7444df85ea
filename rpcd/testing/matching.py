"""Which bindings of an exchange a message matches, by the rules of AMQP and RabbitMQ."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Matches: TypeAlias = Callable[[str, Mapping[str, Any], str, Mapping[str, Any]], bool]
"""Takes key and arguments of a binding, then key and headers of a message."""


def topic(pattern: str, key: str) -> bool:
    """Tell whether a routing key fits a topic's pattern: `*` is one word, `#` any number of them."""
    return _words(pattern.split(".") if pattern else [], key.split(".") if key else [])


def _words(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    first, rest = pattern[0], pattern[1:]
    if first == "#":
        return any(_words(rest, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and first in ("*", words[0]) and _words(rest, words[1:])


def headers(arguments: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Tell whether headers fit a binding to a headers exchange; a binding's null asks only that the header is there."""
    match = str(arguments.get("x-match", "all"))
    wanted = {
        name: value
        for name, value in arguments.items()
        if name != "x-match" and (match.endswith("-with-x") or not name.startswith("x-"))
    }
    fits = (name in found and (value is None or found[name] == value) for name, value in wanted.items())
    return any(fits) if match.startswith("any") else all(fits)


MATCHES: dict[str, Matches] = {
    "direct": lambda pattern, _arguments, key, _headers: pattern == key,
    "fanout": lambda _pattern, _arguments, _key, _headers: True,
    "topic": lambda pattern, _arguments, key, _headers: topic(pattern, key),
    "headers": lambda _pattern, arguments, _key, found: headers(arguments, found),
}
"""By the type of the exchange; a plugin's types are not known."""
