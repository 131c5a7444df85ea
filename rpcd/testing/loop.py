"""Carrying steps out that may wait for a coroutine: on a loop of the harness's own, or on the one that runs the test."""

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any, TypeAlias, TypeVar

from rpcd.testing.errors import HarnessError

ResultT = TypeVar("ResultT")

Steps: TypeAlias = Generator[Awaitable[Any], Any, ResultT]
"""Something that is done step by step: it yields what is to be awaited, and is sent what came of that."""


class Loop:
    """An asyncio loop that is made when it is needed, and runs only while something is carried out."""

    def __init__(self) -> None:
        """Make no loop yet."""
        self._loop: asyncio.AbstractEventLoop | None = None

    def carry_out(self, steps: Steps[ResultT]) -> ResultT:
        """Carry steps out and return their result; only what they yield runs on the loop."""
        answer: Any = None
        error: BaseException | None = None
        while True:
            try:
                awaitable = steps.send(answer) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            answer, error = None, None
            try:
                answer = self._run(awaitable)
            except BaseException as raised:  # noqa: BLE001  # the steps decide about it
                error = raised

    def _run(self, awaitable: Awaitable[Any]) -> Any:
        if is_running():
            close = getattr(awaitable, "close", None)
            if callable(close):
                close()
            raise HarnessError(
                "an event loop runs this test, so async handlers run on it: write `await harness.acall(...)`"
                " (adeliver, aadvance, ...), or make the test a plain function"
            )
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(_whole(awaitable))

    def close(self) -> None:
        """Cancel what handlers have left behind, and close the loop."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            loop.run_until_complete(_end(loop))
        finally:
            loop.close()


async def _end(loop: asyncio.AbstractEventLoop) -> None:
    left = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


async def carry_out_here(steps: Steps[ResultT]) -> ResultT:
    """Carry steps out on the loop that runs."""
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            awaitable = steps.send(answer) if error is None else steps.throw(error)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        answer, error = None, None
        try:
            answer = await asyncio.ensure_future(_whole(awaitable))
        except BaseException as raised:  # noqa: BLE001  # the steps decide about it
            error = raised


async def _whole(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def is_running() -> bool:
    """Tell whether a loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
