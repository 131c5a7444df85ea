"""How inputs of a client end, and begin again: what nobody has finished goes back, and nothing stays behind."""

import asyncio
import dataclasses
import gc
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from peer import Peer
from twisted.internet.defer import succeed

import rpcd
from rpcd.ops.rabbitmq import PrivateNode

SECONDS = 60.0

QUEUE = "push_pull.cows"


def run(main: Callable[[rpcd.AsyncClient], Coroutine[Any, Any, None]], url: str) -> None:
    """Run an asyncio program that has a client."""

    async def whole() -> None:
        async with rpcd.AsyncClient(url) as client:
            await asyncio.wait_for(main(client), SECONDS)

    asyncio.run(whole())


def is_consumed(peer: Peer, queue: str) -> bool:
    """Tell whether a queue has a consumer: one that was declared this moment may lose what nobody confirms."""
    return peer.exists(queue) and peer.channel.queue_declare(queue, passive=True).method.consumer_count > 0


@pytest.fixture
def farm(peer: Peer) -> Peer:
    """A broker where cows have been pulled before, so that there is a queue for them."""

    async def once(client: rpcd.AsyncClient) -> None:
        async with client.pull("cows") as cows:
            waiting = asyncio.ensure_future(cows.__anext__())
            await asyncio.to_thread(peer.until, lambda: is_consumed(peer, QUEUE))
            waiting.cancel()

    run(once, peer.url)
    return peer


def test_a_message_that_a_loop_was_left_over_is_not_acked_when_the_same_input_goes_on(farm: Peer) -> None:
    for number in range(3):
        farm.publish(QUEUE, number)

    async def main(client: rpcd.AsyncClient) -> None:
        cows, seen = client.pull("cows", prefetch=1), []
        while len(seen) < 4:
            try:
                async for message in cows:
                    seen.append((message.body, message.redelivered))
                    if seen[-1] == (1, False):
                        raise KeyError("the bucket")
                    if len(seen) == 4:
                        message.ack()
                        break
            except KeyError:
                pass
        assert (1, True) in seen

    run(main, farm.url)
    assert farm.left(QUEUE) == []


def test_an_input_that_ended_while_the_login_was_refused_takes_nothing_later(
    farm: Peer, node: PrivateNode, virtual_host: str
) -> None:
    node.ctl("add_user", "milker", "old")
    try:
        node.ctl("set_permissions", "-p", virtual_host, "milker", ".*", ".*", ".*")

        async def main(client: rpcd.AsyncClient) -> None:
            with pytest.raises(rpcd.RpcdError, match="refused the login"):
                async for _message in client.pull("cows"):
                    pass
            node.ctl("change_password", "milker", "new")
            while True:
                try:
                    await client.publish("", QUEUE, "bella", mandatory=True)
                    break
                except rpcd.RpcdError:
                    await asyncio.sleep(0.2)
            assert await asyncio.to_thread(lambda: farm.get(QUEUE).json) == "bella"

        run(main, node.url(virtual_host, "milker", "new"))
    finally:
        node.ctl("delete_user", "milker")


def test_an_input_that_may_not_read_its_queue_says_so(farm: Peer, node: PrivateNode, virtual_host: str) -> None:
    node.ctl("add_user", "milker", "old")
    try:
        node.ctl("set_permissions", "-p", virtual_host, "milker", ".*", ".*", "push_pull.cows.archive")

        async def main(client: rpcd.AsyncClient) -> None:
            with pytest.raises(rpcd.RpcdError, match="grant the permission"):
                async for _message in client.pull("cows"):
                    pass

        run(main, node.url(virtual_host, "milker", "old"))
    finally:
        node.ctl("delete_user", "milker")


def test_an_input_keeps_its_client(farm: Peer) -> None:
    def pulling() -> Any:
        return rpcd.AsyncClient(farm.url).pull("cows")

    async def main(_client: rpcd.AsyncClient) -> None:
        farm.publish(QUEUE, "bella")
        cows = pulling()
        gc.collect()
        async for message in cows:
            assert message.body == "bella"
            message.ack()
            break

    run(main, farm.url)


def test_an_answer_whose_wait_was_cancelled_is_sent_all_the_same(peer: Peer) -> None:
    async def main(client: rpcd.AsyncClient) -> None:
        async def responding() -> None:
            async for message in client.respond("cows"):
                client._engine.run_if_open(lambda _link: succeed(time.sleep(0.3)))  # the answer does not go out at once
                answering = asyncio.ensure_future(message.reply({"n": 1}))
                await asyncio.sleep(0)
                answering.cancel()
                await asyncio.wait([answering])

        task = asyncio.create_task(responding())
        await asyncio.to_thread(peer.until, lambda: is_consumed(peer, "request_response.cows"))
        assert await client.call("", "request_response.cows", {}) == {"n": 1}
        task.cancel()
        await asyncio.wait([task])

    run(main, peer.url)


def test_a_bad_request_whose_wait_is_cancelled_while_it_is_answered_holds_up_no_other(peer: Peer) -> None:
    async def main(client: rpcd.AsyncClient) -> None:
        opened = asyncio.Event()

        @dataclasses.dataclass
        class Cow:
            name: str

            def __post_init__(self) -> None:
                if self.name == "bad":
                    client._engine.run_if_open(lambda _link: succeed(time.sleep(0.3)))
                    opened.set()
                    raise ValueError("no cow")

        cows = client.respond("cows", body_type=Cow)
        first = asyncio.ensure_future(cows.__anext__())
        await asyncio.to_thread(peer.until, lambda: is_consumed(peer, "request_response.cows"))
        asked = [asyncio.ensure_future(client.call("", "request_response.cows", {"name": "bad"}))]
        await opened.wait()
        first.cancel()
        await asyncio.wait([first])
        asked.append(asyncio.ensure_future(client.call("", "request_response.cows", {"name": "bella"})))
        assert (await asyncio.wait_for(cows.__anext__(), SECONDS / 2)).body == Cow("bella")
        cows.close()
        with pytest.raises(rpcd.CallFailed, match="Bad message"):
            await asked[0]
        asked[1].cancel()

    run(main, peer.url)


def test_an_input_that_is_collected_while_the_engine_is_woken_does_not_hold_it_up() -> None:
    client = rpcd.AsyncClient("amqp://127.0.0.1:1/")
    inputs = [client.pull("cows")]
    client._engine.run(lambda _link: succeed(None)).result(SECONDS)
    thread = client._engine._thread
    assert thread is not None
    wake = thread.reactor.wakeUp

    def collecting() -> None:
        thread._scheduled = False  # the reactor was awake
        inputs.clear()  # as the garbage collector does, wherever it comes
        wake()

    thread.reactor.wakeUp = collecting
    asking = threading.Thread(target=client._engine.run, args=(lambda _link: succeed(None),), daemon=True)
    asking.start()
    asking.join(10)
    thread.reactor.wakeUp = wake
    assert not asking.is_alive()
    client._engine.close().result(SECONDS)
