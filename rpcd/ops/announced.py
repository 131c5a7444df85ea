"""Where a private broker is: a file beside the config, which counts as long as whoever wrote it runs.

`rpcd dev` writes it, and the other commands look for it. It is locked (flock), so that one that a killed process has left
behind is known for what it is.
"""

import contextlib
import fcntl
import os
from pathlib import Path


class AlreadyAnnounced(Exception):
    """Another process has announced a broker for the same config."""


def place_of(config: str) -> Path:
    """Return the path of the file for a config."""
    path = Path(config).absolute()
    return path.with_name(f".{path.name}.dev")


class Announcement:
    """The file of this process; it is kept until `close`."""

    def __init__(self, config: str) -> None:
        """Take the place; raises AlreadyAnnounced, or OSError if there can be no file."""
        self.path = place_of(config)
        self._descriptor = _locked(self.path)

    def say(self, url: str) -> None:
        """Write the broker's URL."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, url.encode(), 0)

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self._descriptor)


def _locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(descriptor).st_ino:  # else it was removed before it was locked
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise AlreadyAnnounced from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def announced(config: str) -> str | None:
    """Return the URL of the private broker that runs for a config, or None; only what the same user wrote counts."""
    try:
        descriptor = os.open(place_of(config), os.O_RDONLY | os.O_NOFOLLOW)
    except (OSError, ValueError):
        return None
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # its writer lives
        return os.read(descriptor, 4096).decode(errors="replace") or None
    except OSError:
        return None
    else:
        return None
    finally:
        os.close(descriptor)
