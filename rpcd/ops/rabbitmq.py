"""Run a private RabbitMQ node: own directory, own loopback ports, own epmd, nothing shared with the system's broker.

For demonstrations, development and tests. It needs RabbitMQ's own scripts (a distribution's package will do), no root and
no running service. Whoever starts a node ends it; `with private_node(directory)` does both.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from rpcd.ops.installed import server_scripts
from rpcd.ops.ports import answers, free_ports, listens

START_SECONDS = 90.0
"""How long a node may take until it answers; a busy machine needs about ten seconds."""

_TRIES = 5
"""How often a new node is started, with other ports each time, while somebody else takes one that was free just before."""

_STARTING = "requires the 'rabbit' app to be running"
"""What rabbitmqctl says while a node still starts."""

_TAKEN = ("eaddrinuse", "dist_port_already_used", "nodistribution")
"""What the broker says if somebody else has its port, that of its distribution, or its epmd's."""

_CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
vm_memory_high_watermark.absolute = 1GB
disk_free_limit.absolute = 50MB
log.console = false
loopback_users.guest = true
"""


class NodeError(RuntimeError):
    """The private node could not be started or did not do what it was told; the text says what RabbitMQ said."""


class _PortTakenError(NodeError):
    """Somebody else uses one of the node's ports."""


def alive(pid: int) -> bool:
    """Tell whether a process exists and is not a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


class PrivateNode:
    """One RabbitMQ node in a directory of its own.

    All methods block and may be called from any one thread. `url` is right as soon as `start` has returned.
    """

    def __init__(self, directory: Path, plugins: Sequence[str] = (), extra_config: str = "", root: Path = Path("/")) -> None:
        """Prepare a node in an empty directory; nothing is started yet.

        `root` is the root of another system whose RabbitMQ is to be used (by chroot, as root); the directory is then
        inside of it.
        """
        scripts = server_scripts(root)
        if scripts is None:
            raise NodeError(
                "RabbitMQ is not installed: install the package rabbitmq-server (or name a broker by RABBITMQ_URL)"
            )
        self.scripts = scripts
        self._root = root
        self.directory = directory
        self.port, self.dist_port, self.epmd_port = free_ports(3)
        self._is_new = True
        self._extra_config = extra_config
        self.name = f"rpcd{secrets.token_hex(4)}@localhost"
        self._server: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._write(plugins)
        self._configure()

    def _write(self, plugins: Sequence[str]) -> None:
        for part in ("home", "mnesia", "log", "gen"):
            (self.directory / part).mkdir(parents=True, exist_ok=True)
        cookie = self.directory / "home" / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        (self.directory / "enabled_plugins").write_text(f"[{','.join(plugins)}].")
        (self.directory / "env.conf").write_text("")

    def _configure(self) -> None:
        (self.directory / "rabbitmq.conf").write_text(_CONFIG.format(port=self.port) + self._extra_config)

    @property
    def environment(self) -> dict[str, str]:
        """The environment that the node and its control commands run in."""
        directory = self._inside(self.directory)
        return {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "LANG": "C.UTF-8",
            "HOME": str(directory / "home"),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(directory / "gen"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "env.conf"),
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1",
        }

    def _inside(self, path: Path) -> Path:
        return Path("/") / path.relative_to(self._root)

    def _command(self, *words: str) -> list[str]:
        return [*words] if self._root == Path("/") else ["chroot", str(self._root), *words]

    def url(self, virtual_host: str = "/", username: str = "guest", password: str = "guest") -> str:  # noqa: S107  # RabbitMQ's own
        """Return the AMQP URL of a virtual host of this node."""
        login = f"{quote(username, safe='')}:{quote(password, safe='')}"
        return f"amqp://{login}@127.0.0.1:{self.port}/{quote(virtual_host, safe='')}"

    @property
    def pid(self) -> int:
        """The process id of the running broker (the Erlang machine itself, not its start script)."""
        try:
            return int((self.directory / "pid").read_text())
        except (OSError, ValueError) as error:
            raise NodeError(f"{self.name} is not running: {error}") from error

    def start(self) -> None:
        """Start the node and wait until it answers; raise NodeError with its last words if it does not.

        A node that starts for the first time takes other ports if somebody else was quicker; later it keeps them.
        """
        for left in reversed(range(_TRIES)):
            try:
                self._start()
            except _PortTakenError:
                if not (left and self._is_new):
                    raise
                self.port, self.dist_port, self.epmd_port = free_ports(3)
                self._configure()
            else:
                self._is_new = False
                return

    def _start(self) -> None:
        self._start_epmd()
        output = self.directory / "log" / "start.log"
        with output.open("wb") as sink:
            self._server = subprocess.Popen(
                self._command(str(self._inside(self.scripts) / "rabbitmq-server")),
                env=self.environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not (self._is_up() and answers(self.port)):
            if self._server.poll() is not None or time.monotonic() > deadline:
                words = output.read_text(errors="replace")
                self.stop()
                error = _PortTakenError if any(sign in words for sign in _TAKEN) else NodeError
                raise error(f"RabbitMQ did not start in {self.directory}:\n{words[-2000:]}")
            time.sleep(0.05)

    def _is_up(self) -> bool:  # so that nobody else's answer on its port is taken for its own
        with contextlib.suppress(NodeError):
            return alive(self.pid)
        return False

    def _start_epmd(self) -> None:
        """Start an epmd of our own, so that its pid is known and it ends with the node."""
        epmd = shutil.which("epmd") if self._root == Path("/") else "epmd"
        if self._epmd is not None or not epmd:
            return
        taken = listens(self.epmd_port)
        self._epmd = subprocess.Popen(
            self._command(epmd, "-port", str(self.epmd_port), "-address", "127.0.0.1"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not (taken or listens(self.epmd_port)) and self._epmd.poll() is None:
            time.sleep(0.01)
        if taken or self._epmd.poll() is not None:
            self.stop()
            raise _PortTakenError(f"epmd could not listen on port {self.epmd_port}")

    def kill(self) -> None:
        """End the broker by SIGKILL, as a crash would, and wait until its process is gone."""
        pid = self.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        while alive(pid):
            time.sleep(0.01)
        self._reap()

    def _reap(self) -> None:
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
            self._server = None

    def stop(self) -> None:
        """End the broker and its epmd at once and wait until both are gone; safe to call twice."""
        with contextlib.suppress(NodeError):
            if self._server is not None:
                self.kill()
        self._reap()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    def signal(self, number: int) -> None:
        """Send a signal to the broker's process (SIGSTOP freezes it, SIGCONT thaws it)."""
        os.kill(self.pid, number)

    def ctl(self, *arguments: str, typed: str = "") -> str:
        """Run rabbitmqctl with these arguments and return what it printed; raise NodeError when it fails.

        `typed` is its standard input: a password is seen by nobody there. A node that has just begun to listen is waited
        for: it takes most commands a moment later only.
        """
        deadline = time.monotonic() + START_SECONDS
        done = self._run_ctl(arguments, typed)
        while done.returncode and _STARTING in done.stdout + done.stderr and time.monotonic() < deadline:
            time.sleep(0.2)
            done = self._run_ctl(arguments, typed)
        if done.returncode:
            raise NodeError(f"rabbitmqctl {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def _run_ctl(self, arguments: Sequence[str], typed: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self._command(str(self._inside(self.scripts) / "rabbitmqctl"), "--quiet", *arguments),
            env=self.environment,
            cwd=self.directory,
            input=typed,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def add_virtual_hosts(self, names: Sequence[str]) -> None:
        """Create virtual hosts that the user guest may do everything in, all by one call of rabbitmqctl."""
        listed = ",".join(f'<<"{name}">>' for name in names)
        self.ctl(
            "eval",
            f'[begin rabbit_vhost:add(N, <<"guest">>), rabbit_auth_backend_internal:set_permissions('
            f'<<"guest">>, N, <<".*">>, <<".*">>, <<".*">>, <<"guest">>) end || N <- [{listed}]].',
        )


@contextlib.contextmanager
def private_node(directory: Path) -> Iterator[PrivateNode]:
    """Run a private node for the length of a block."""
    node = PrivateNode(directory)
    node.start()
    try:
        yield node
    finally:
        node.stop()


@contextlib.contextmanager
def frozen(node: PrivateNode) -> Iterator[None]:
    """Freeze a node's process for the length of a block: it keeps its connections and answers nothing."""
    node.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        node.signal(signal.SIGCONT)
