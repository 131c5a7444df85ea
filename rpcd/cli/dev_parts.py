"""What `rpcd dev` runs: the daemon, which says what it does through a pipe, and the process that keeps a private broker."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any

import msgspec

from rpcd.core.secrets import WELL_KNOWN
from rpcd.ops.ending import birth
from rpcd.ops.keeper import Event, Wanted

_PLACE = "import sys; place = sys.argv.pop(1); sys.path[:1] = [place] if sys.path[:1] == [''] else sys.path[:1]; "
"""The same places to import from as this process: -c would look into the working directory first."""

_KEEPER = f"{_PLACE}from rpcd.ops.keeper import main; main()"

_DAEMON = (
    f"{_PLACE}from rpcd.cli.dev_parts import bind; bind(int(sys.argv.pop(1))); "
    "from rpcd.cli import main; main(prog_name='rpcd')"
)

_SET_PDEATHSIG = 1
"""The word of prctl(2) for the signal that a process gets when the one that started it ends; it outlives an exec."""

LAST_WORDS_SECONDS = 5.0
"""How long the last lines of an ended daemon may take; somebody who has left its session may hold the pipe."""

END_SECONDS = 30.0
"""How long the broker may take to end before it is killed."""


def bind(parent: int) -> None:
    """Let this process be told to stop (SIGTERM) as soon as its parent has ended; does nothing where Linux is not."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it has ended before
        sys.exit(0)


def _command(code: str, *words: str) -> list[str]:
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001  # as multiprocessing
    return [sys.executable, *flags, "-c", code, birth.place, *words]


class Daemon:
    """One daemon; its lines are told as they come, and its end."""

    def __init__(
        self, words: list[str], environment: Mapping[str, str], line: Callable[[str], object], ended: Callable[[int], object]
    ) -> None:
        """Start it; `line` and `ended` are called in a thread of their own."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # until it can take one as the wish to reload
        try:
            self._process = subprocess.Popen(  # noqa: S603  # our own command, no shell
                _command(_DAEMON, str(os.getpid()), "run", *words),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._line, self._ended = line, ended
        self._reader = threading.Thread(target=self._read, name="rpcd-dev-log", daemon=True)
        self._reader.start()
        threading.Thread(target=self._wait, name="rpcd-dev-daemon", daemon=True).start()

    def _read(self) -> None:
        for raw in _of(self._process.stdout):
            self._line(raw)

    def _wait(self) -> None:
        code = self._process.wait()
        self._end_children()
        self._reader.join(LAST_WORDS_SECONDS)
        self._ended(code)

    def _end_children(self) -> None:
        """End what handlers have started and left behind."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if number == signal.SIGKILL:
            self._end_children()
        elif self._process.poll() is None:
            self._process.send_signal(number)


class Broker:
    """A private broker, which ends with this process, however that ends."""

    def __init__(self, wanted: Wanted, told: Callable[[Event], object]) -> None:
        """Start it; `told` is called in a thread of its own with what happens; the last is `failed`, if nobody stops it."""
        self._told = told
        self._stopped = False
        self._process = subprocess.Popen(  # noqa: S603  # our own command, no shell
            _command(_KEEPER), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        with contextlib.suppress(OSError):  # it has ended already, and that is told
            self._pipe.write(msgspec.json.encode(wanted) + b"\n")
            self._pipe.flush()
        threading.Thread(target=self._read, name="rpcd-dev-broker", daemon=True).start()

    @property
    def _pipe(self) -> IO[bytes]:
        assert self._process.stdin is not None  # it was asked for
        return self._process.stdin

    def _read(self) -> None:
        failed = False
        for raw in _of(self._process.stdout):
            event = msgspec.json.decode(raw, type=Event)
            failed = event.kind == "failed"
            self._told(event)
        if not (failed or self._stopped):
            self._told(Event("failed", f"the process that kept the broker has ended (exit code {self._process.wait()})"))

    def stop(self) -> None:
        """End it, and wait until it is gone with all that it held."""
        self._stopped = True
        with contextlib.suppress(OSError):
            self._pipe.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _of(stream: Any) -> Any:
    for raw in stream:
        yield raw.decode("utf-8", "backslashreplace").rstrip("\r\n")
    stream.close()


def public(url: str) -> str:
    """Return a URL without its password, which the config has for other brokers as well; everybody knows the guest's."""
    scheme, _, rest = url.partition("://")
    login, _, place = rest.rpartition("@")
    user, _, password = login.partition(":")
    return url if password in WELL_KNOWN else f"{scheme}://{user}@{place}"
