"""The other side of encrypted values: keys in a file of their own, and tokens as any client makes them."""

import json
import pathlib
import time
from typing import Any

from cryptography.fernet import Fernet


def new_key() -> str:
    return Fernet.generate_key().decode()


def keep(path: pathlib.Path, *keys: str) -> None:
    """Write a key file as `rpcd keys generate --output` does: nobody else may read it."""
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text("".join(f"{key}\n" for key in keys))
    fresh.replace(path)


def seal(key: str, value: Any, age: float = 0) -> str:
    """Seal text or bytes as they are, anything else as JSON, in a token that is so many seconds old."""
    data = value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()
    return Fernet(key).encrypt_at_time(data, int(time.time() - age)).decode()
