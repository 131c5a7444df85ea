"""The claims of one process: made, renewed while their handlers run, and what becomes of a message when the store fails."""

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable

from rpcd.core.errors import Nack
from rpcd.features.inbox.settings import Inbox
from rpcd.features.inbox.store import Claim, Held, Store

CLEAN_SECONDS = 60.0
"""How often what is too old is forgotten."""

log = logging.getLogger("rpcd.inbox")


class Keeper:
    """What all workers of a process share; its methods block, and may be called in any thread."""

    def __init__(self, settings: Inbox, make: Callable[[], Store]) -> None:
        """Take how the store is made: at first use, for the process may fork after this."""
        self.settings = settings
        self._make = make
        self._made: Store | None = None
        self._held: set[Held] = set()
        self._given_up: list[Held] = []
        self._mutex = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._failing = False
        self._said: set[str] = set()

    def open(self) -> None:
        """Open the store; what it raises comes through, unless messages may run without it."""
        try:
            self._store().open()
        except Exception as error:
            if not self.settings.unguarded:
                raise
            self._failed(error, "messages run without it")

    def _store(self) -> Store:
        with self._mutex:
            if self._made is None:
                self._made = self._make()
            return self._made

    def claim(self, key: bytes) -> tuple[Held | None, Claim]:
        """Claim a message that is about to run.

        Without a store nothing is held, and the message may run if the settings say so; else Nack is raised: it comes later.
        """
        held = (key, secrets.token_hex(8))
        try:
            store = self._store()
            if self._failing:
                store.open()  # it may not have been there at the start, or be another one by now
            claim = store.claim(held, self.settings.lease)
        except Exception as error:
            unguarded = self.settings.unguarded
            self._failed(error, "messages run without it" if unguarded else "messages wait for it in their retry steps")
            if unguarded:
                return None, Claim()
            raise Nack from error
        self._works()
        if claim.kept is not None or claim.left > 0:
            return None, claim
        with self._mutex:
            self._held.add(held)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rpcd-inbox", daemon=True)
                self._thread.start()
        return held, claim

    def finish(self, held: Held | None, kept: bytes | None) -> None:
        """Keep the result of a message (None is none); if that fails, it is told: the message is done with all the same."""
        if held is None:
            return
        self._let_go(held)
        if kept is None:
            self.release(held)
            return
        try:
            if not self._store().finish(held, kept, self.settings.keep):
                log.warning("another process has run the same message: this one's lease had ended")
        except Exception as error:  # noqa: BLE001  # the handler has done its work: to fail its message would be to do it twice
            self._failed(error, "the result of a message is not kept, so a duplicate of it would run")

    def release(self, held: Held | None) -> None:
        """Give up the claim of a message that failed; if that fails, its lease ends by itself."""
        if held is None:
            return
        self._let_go(held)
        try:
            self._store().release(held)
        except Exception as error:  # noqa: BLE001  # drivers raise whatever they like
            self._failed(error, "a message that failed waits until its lease ends")

    def give_up(self, held: Held | None) -> None:
        """Give up a claim without blocking: the keeper's own thread does it."""
        if held is not None:
            self._given_up.append(held)
            self._wake.set()

    def say_once(self, what: str) -> None:
        """Log something that is said once by a process."""
        if what not in self._said:
            self._said.add(what)
            log.info("%s", what)

    def _let_go(self, held: Held) -> None:
        with self._mutex:
            self._held.discard(held)

    def _failed(self, error: Exception, what: str) -> None:
        """Say that the store fails: once as an error, until it works again."""
        level = logging.DEBUG if self._failing else logging.ERROR
        self._failing = True
        said = (str(error).splitlines() or [""])[0]
        log.log(level, "the inbox can't be reached: %s: %s; %s", type(error).__name__, said, what)

    def _works(self) -> None:
        if self._failing:
            self._failing = False
            log.info("the inbox can be reached again")

    # In a thread of its own -----------------------------------------------------------------------

    def _run(self) -> None:
        pause, cleaned = self.settings.lease / 3, time.monotonic()
        renewed = cleaned
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            while self._given_up:
                self.release(self._given_up.pop())
            now = time.monotonic()
            with contextlib.suppress(Exception):  # it is told by whoever has a message to run; and tried again soon
                if now - renewed >= pause:
                    renewed = now
                    with self._mutex:
                        held = list(self._held)
                    if held:
                        self._store().renew(held, self.settings.lease)
                if now - cleaned >= CLEAN_SECONDS:
                    cleaned = now
                    self._store().clean()
