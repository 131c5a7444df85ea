"""What a running daemon tells of itself on /ready."""

import json
import urllib.error
import urllib.request
from typing import Any

import attrs


@attrs.frozen
class Report:
    """One answer of /ready."""

    code: int
    document: dict[str, Any]

    def consumer(self, name: str) -> dict[str, Any]:
        """Return what is told of one consumer."""
        (found,) = [each for each in self.document["consumers"] if each["name"] == name]
        return found  # type: ignore[no-any-return]

    @property
    def publishing(self) -> dict[str, Any]:
        """Return what is told of the connection for publications."""
        return self.document["publishing"]  # type: ignore[no-any-return]


def get_report(port: int) -> Report:
    """Ask a daemon on this machine."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=20) as answer:
            return Report(answer.status, json.load(answer))
    except urllib.error.HTTPError as answer:
        with answer:
            return Report(answer.code, json.load(answer))
