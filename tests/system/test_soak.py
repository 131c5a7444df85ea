"""A short soak: a few faults from a fixed seed, and every message is found again."""

import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent.parent


def soak(tmp_path: pathlib.Path, minutes: str) -> "subprocess.Popen[str]":
    """Start a soak that has all its files below a directory, and is patient with a busy machine."""
    options = ["--seed", "11", "--rate", "60", "--silence", "150", "--report", tmp_path / "report.txt"]
    command = [sys.executable, ROOT / "tests/soak", minutes, *options]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    return subprocess.Popen(
        [*map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def belonging_to(directory: pathlib.Path) -> list[str]:
    """Return the commands of all processes that name a directory."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:  # ended meanwhile
            continue
        found += [command] if str(directory) in command else []
    return found


def test_nothing_is_lost_over_some_random_faults(tmp_path: pathlib.Path) -> None:
    with soak(tmp_path, "0.4") as process:
        said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert "passed: nothing was lost" in (tmp_path / "report.txt").read_text()
    assert list(tmp_path.glob("rpcd-soak.*")) == []


def test_ctrl_c_ends_a_soak_and_all_that_it_has_started(tmp_path: pathlib.Path) -> None:
    with soak(tmp_path, "10") as process:
        while process.poll() is None and not list(tmp_path.glob("rpcd-soak.*/faults.log")):
            time.sleep(0.1)
        assert len(belonging_to(tmp_path)) > 3
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert (process.returncode, said.splitlines()[-1]) == (130, "interrupted; everything has been ended")
    assert belonging_to(tmp_path) == []
    assert list(tmp_path.glob("rpcd-soak.*")) == []
