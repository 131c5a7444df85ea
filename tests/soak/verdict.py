"""One page that says what the soak has found."""

import platform
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TypeAlias

from account import UNEXPLAINED, Account
from faults import Injector
from stage import Actor, Stage

Silence: TypeAlias = Mapping[str, tuple[int, float]]
"""How many faults of a kind there were, and the longest recovery in seconds."""

SHOWN = 10

TIMES = 12
"""How many samples of a daemon's memory are shown."""


def page(
    account: Account,
    silence: Silence,
    injector: Injector,
    stage: Stage,
    title: str,
    wrong: Sequence[str],
) -> str:
    """Return the report as text; `wrong` is what `verdict` says."""
    twice, faults = sum(account.twice.values()), sum(count for count, _ in silence.values())
    lines = [
        f"rpcd {version('rpcd')}, RabbitMQ {stage.version}, Python {platform.python_version()}",
        f"pika {version('pika')}, Twisted {version('twisted')}; {title}",
        "",
        f"messages confirmed   {account.confirmed:8}",
        *(f"  {place:18} {count:8}" for place, count in account.ended.most_common()),
        f"lost                 {len(account.lost):8}  {_some(account.lost)}",
        f"in the wrong place   {len(account.elsewhere):8}  {_some(account.elsewhere)}",
        f"publications missing {len(account.unheard):8}  {_some(account.unheard)}",
        f"run more than once   {twice:8}",
        *(f"  {count:6}  {cause}" for cause, count in account.twice.most_common()),
        f"archived twice       {account.copies:8}",
        f"replies never seen   {account.unanswered:8}  (not persistent: a killed broker forgets those that nobody took yet)",
        "",
        f"faults               {faults:8}  longest time from its end to the next message of every daemon",
        *(f"  {count:6}  {kind:45} {_seconds(most)}" for kind, (count, most) in sorted(silence.items())),
        f"  {injector.unquiet:6}  times no queue was deleted, because the messages did not come to rest",
        "",
        "daemon   lives  exit codes           resident MB: first, most, last   descriptors: first, most, last",
        *map(_daemon, stage.actors),
        f"resident MB over time, in {TIMES} steps:",
        *map(_memory, stage.actors),
        *_complaints(stage.actors),
        "",
        *([f"FAILED: {what}" for what in wrong] or ["passed: nothing was lost"]),
    ]
    return "\n".join(line.rstrip() for line in lines)


def verdict(account: Account, silence: Silence, actors: Sequence[Actor], patience: float) -> list[str]:
    """Say what is wrong; `patience`: how many seconds a daemon may handle nothing once all that it needs is there."""
    longest = max((most for _, most in silence.values()), default=0.0)
    wrong = {
        "messages were lost": bool(account.lost),
        "messages ended in the wrong place": bool(account.elsewhere),
        "publications of handlers that succeeded are missing": bool(account.unheard),
        f"replies are missing, and no fault of the broker accounts for that: {_some(account.unexcused)}": bool(
            account.unexcused
        ),
        f"a daemon was silent for {_seconds(longest)}": longest >= patience,
        "messages ran twice without a fault near": bool(account.twice[UNEXPLAINED]),
        "a daemon complained, or ended by itself": any(actor.complaints for actor in actors),
    }
    return [what for what, holds in wrong.items() if holds]


def _seconds(most: float) -> str:
    return "never" if most == float("inf") else f"{most:5.1f} s"


def _some(names: Sequence[str]) -> str:
    return textwrap.shorten(" ".join(names[:SHOWN]), 200)


def _daemon(actor: Actor) -> str:
    codes = ", ".join(f"{actor.codes.count(code)} x {code}" for code in sorted(set(actor.codes))) or "-"
    held = [[getattr(sample, name) for sample in actor.samples] or [0] for name in ("megabytes", "descriptors")]
    shown = [f"{each[0]:6} {max(each):6} {each[-1]:6}" for each in held]
    return f"{actor.name:8} {actor.lives:5}  {codes:20} {shown[0]:32} {shown[1]}"


def _memory(actor: Actor) -> str:
    step = max(1, len(actor.samples) // TIMES)
    return f"{actor.name:8} {' '.join(f'{each.megabytes:4}' for each in actor.samples[::step])}"


def _complaints(actors: Sequence[Actor]) -> Iterator[str]:
    for actor in actors:
        yield from (f"  {textwrap.shorten(complaint, 220)}" for complaint in actor.complaints[:SHOWN])
