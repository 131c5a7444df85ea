"""The Debian package in a clean root: `script/package --try` runs this as root, in mount and process namespaces of its own.

    clean_root.py PACKAGE.deb DIRECTORY

It makes the running Debian's minimal system in DIRECTORY, installs the package there, runs the daemon against a private
broker of this machine (the loopback interface is shared), and removes the package again. What it mounts and starts ends with
its namespaces, whatever happens; the directory is the caller's to remove. It is no part of the suite: it takes minutes.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from rpcd.ops.rabbitmq import PrivateNode

NOBODY = 64_000
"""A user that no file belongs to."""

PUBLIC = ("pypi.org", "debian.org")
"""Hosts that packages may name: their own documentation does."""

HANDLER = """\
import os


def handle(message):
    return {"double": 2 * message.body["number"], "user": os.getuid()}
"""

CONFIG = """\
[service]
path = ["/opt/shop"]

[queues.numbers]

[consumers.numbers]
queue = "numbers"
handler = "shop:handle"
"""

WANTED = "/etc/systemd/system/multi-user.target.wants/rpcd.target"

TARGET = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
"""How apt is asked where it gets packages from; read at run time, for it is nobody else's business."""

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


class Failed(Exception):
    """A step did not do what it should; the text says what it did."""


def say(text: str) -> None:
    sys.stdout.write(f"{time.monotonic() - STARTED:6.1f} s  {text}\n")
    sys.stdout.flush()


def run(*command: object) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise Failed(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def check(right: object, otherwise: str) -> None:
    if not right:
        raise Failed(otherwise)


class Root:
    """A minimal system in a directory."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory

    def make(self) -> None:
        release = dict(
            line.split("=", 1) for line in pathlib.Path("/etc/os-release").read_text().splitlines() if "=" in line
        )
        suite = release["VERSION_CODENAME"].strip('"')
        told = run("apt-get", "indextargets", "--format", TARGET, "Created-By: Packages", "Origin: Debian")
        sources = map(str.split, told.splitlines())
        wanted = {(uri, of, component) for uri, of, component in sources if of == suite or of.startswith(f"{suite}-")}
        mirror = next((uri for uri, of, _ in wanted if of == suite), None)
        check(mirror, f"apt knows no source for {suite}: this makes a root of the Debian that it runs on")
        run("debootstrap", "--variant=minbase", suite, self.directory, mirror)
        lines = sorted(f"deb {' '.join(source)}\n" for source in wanted)
        (self.directory / "etc/apt/sources.list").write_text("".join(lines))
        settings = re.findall(r"^Acquire::(?:https?|Check|Retries)\S* .*;$", run("apt-config", "dump"), re.MULTILINE)
        (self.directory / "etc/apt/apt.conf.d/99host").write_text("\n".join(settings) + "\n")
        for name in ("etc/resolv.conf", "etc/hosts"):
            shutil.copyfile(f"/{name}", self.directory / name)
        run("mount", "-t", "proc", "proc", self.directory / "proc")
        run("mount", "--rbind", "/dev", self.directory / "dev")

    def command(self, *words: object, environment: Mapping[str, str], uid: int = 0) -> list[str]:
        variables = [f"{name}={value}" for name, value in {**ENVIRONMENT, **environment}.items()]
        user = f"--reuid={uid} --regid={uid} --clear-groups --no-new-privs --bounding-set=-all".split()
        less = ["setpriv", *user] if uid else []
        return ["chroot", str(self.directory), "env", "-i", *variables, *less, *map(str, words)]

    def run(self, *words: object, **environment: str) -> str:
        return run(*self.command(*words, environment=environment))

    def apt(self, *words: object) -> str:
        return self.run("apt-get", "--yes", "--no-install-recommends", *words)

    def write(self, name: str, text: str) -> None:
        file = self.directory / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def files(self) -> set[str]:
        """Everything that is named after rpcd, but for what apt and dpkg remember of any package."""
        found = self.run("find", "/", "-xdev", "-path", "*rpcd*").splitlines()
        return {name for name in found if not name.startswith(("/proc/", "/dev/", "/tmp/"))}


def hosts() -> set[str]:
    """The hosts that this machine gets packages from, as far as they are nobody else's business."""
    uris = re.findall(r"https?://[^\s'\",]+", run("apt-get", "indextargets", "--format", "$(REPO_URI)"))
    uris += re.findall(r"https?://[^\s'\",]+", run(sys.executable, "-m", "pip", "config", "list"))
    names = {urlsplit(uri).hostname or "" for uri in uris}
    return {name for name in names if name and not name.endswith(PUBLIC)}


def contents(package: pathlib.Path) -> None:
    """The package names no host and no directory of the machine that built it."""
    secrets = hosts()
    with tempfile.TemporaryDirectory() as directory:
        run("dpkg-deb", "-R", package, directory)
        for file in pathlib.Path(directory).rglob("*"):
            if file.is_file() and not file.is_symlink():
                body = file.read_bytes()
                named = [
                    name for name in secrets if re.search(rb"(?<![\w.-])" + re.escape(name.encode()) + rb"(?![\w.-])", body)
                ]
                check(not named, f"{file.relative_to(directory)} names a package index of this machine")
        check(
            not list(pathlib.Path(directory).rglob("*.pyc")), "the package has bytecode in it, which names where it was made"
        )


def install(root: Root, package: pathlib.Path) -> None:
    shutil.copyfile(package, root.directory / "tmp" / package.name)
    root.apt("update")
    root.apt("install", f"/tmp/{package.name}")
    say("installed: " + root.run("rpcd", "--version").strip())
    cache = next(root.directory.glob("usr/lib/rpcd/lib/python3.*/site-packages/twisted/plugins/dropin.cache"), None)
    check(cache and b"rpcd_plugin" in cache.read_bytes(), "the plugin cache does not know rpcd")
    check(" rpcd " in root.run("/usr/lib/rpcd/bin/twistd", "--help"), "twistd does not list rpcd")
    changed = [line for line in root.run("dpkg", "--verify", "rpcd").splitlines() if line]
    check(not changed, f"dpkg --verify: {changed}")
    for name in ("rpcd@.service", "rpcd.target"):
        units = [root.directory / place / name for place in ("lib/systemd/system", "usr/lib/systemd/system")]
        check(any(unit.exists() for unit in units), f"{name} is not installed")
    check((root.directory / WANTED.lstrip("/")).is_symlink(), "rpcd.target is not enabled")
    say("the plugin cache, twistd's list, the units and dpkg --verify are right")


def configure(root: Root, url: str) -> None:
    root.write("/opt/shop/shop.py", HANDLER)
    root.write("/etc/rpcd/shop.toml", CONFIG)
    told = root.run("rpcd", "check", "--config", "/etc/rpcd/shop.toml", "--broker", RABBITMQ_URL=url)
    check("all is well" in told, told)
    say("rpcd check --broker: all is well")


@contextlib.contextmanager
def daemon(root: Root, url: str) -> Iterator[subprocess.Popen[str]]:
    """Run the daemon like the unit does: no user of this system, no capability, a notify socket."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        address = root.directory / "run/notify"
        listening.bind(str(address))
        stack.callback(address.unlink)
        listening.settimeout(0)
        address.chmod(0o666)
        words = ("/usr/lib/rpcd/bin/twistd", "-n", "--pidfile=", "rpcd", "--config", "/etc/rpcd/shop.toml")
        command = root.command(*words, uid=NOBODY, environment={"RABBITMQ_URL": url, "NOTIFY_SOCKET": "/run/notify"})
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        stack.callback(process.kill)
        told = []
        assert process.stdout is not None
        for line in process.stdout:
            told.append(line)
            if "ready, consuming: " in line:
                break
        else:
            raise Failed("the daemon ended before it consumed:\n" + "".join(told))
        yield process
        rest = process.stdout.read()
        check("plugin cache" not in "".join(told) + rest, "twistd tried to write its plugin cache")
        notified: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                notified.append(listening.recv(4096).decode())
        if notified:
            say(f"systemd was told: {notified}")


def consume(root: Root, url: str) -> None:
    with daemon(root, url) as process:
        told = root.run("rpcd", "call", "--json", "numbers", '{"number": 21}', RABBITMQ_URL=url)
        check(json.loads(told)["data"] == {"double": 42, "user": NOBODY}, told)
        say(f"rpcd call was answered by user {NOBODY}: {told.strip()}")
        process.terminate()
        check(process.wait(60) == 0, f"SIGTERM ended the daemon with {process.returncode}")
        say("SIGTERM drained it: exit code 0")


def neighbours(root: Root, url: str) -> None:
    """Debian's own packages of the same names are installed beside it, and make no difference."""
    root.apt("install", "python3-twisted", "python3-zope.interface", "python3-pika", "python3-yaml")
    modules = ["pika", "twisted", "zope.interface", "OpenSSL", "msgspec", "attr"]
    told = f"import {', '.join(modules)}; print({', '.join(f'{name}.__file__' for name in modules)})"
    used = root.run("/usr/lib/rpcd/bin/python", "-c", told)
    check(all(file.startswith("/usr/lib/rpcd/") for file in used.split()), f"the package uses {used}")
    consume(root, url)
    say("the same with Debian's own python3-twisted, -zope.interface, -pika and -yaml installed")


def remove(root: Root) -> None:
    root.write("/var/lib/private/rpcd/shop/kept", "what a handler keeps")
    root.apt("remove", "rpcd")
    kept = {"/etc/rpcd", "/etc/rpcd/shop.toml"}
    until_purged = ("/var/lib/private/rpcd", "/var/lib/dpkg/info/rpcd.", "/var/lib/systemd/deb-systemd-helper-", WANTED)
    left = {name for name in root.files() if not name.startswith(until_purged)}
    check(left == kept, f"removing left {sorted(left - kept)}")
    check((root.directory / "var/lib/private/rpcd/shop/kept").exists(), "removing took what handlers keep")
    say("removed: the config and what handlers keep are left")
    root.apt("purge", "rpcd")
    check(root.files() == kept, f"purging left {sorted(root.files() - kept)}")
    say("purged: only the config is left, which is the operator's")


def main(package: pathlib.Path, directory: pathlib.Path) -> None:
    contents(package)
    say("the package names no host and no directory of this machine")
    root = Root(directory)
    root.make()
    say("a clean root is made")
    node = PrivateNode(pathlib.Path(tempfile.mkdtemp(dir=directory / "tmp")))
    node.start()
    try:
        install(root, package)
        configure(root, node.url())
        consume(root, node.url())
        neighbours(root, node.url())
        remove(root)
    finally:
        node.stop()


if __name__ == "__main__":
    STARTED = time.monotonic()
    os.umask(0o022)
    try:
        main(pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve())
    except Failed as error:
        sys.exit(f"The package does not work: {error}")
    say("The package works: installed, consumed, answered, drained and removed in a clean root.")
