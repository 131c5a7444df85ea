"""What can be awaited and has happened already: for messages that were made by hand, which publish to nobody."""

import sys
from collections.abc import Iterator


class Done:
    """Something to await that waits for nothing; one is enough for all."""

    def __await__(self) -> Iterator[None]:
        return iter(())


DONE = Done()


def done() -> Done | None:
    """Return what a coroutine may await, or None to a plain caller, who could take it for a value.

    A thread has these hooks exactly while an event loop runs in it; so no loop's own module is needed here.
    """
    return DONE if sys.get_asyncgen_hooks().firstiter is not None else None
