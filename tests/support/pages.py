"""Runs the examples of a documentation page as a reader would: files are written, commands typed into terminals.

What a page says to the runner stands in comments, which readers do not see, ahead of a code block:

    <!-- not run: REASON -->       leave the next block out
    <!-- exit N -->                the last command of the next block ends with N
    <!-- terminal N until TEXT --> type the next block into terminal N and go on when its last command printed TEXT
    <!-- shown in terminal N -->   the next block is what terminal N prints by now, "..." standing for anything
    <!-- interrupt N -->           press Ctrl-C in terminal N and wait until its command has ended
    <!-- port N -->                wherever the page says N, from here on, a port that is free is taken instead

`literalinclude` of a file is such a block as well: the file as it is. A block whose first line is a comment with the name
of a file is that file.
"""

import os
import pathlib
import queue
import re
import signal
import socket
import subprocess
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

SECONDS = 90.0
"""How long one command may take; none takes so long."""

_PART = re.compile(
    r"^(?P<indent> *)```(?P<language>[a-z]+)\n(?P<text>.*?)^(?P=indent)```$|^ *<!-- (?P<order>[^\n]*?) -->$",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"# (?!/)([\w./@-]*[\w-]+\.(?:py|toml|yaml|yml|conf|ini|jsonl|txt|service))\n")

_INCLUDED = re.compile(r"^```\{literalinclude\} (\S+)\n(?:(?!```).*\n)*?```$", re.MULTILINE)

LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".conf": "ini", ".ini": "text"}


class Block(NamedTuple):
    """One code block and the orders that stand ahead of it."""

    language: str
    text: str
    orders: tuple[str, ...]
    line: int

    @property
    def file(self) -> str | None:
        """The name of the file that the block shows."""
        found = _FILE.match(self.text)
        return found[1] if found else None

    def order(self, pattern: str) -> re.Match[str] | None:
        return next((found for each in self.orders if (found := re.fullmatch(pattern, each))), None)


def blocks(page: pathlib.Path) -> Iterator[Block]:
    """Yield the blocks of a page; orders that belong to no block come as a block without a language."""
    orders: list[str] = []
    text = _INCLUDED.sub(lambda found: _included(page, found[1]), page.read_text())
    for part in _PART.finditer(text):
        line = text.count("\n", 0, part.start()) + 1
        if part["order"] is not None:
            if part["order"].startswith(("interrupt ", "port ")):
                yield Block("", "", (part["order"],), line)
            else:
                orders.append(part["order"])
            continue
        yield Block(part["language"], textwrap.dedent(part["text"]), tuple(orders), line)
        orders = []


def _included(page: pathlib.Path, name: str) -> str:
    """Return the block that a directive stands for; a file of examples/X is called as it is within that directory."""
    path = (page.parent / name).resolve()
    called = "/".join(path.parts[path.parts.index("examples") + 2 :])
    return f"```{LANGUAGES[path.suffix]}\n# {called}\n{path.read_text()}```"


class Terminal:
    """One shell; what its commands print is collected."""

    def __init__(self, directory: pathlib.Path, environment: dict[str, str]) -> None:
        self.printed = ""
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._count = 0
        self._running = False
        self._shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._shell.stdout is not None
        for line in self._shell.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def type(self, command: str) -> None:
        """Type a command; the shell is to say when it has ended, and how."""
        assert self._shell.stdin is not None
        assert not self._running, f"the terminal is busy when it is told: {command}\n{self.printed}"
        self._count += 1
        self._running = True
        self._shell.stdin.write(f"{command}\nprintf '\\nended-%s %s\\n' {self._count} $?\n")
        self._shell.stdin.flush()

    def ended(self) -> tuple[str, int]:
        """Wait for the end of the command; return what it printed and its exit code."""
        printed, found = self._until(re.compile(rf"^ended-{self._count} (\d+)$"))
        self._running = False
        return printed.removesuffix("\n"), int(found[1])

    def shows(self, text: str) -> None:
        """Wait until a line of the command that runs has a text in it."""
        self._until(re.compile(re.escape(text)))

    def _until(self, pattern: re.Pattern[str]) -> tuple[str, re.Match[str]]:
        printed, deadline = "", time.monotonic() + SECONDS
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            assert line is not None, f"waited in vain for {pattern.pattern!r}:\n{self.printed}"
            if found := pattern.search(line.rstrip("\n")):
                if not line.startswith("ended-"):
                    self.printed += line
                return printed, found
            assert not line.startswith("ended-"), f"it ended without showing {pattern.pattern!r}:\n{self.printed}"
            printed += line
            self.printed += line

    def interrupt(self) -> int:
        """Press Ctrl-C and return the exit code of what ran."""
        for child in pathlib.Path(f"/proc/{self._shell.pid}/task/{self._shell.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGINT)
        return self.ended()[1]

    def close(self) -> None:
        if self._shell.poll() is None:
            os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.wait()
        self._reader.join()
        for stream in (self._shell.stdin, self._shell.stdout):
            assert stream is not None
            stream.close()


def matches(expected: str, printed: str) -> bool:
    """Compare output with what a page shows of it; "..." stands for anything."""
    pattern = ".*".join(re.escape(part) for part in expected.strip().split("..."))
    squeeze = re.compile(r"[ \t]+$", re.MULTILINE)
    return re.fullmatch(pattern, squeeze.sub("", printed).strip(), re.DOTALL) is not None


class Reader:
    """Somebody who follows one page to the letter."""

    def __init__(self, directory: pathlib.Path, environment: dict[str, str]) -> None:
        self._directory = directory
        self._environment = environment
        self._terminals: dict[str, Terminal] = {}
        self._ports: dict[str, str] = {}

    def terminal(self, name: str) -> Terminal:
        if name not in self._terminals:
            self._terminals[name] = Terminal(self._directory, self._environment)
        return self._terminals[name]

    def follow(self, block: Block) -> None:
        """Do what one block says."""
        if port := block.order(r"port (\d+)"):
            self._ports[port[1]] = _free_port()
            return
        for said, free in self._ports.items():
            block = block._replace(text=block.text.replace(said, free))
        if stop := block.order(r"interrupt (\d+)"):
            self.terminal(stop[1]).interrupt()
        elif shown := block.order(r"shown in terminal (\d+)"):
            self._look(self.terminal(shown[1]), block)
        elif block.language == "console":
            self._type(block)
        elif block.file is not None:
            path = self._directory / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.language == "python":
            script = self._directory / "example.py"
            script.write_text(block.text)
            terminal = self.terminal("1")
            terminal.type("python example.py")
            printed, code = terminal.ended()
            assert code == 0, printed

    def _type(self, block: Block) -> None:
        until = block.order(r"terminal (\d+) until (.*)")
        terminal = self.terminal(until[1] if until else "1")
        commands = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
        code_wanted = int(found[1]) if (found := block.order(r"exit (\d+)")) else 0
        for number, each in enumerate(commands, 1):
            command, expected = _whole(each)
            terminal.type(command)
            last = number == len(commands)
            if last and until:
                terminal.shows(until[2])
                return
            printed, code = terminal.ended()
            assert code == (code_wanted if last else 0), f"$ {command}\nended with {code}:\n{printed}"
            if expected.strip():
                assert matches(expected, printed), f"$ {command}\nprinted\n{printed}\nnot\n{expected}"

    def _look(self, terminal: Terminal, block: Block) -> None:
        for line in block.text.splitlines():
            words = max(line.split("..."), key=len).strip()
            if words and not any(matches(line, each) for each in terminal.printed.splitlines()):
                terminal.shows(words)
                assert any(matches(line, each) for each in terminal.printed.splitlines()), (line, terminal.printed)

    def leave(self) -> None:
        for terminal in self._terminals.values():
            terminal.close()


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _whole(text: str) -> tuple[str, str]:
    """Split what follows a prompt into the command, its continuation lines included, and its output."""
    lines = text.splitlines()
    length = 1
    while lines[length - 1].endswith("\\") and length < len(lines):
        length += 1
    if found := re.search(r"<<\s*'?(\w+)'?", lines[0]):
        length = lines.index(found[1]) + 1
    return "\n".join(lines[:length]), "\n".join(lines[length:])
