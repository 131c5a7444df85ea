"""A cluster of private RabbitMQ nodes on loopback: one epmd, one cookie, and whoever is in the minority pauses."""

import concurrent.futures
import contextlib
import pathlib
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from rpcd.ops.rabbitmq import NodeError, PrivateNode, alive

TICK = 8
"""Seconds after which a silent node is taken for dead; RabbitMQ's own 60 would make each test wait for a minute."""

_CONFIG = """\
cluster_formation.peer_discovery_backend = classic_config
cluster_partition_handling = pause_minority
"""


class Member(PrivateNode):
    """One node of a cluster; `Cluster` makes it."""

    @property
    def environment(self) -> dict[str, str]:
        found = super().environment
        found["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"] += f" -kernel net_ticktime {TICK}"
        return found

    def join(self, first: "Member") -> None:
        """Share the epmd and the cookie of the first member, and look for it when started for the first time."""
        listed = f"cluster_formation.classic_config.nodes.1 = {first.name}\n"
        self._extra_config += _CONFIG + listed
        self._configure()
        self._is_new = False  # its ports stay: the others are told of them
        if self is not first:
            self.epmd_port = first.epmd_port
            cookie = self.directory / "home" / ".erlang.cookie"
            cookie.unlink()
            shutil.copy(first.directory / "home" / ".erlang.cookie", cookie)

    def _start_epmd(self) -> None:
        """Do without: the cluster has started one for all."""

    def begin_epmd(self) -> None:
        """Start the epmd that all members share."""
        super()._start_epmd()


class Cluster:
    """Some nodes that know each other; all methods block."""

    def __init__(self, directory: pathlib.Path, size: int = 3) -> None:
        self.members = [Member(directory / str(number)) for number in range(size)]
        for member in self.members:
            member.join(self.members[0])

    def start(self) -> None:
        """Start one member and then all others, which join it; wait until they know each other.

        Started all at once they now and then make two clusters.
        """
        first, *others = self.members
        first.begin_epmd()
        first.start()
        with concurrent.futures.ThreadPoolExecutor(len(others)) as pool:
            list(pool.map(Member.start, others))
        self.whole()

    def stop(self) -> None:
        """End all, those that are frozen as well."""
        for member in reversed(self.members):  # the first one has the epmd
            member.stop()

    def mend(self) -> None:
        """Start again what was ended, thaw what was frozen, and wait until all know each other."""
        gone = [member for member in self.members if not self.alive(member)]
        for member in self.after(*gone):
            member.signal(signal.SIGCONT)
        if gone:
            with concurrent.futures.ThreadPoolExecutor(len(gone)) as pool:
                list(pool.map(Member.start, gone))
        try:
            self.whole(30.0)
        except AssertionError:  # a node that has paused in a minority may take its time to come back
            for member in self.members[1:]:
                member.kill()
            for member in self.members[1:]:
                member.start()
            self.whole()

    def whole(self, seconds: float = 60.0) -> None:
        """Wait until every member runs and sees all others."""
        deadline = time.monotonic() + seconds
        for member in self.members:
            while True:
                try:
                    member.ctl("--timeout", "10", "await_online_nodes", str(len(self.members)))
                except NodeError:  # it pauses, or starts again, right now
                    assert time.monotonic() < deadline, "the cluster did not come together"
                else:
                    break

    def url(self, virtual_host: str, *members: Member) -> str:
        """Return the URL of a virtual host on these members, or on all."""
        first = self.members[0].url(virtual_host)
        hosts = ",".join(f"127.0.0.1:{member.port}" for member in members or self.members)
        return first.replace(f"127.0.0.1:{urlsplit(first).port}", hosts)

    def named(self, text: str) -> Member:
        """Return the member whose name a text of RabbitMQ's holds."""
        (found,) = [member for member in self.members if member.name in text]
        return found

    def holder(self, virtual_host: str, queue: str) -> Member:
        """Return the member that leads a quorum queue, or has a classic one."""
        for line in self.members[0].ctl("list_queues", "-p", virtual_host, "name", "pid").splitlines():
            name, _, pid = line.partition("\t")
            if name == queue:
                return self.named(pid)
        raise AssertionError(f"no queue {queue}")

    @staticmethod
    def alive(member: Member) -> bool:
        """Tell whether a member's process is there."""
        with contextlib.suppress(NodeError):
            return alive(member.pid)
        return False

    def after(self, *members: Member) -> list[Member]:
        """Return the other members."""
        return [each for each in self.members if each not in members]


@contextlib.contextmanager
def all_frozen(members: Iterable[PrivateNode]) -> Iterator[None]:
    """Freeze some nodes for the length of a block."""
    stopped = list(members)
    try:
        for member in stopped:
            member.signal(signal.SIGSTOP)
        yield
    finally:
        for member in stopped:
            member.signal(signal.SIGCONT)
