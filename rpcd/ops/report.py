"""The report: one answer to the question how it goes, for HTTP, `rpcd ctl`, `rpcd status` and systemd's status text alike.

`sentence` puts a report into one line; `judge_sentence` reads such a line again, because systemd keeps nothing else.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

STARTING, READY, NOT_READY, RELOADING, STOPPING = "starting", "ready", "not ready", "reloading", "stopping"
"""What the process as a whole does."""

OK, WARNING, CRITICAL, UNKNOWN = "OK", "WARNING", "CRITICAL", "UNKNOWN"
"""The words of monitoring; their exit codes are their places in `VERDICTS`."""

VERDICTS = (OK, WARNING, CRITICAL, UNKNOWN)

_REFUSED = "; the last reload was refused: "

_FINE = re.compile(r"(consuming: [^;]*)?(; )?(?P<paused>paused: [^;]*)?(; publishing: [^;]*)?")


def of_consumer(consumer: Any) -> dict[str, Any]:
    """Report on one consumer."""
    workers, section = consumer.workers, consumer.plan.section
    return {
        "name": consumer.name,
        "queue": consumer.plan.title,
        "state": consumer.state,
        "why": consumer.why,
        "ready": consumer.ready,
        "workers": section.workers,
        "running": len(workers.running),
        "lost": workers.lost,
        "prefetch": section.window,
        **attrs.asdict(consumer.stats),
    }


def of_publisher(publisher: Any) -> dict[str, Any]:
    """Report on the publishing connection."""
    return {
        "connected": publisher.connection.trouble is None,
        "why": publisher.why,
        "pending": len(publisher.copies) + len(publisher.publications),
    }


def is_ready(consumers: Iterable[Mapping[str, Any]], publisher: Mapping[str, Any]) -> bool:
    """Tell whether outcomes can be published, and every consumer works, but for those that an operator has paused."""
    return publisher["connected"] and all(map(_is_well, consumers))


def _is_well(consumer: Mapping[str, Any]) -> bool:
    """Tell whether a consumer is as it should be; one of an older rpcd does not say so itself."""
    return bool(consumer.get("ready", consumer["state"] in ("consuming", "paused")))


def sentence(report: Mapping[str, Any]) -> str:
    """Put a report into one line."""
    state, consumers = report["state"], report["consumers"]
    if state in (STOPPING, RELOADING):
        running = sum(each["running"] for each in consumers)
        draining = f"draining; handlers that still run: {running}"
        if state == STOPPING:
            return draining
        checked = any(each["state"] in ("draining", "stopped") for each in consumers)
        return f"reloading: {draining}" if checked else "reloading: checking the config"
    waiting = [f"{each['name']} ({each['why'] or 'the connection ended'})" for each in consumers if _waits(each)]
    if state == STARTING and waiting:
        return f"connecting: {', '.join(waiting)}"
    parts = [f"{word}: {', '.join(found)}" for word in ("consuming", "paused") if (found := _shown(consumers, word))]
    missing = [f"{each['name']}: {each['why'] or 'the connection ended'}" for each in consumers if not _is_well(each)]
    parts += [f"not {'' if parts else 'consuming: '}{', '.join(missing)}"] if missing else []
    publisher = report.get("publisher")
    if publisher is not None and publisher["why"] is not None and state != STARTING:
        parts.append(f"{'publishing' if publisher['connected'] else 'not publishing'}: {publisher['why']}".replace(";", ","))
    return "; ".join(parts) + (f"{_REFUSED}{report['refused']}" if report.get("refused") else "")


def _waits(consumer: Mapping[str, Any]) -> bool:
    return consumer["state"] == "connecting" or (consumer["state"] == "paused" and consumer["why"] is not None)


def _shown(consumers: Iterable[Mapping[str, Any]], state: str) -> list[str]:
    """Name the consumers in a state, each with what hinders it; a semicolon ends a part of the sentence."""
    found = (each for each in consumers if each["state"] == state and _is_well(each))
    return [(f"{each['name']} ({each['why']})" if each["why"] else each["name"]).replace(";", ",") for each in found]


def _names(consumers: Iterable[Mapping[str, Any]], state: str) -> list[str]:
    return [each["name"] for each in consumers if each["state"] == state]


def judge(report: Mapping[str, Any]) -> str:
    """Return the word of monitoring for a report."""
    if not report["ready"]:
        return CRITICAL
    return WARNING if _names(report["consumers"], "paused") or report.get("refused") else OK


def judge_sentence(text: str) -> str:
    """Return the word of monitoring for a line that `sentence` has made; what it has not made is critical."""
    main, refused, _reason = text.partition(_REFUSED)
    found = _FINE.fullmatch(main)
    if not main or found is None:
        return CRITICAL
    return WARNING if refused or found["paused"] else OK
