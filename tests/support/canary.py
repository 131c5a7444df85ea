"""What the messages of a test hold, and nothing that a daemon writes may: its output, and every log file of its own."""

import pathlib

CANARY = "canary-7f3a"
"""Stands in every body and header value of the tables, and in each request of the fault tests."""


def unsaid(*places: str | bytes | pathlib.Path) -> None:
    """Insist that no text holds the canary, and no file, nor those that it was rotated to."""
    for place in places:
        texts = [place]
        if isinstance(place, pathlib.Path):
            texts = [file.read_bytes() for file in place.parent.glob(f"{place.name}*") if file.is_file()]
        for text in texts:
            assert (CANARY.encode() if isinstance(text, bytes) else CANARY) not in text, "a log holds what a message holds"
