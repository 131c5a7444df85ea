"""The Fernet keys of a config: how they are written, and what is wrong with them and with what needs them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rpcd.core.errors import Problem
from rpcd.core.secret import holds_secret
from rpcd.core.settings import Broker, Consumer, Settings

SECRET_FIELDS = ("secret_values", "passphrase", "password", "admin_password", "database_user_password")
"""The fields of a body without a type that are secret unless the config says which are."""

GENERATE = "`rpcd keys generate` makes one"

_KEY = re.compile(r"[A-Za-z0-9_-]{43}=")


def is_key(text: str) -> bool:
    """Tell whether a text is a Fernet key: 32 bytes in URL-safe base64."""
    return _KEY.fullmatch(text) is not None


def keys_in(broker: Broker) -> list[str]:
    """Return the keys, newest first; each string holds one, or several on lines of their own."""
    return [key for text in broker.fernet_keys for key in text.split()]


def sealing(broker: Broker, consumer: Consumer) -> Any:
    """Return how a consumer's bodies are decrypted, a `sealing.Sealing`, or None if there are no keys."""
    keys = keys_in(broker)
    if not keys:
        return None
    from rpcd.core.crypto import Keyring  # noqa: PLC0415  # who has no keys does not pay for loading cryptography
    from rpcd.core.sealing import Sealing  # noqa: PLC0415

    return Sealing(Keyring(keys, broker.fernet_ttl), consumer)


def problems(settings: Settings) -> Iterator[Problem]:
    """Find what is wrong with the keys, and settings that need one; no value is shown."""
    broker = settings.broker
    for index, text in enumerate(broker.fernet_keys):
        yield from _in_text(f"broker.fernet_keys[{index}]", text)
    if broker.fernet_ttl is not None and not broker.fernet_ttl:
        yield Problem("broker.fernet_ttl", "no token would be young enough", "leave it out for tokens of any age")
    without = not broker.fernet_keys
    if broker.fernet_ttl is not None and without:
        yield Problem("broker.fernet_ttl", "there are no fernet_keys, so there are no tokens", GENERATE)
    for name, consumer in settings.consumers.items():
        yield from _in_consumer(f"consumers.{name}", consumer, without=without)


def unmet(settings: Settings, name: str, bodies: Iterable[tuple[str, Any]]) -> Iterator[Problem]:
    """Find handlers whose bodies have secrets that nothing could open; `bodies` are their paths and types of body."""
    consumer = settings.consumers[name]
    told = "opportunistic" if consumer.secrets == "opportunistic" else "named" if consumer.secret_fields else ""
    for handler, body in bodies:
        if not holds_secret(body):
            continue
        if not settings.broker.fernet_keys:
            what = f"{handler}: its body has an rpcd.Secret, and there is no key to open it with"
            yield Problem(f"consumers.{name}.handler", what, f"set broker.fernet_keys; {GENERATE}")
        elif told:
            setting = "secrets" if told == "opportunistic" else "secret_fields"
            what = f"the type of {handler}'s body says by rpcd.Secret what is secret in it"
            yield Problem(f"consumers.{name}.{setting}", what, "keep one of the two")


def _in_text(path: str, text: str) -> Iterator[Problem]:
    lines: Sequence[str] = text.split()
    if not lines:
        yield Problem(path, "holds no key", GENERATE)
    for number, line in enumerate(lines, 1):
        if not is_key(line):
            which = f"line {number} is" if len(lines) > 1 else "is"
            yield Problem(path, f"{which} no Fernet key (32 bytes in URL-safe base64: 44 characters)", GENERATE)


def _in_consumer(path: str, consumer: Consumer, *, without: bool) -> Iterator[Problem]:
    opportunistic = consumer.secrets == "opportunistic"
    wanted = {"encrypted": consumer.encrypted, "secrets": opportunistic, "secret_fields": bool(consumer.secret_fields)}
    for setting, needed in wanted.items():
        if needed and without:
            yield Problem(
                f"{path}.{setting}", "nothing can be decrypted without a key", f"set broker.fernet_keys; {GENERATE}"
            )
    if opportunistic and consumer.secret_fields is not None:
        what = 'tells which fields must be tokens, and with secrets = "opportunistic" none must'
        yield Problem(f"{path}.secret_fields", what, "keep one of the two")
