"""Plays the soak; `script/soak` runs it, see there."""

import argparse
import contextlib
import pathlib
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

from account import Waiting, settle, silences  # noqa: E402
from book import Tail  # noqa: E402
from client import Books, Publisher, Reader, leftovers  # noqa: E402
from faults import Injector  # noqa: E402
from stage import Stage  # noqa: E402
from verdict import page, verdict  # noqa: E402

DRAIN_SECONDS = 240.0
"""How long everything may take to come to rest. The broker itself tries again after 180 s what it could not dead-letter."""

SAMPLE_SECONDS = 2.0

TELL_SECONDS = 30.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/soak", description="Random faults for some minutes; nothing may be lost.")
    parser.add_argument("minutes", nargs="?", type=float, default=2.0, help="how long faults are played (default: 2)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="play the faults of an earlier run")
    parser.add_argument("--rate", type=float, default=160.0, help="messages a second (default: 160)")
    parser.add_argument("--silence", type=float, default=35.0, help="seconds a daemon may need to recover (default: 35)")
    parser.add_argument("--report", type=pathlib.Path, help="where the report goes (default: build/soak-SEED.txt)")
    parser.add_argument("--keep", action="store_true", help="keep the ledgers, the daemons' output and the broker's files")
    return parser.parse_args()


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script runs in the background
    report = options.report or HERE.parent.parent / "build" / f"soak-{options.seed}.txt"
    report.parent.mkdir(parents=True, exist_ok=True)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="rpcd-soak."))
    say(f"seed {options.seed}; everything is in {directory}")
    try:
        with contextlib.closing(Stage(directory)) as stage:
            text, code = play(stage, options)
    except KeyboardInterrupt:
        say("interrupted; everything has been ended")
        return 130
    finally:
        if not options.keep:
            shutil.rmtree(directory, ignore_errors=True)
    report.write_text(f"{text}\n")
    say(f"\n{text}\n\nThe report is in {report}")
    return code


def play(stage: Stage, options: argparse.Namespace) -> tuple[str, int]:
    """Publish and play faults for so long, let everything come to rest, and look for every message."""
    books, url, began, seed = Books(), stage.node.url(), time.monotonic(), options.seed
    tails = [Tail(actor.ledger) for actor in stage.actors]
    reader = Reader(url, books)
    publishers = [Publisher(url, queue, f"{seed} {queue}", options.rate / 2, books) for queue in ("work", "ask")]
    injector = Injector(stage, publishers, tails, f"{seed} faults")
    waiting = Waiting(books, tails)
    ended = threading.Event()
    watch = threading.Thread(target=look, args=(stage, injector, books, ended), daemon=True)
    for thread in (reader, *publishers, watch):
        thread.daemon = True
        thread.start()
    injector.play(began + options.minutes * 60, lambda: waiting.count() == 0)
    for publisher in publishers:
        publisher.stop()
    for publisher in publishers:
        publisher.join(DRAIN_SECONDS)
    say(f"no more faults; {waiting.count()} messages on their way")
    deadline = time.monotonic() + DRAIN_SECONDS
    while time.monotonic() < deadline and (waiting.count() or not books.newsworthy <= set(books.news)):
        time.sleep(0.5)
    ended.set()
    watch.join()
    for actor in stage.actors:
        actor.end(signal.SIGTERM)
    time.sleep(1)  # for the reader to take the last archived copy
    reader.stop()
    reader.join(30)
    account = settle(books, tails, leftovers(url), injector.faults)
    silence = silences(tails, injector.faults)
    wrong = verdict(account, silence, stage.actors, options.silence)
    title = f"seed {seed}, {time.monotonic() - began:.0f} s"
    return page(account, silence, injector, stage, title, wrong), int(bool(wrong))


def look(stage: Stage, injector: Injector, books: Books, ended: threading.Event) -> None:
    """Sample the daemons now and then, and say every half a minute how far it is."""
    began = told = time.monotonic()
    while not ended.wait(SAMPLE_SECONDS):
        stage.look()
        if time.monotonic() - told >= TELL_SECONDS:
            told = time.monotonic()
            say(f"{told - began:5.0f} s: {len(injector.faults)} faults, {len(books.confirmed)} messages confirmed")


if __name__ == "__main__":
    sys.exit(main())
