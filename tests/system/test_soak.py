"""A short soak: a few faults from a fixed seed, and every message is found again."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_nothing_is_lost_over_some_random_faults(tmp_path: pathlib.Path) -> None:
    report = tmp_path / "report.txt"
    command = [sys.executable, ROOT / "tests/soak", "0.5", "--seed", "11", "--rate", "60", "--report", report]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    said = report.read_text()
    assert "passed: nothing was lost" in said
    assert list(tmp_path.glob("rpcd-soak.*")) == []
