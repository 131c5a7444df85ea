"""`rpcd status`: whether everything consumes, in one line, for monitoring."""

import http.client
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

import attrs
import click
import msgspec

from rpcd.cli.ctl import NoAnswer, ask
from rpcd.cli.show import json_line, say
from rpcd.ops.report import CRITICAL, OK, UNKNOWN, VERDICTS, WARNING, judge, judge_sentence, sentence

PATTERN, TARGET = "rpcd@*", "rpcd.target"

UNIT = re.compile(r"rpcd@[^\s]+\.service")

PROPERTIES = "Id,LoadState,ActiveState,ExecMainCode,ExecMainStatus,StatusText,Wants,Requires,ConsistsOf"

KILLED = ("2", "3")
"""ExecMainCode when a signal ended a process (CLD_KILLED, CLD_DUMPED); its status is the signal then."""


@attrs.frozen
class Finding:
    """What was found out about one unit or daemon."""

    name: str
    verdict: str
    word: str
    """What it is said under: inactive, not consuming, paused, ..."""
    why: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.why})" if self.why else self.name


class Unknown(Exception):
    """Nothing can be found out."""


@click.command()
@click.option("--http", "urls", metavar="URL", multiple=True, help="Ask a daemon over HTTP; may be repeated.")
@click.option("--socket", "paths", metavar="PATH", multiple=True, help="Ask over a control socket; may be repeated.")
@click.option(
    "--timeout", type=click.FloatRange(min=0.001), default=10.0, show_default=True, help="Seconds to wait for each answer."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def status(urls: tuple[str, ...], paths: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Tell in one line whether everything consumes.

    Without options it looks at all units rpcd@* that systemd knows. The line and the exit code are those of monitoring
    plugins.

    Exit code: 0 OK, 1 WARNING (paused, reloading, or a reload that was refused), 2 CRITICAL, 3 UNKNOWN.

    Example: rpcd status --http http://127.0.0.1:8001
    """
    try:
        findings = [_over_http(url, timeout) for url in urls] + [_over_socket(path, timeout) for path in paths]
        kind = "daemons" if findings else "units"
        findings = findings or _units(timeout)
    except Unknown as error:
        _end(UNKNOWN, str(error), [], as_json)
    if not findings:
        _end(CRITICAL, "no rpcd units", [], as_json)
    worst = max((each.verdict for each in findings), key=VERDICTS.index)
    if worst == OK:
        is_are = f"{kind} are" if findings[1:] else f"{kind[:-1]} is"
        text = f"{len(findings)} {is_are} consuming: {', '.join(each.name for each in findings)}"
    else:
        bad = [each for each in findings if each.verdict != OK]
        bad.sort(key=lambda each: (-VERDICTS.index(each.verdict), each.word))
        words = dict.fromkeys(each.word for each in bad)
        text = "; ".join(f"{word}: {', '.join(str(each) for each in bad if each.word == word)}" for word in words)
    _end(worst, text, findings, as_json)


def _end(verdict: str, text: str, findings: Iterable[Finding], as_json: bool) -> NoReturn:
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    if as_json:
        say(json_line({"status": verdict, "text": text, "found": [attrs.asdict(each) for each in findings]}))
    else:
        say(f"{verdict}: {text}")
    sys.exit(VERDICTS.index(verdict))


# Daemons ------------------------------------------------------------------------------------------


def _over_http(url: str, seconds: float) -> Finding:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
    except ValueError as error:
        raise Unknown(f"{url} is no URL: {error}") from None
    asked = urlunsplit(parts._replace(path="/ready") if parts.path in ("", "/") else parts)
    if parts.scheme not in ("http", "https"):
        raise Unknown(f"{url} is no http:// URL")
    try:
        return _judged(url, msgspec.json.decode(_body(asked, seconds)))
    except (OSError, UnicodeError, http.client.InvalidURL) as error:
        return Finding(url, CRITICAL, "no answer", str(getattr(error, "reason", error)))
    except http.client.IncompleteRead:
        return Finding(url, CRITICAL, "no answer", "the answer ends in its middle")
    except (http.client.HTTPException, msgspec.DecodeError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Finding(url, CRITICAL, "no answer", "it is not rpcd that answers")


def _body(url: str, seconds: float) -> bytes:
    """Return what is answered; 503 carries the report as well."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as answer:  # noqa: S310  # http and https alone: see the caller
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.read()


def _over_socket(path: str, seconds: float) -> Finding:
    try:
        answer = ask(path, {"do": "status"}, seconds)
    except NoAnswer as error:
        return Finding(path, CRITICAL, "no answer", str(error).removeprefix(f"{path}: "))
    return _judged(path, answer["result"]) if answer["ok"] else Finding(path, CRITICAL, "no answer", answer["error"])


def _judged(name: str, report: Any) -> Finding:
    return _finding(name, judge(report), sentence(report))


def _finding(name: str, verdict: str, text: str) -> Finding:
    if verdict == OK:
        return Finding(name, OK, "consuming")
    if verdict == CRITICAL:
        return Finding(name, CRITICAL, "not consuming", text)
    return Finding(name, WARNING, "paused" if "paused: " in text else "reload refused", text)


# Units --------------------------------------------------------------------------------------------


def _units(seconds: float) -> list[Finding]:
    shown = _show(seconds, PATTERN, TARGET)
    wanted = {
        name for unit in shown for key in ("Wants", "Requires", "ConsistsOf") for name in UNIT.findall(unit.get(key, ""))
    }
    loaded = {unit["Id"]: unit for unit in shown if UNIT.fullmatch(unit.get("Id", ""))}
    missing = sorted(wanted - loaded.keys())
    if missing:
        loaded |= {unit["Id"]: unit for unit in _show(seconds, *missing) if "Id" in unit}
    return [_unit(loaded[name]) for name in sorted(loaded)]


def _show(seconds: float, *names: str) -> list[dict[str, str]]:
    command = ["systemctl", "show", f"--property={PROPERTIES}", "--", *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise Unknown(f"systemctl gave no answer within {seconds:g} s") from None
    except OSError as error:
        raise Unknown(f"systemctl can't be run: {error.strerror}; ask daemons with --http or --socket") from None
    if done.returncode != 0:
        raise Unknown(f"systemctl failed: {done.stderr.strip() or done.returncode}")
    blocks = (block for block in done.stdout.split("\n\n") if block.strip())
    return [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]


def _unit(unit: dict[str, str]) -> Finding:
    name, active, text = unit["Id"].removesuffix(".service"), unit.get("ActiveState", ""), unit.get("StatusText", "")
    if active == "active":
        return _finding(name, judge_sentence(text), text or "it has told nothing")
    if active == "reloading":
        return Finding(name, WARNING, "reloading", text)
    if active in ("activating", "deactivating"):
        return Finding(name, CRITICAL, "not consuming", f"{active}: {text}" if text else active)
    code = unit.get("ExecMainStatus", "0")
    how = f"signal {code}" if unit.get("ExecMainCode") in KILLED else f"exit code {code}"
    why = f"{active}, {how}" if active == "failed" else active
    if unit.get("LoadState", "loaded") != "loaded":
        why = unit["LoadState"]
    return Finding(name, CRITICAL, "inactive", why)
