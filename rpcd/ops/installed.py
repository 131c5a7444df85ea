"""Where the RabbitMQ is that a distribution's package, or a person, has installed."""

import shutil
from pathlib import Path

_PLACES = (
    "/usr/lib/rabbitmq/bin",
    "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "/usr/local/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "/opt/rabbitmq/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
)


def server_scripts(root: Path = Path("/")) -> Path | None:
    """Find the directory of RabbitMQ's own scripts below `root`, or None when RabbitMQ is not installed there.

    The wrappers in `sbin` insist on root or the user rabbitmq, so they are followed to what they wrap.
    """
    found = shutil.which("rabbitmq-server")
    places = [match for pattern in _PLACES for match in sorted(root.glob(pattern.lstrip("/")), reverse=True)]
    if found and root == Path("/"):
        places.append(Path(found).resolve().parent)
    for place in places:
        if (place / "rabbitmq-server").exists() and (place / "rabbitmq-env").exists():
            return place
    return None
