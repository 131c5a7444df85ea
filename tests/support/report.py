"""What a running daemon tells of itself on /ready and /metrics."""

import json
import re
import urllib.error
import urllib.request
from typing import Any

import attrs

_SAMPLE = re.compile(r"^rpcd_(\w+)_total(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_CODE = re.compile(r'code="(\d+)"')


@attrs.frozen
class Report:
    """One answer of each."""

    code: int
    document: dict[str, Any]
    metrics: str

    def consumer(self, name: str) -> dict[str, Any]:
        """Return what is told of one consumer."""
        (found,) = [each for each in self.document["consumers"] if each["name"] == name]
        return found  # type: ignore[no-any-return]

    def total(self, name: str, label: str = "") -> int:
        """Add up a counter over all labels, or over those that hold a text."""
        found = [value for each, labels, value in _SAMPLE.findall(self.metrics) if each == name and label in labels]
        assert found, f"no metric rpcd_{name}_total with {label}"
        return round(sum(map(float, found)))

    @property
    def publishing(self) -> dict[str, Any]:
        """Return what is told of the connection for publications."""
        found = self.document["publisher"]
        codes = {
            code[1]: round(float(value))
            for each, labels, value in _SAMPLE.findall(self.metrics)
            if each == "publisher_channel_errors" and float(value) and (code := _CODE.search(labels))
        }
        return {
            "why": found["why"],
            "waiting": found["pending"],
            "nacks": self.total("publish_nacks"),
            "republished": self.total("republished"),
            "confirm_timeouts": self.total("confirm_timeouts"),
            "refused": self.total("publish_failures", 'reason="refused"'),
            "channel_errors": codes,
        }


def get_report(port: int) -> Report:
    """Ask a daemon on this machine."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        metrics = answer.read().decode()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=20) as answer:
            return Report(answer.status, json.load(answer), metrics)
    except urllib.error.HTTPError as answer:
        with answer:
            return Report(answer.code, json.load(answer), metrics)
