"""The patterns as inputs of any asyncio program: async iterators of a client, against a real broker."""

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from daemon import StartDaemon
from peer import Peer
from proxy import Proxy

import rpcd

SECONDS = 60.0


def run(main: Callable[[rpcd.AsyncClient], Coroutine[Any, Any, None]], url: str) -> None:
    """Run an asyncio program that has a client."""

    async def whole() -> None:
        async with rpcd.AsyncClient(url) as client:
            await asyncio.wait_for(main(client), SECONDS)

    asyncio.run(whole())


@pytest.fixture
def farm(peer: Peer) -> Peer:
    """A broker where cows have been pulled before, so that there is a queue for them."""

    async def once(client: rpcd.AsyncClient) -> None:
        output = rpcd.Output(client, "cows")
        async for message in client.pull("cows"):
            assert message.body == "first"
            message.ack()
            break
        await output.push("second")  # it is there, though nobody pulls
        async for message in client.pull("cows"):
            assert message.body == "second"
            message.ack()
            break

    async def both(client: rpcd.AsyncClient) -> None:
        pulling = asyncio.create_task(once(client))
        await pushed(rpcd.Output(client, "cows"), "first")
        await pulling

    run(both, peer.url)
    return peer


async def pushed(output: rpcd.Output, body: Any) -> None:
    """Push as soon as somebody pulls."""
    while True:
        try:
            return await output.push(body)
        except rpcd.Unroutable:
            await asyncio.sleep(0.05)


async def published(output: rpcd.Output, body: Any) -> None:
    """Publish as soon as somebody subscribes."""
    while True:
        try:
            return await output.publish(body, mandatory=True)
        except (rpcd.Unroutable, rpcd.PublishRefused):
            await asyncio.sleep(0.05)


async def asked(output: rpcd.Output, body: Any, **options: Any) -> Any:
    """Ask as soon as somebody responds."""
    while True:
        try:
            return await output.request(body, **options)
        except rpcd.Unroutable:
            await asyncio.sleep(0.05)


def test_a_pulled_message_is_acked_when_the_loop_goes_on(farm: Peer) -> None:
    async def main(client: rpcd.AsyncClient) -> None:
        for number in range(5):
            await rpcd.Output(client, "cows").push(number)
        seen: list[int] = []
        async for message in client.pull("cows"):
            seen.append(message.body)
            assert message.queue == "push_pull.cows"
            if message.body == 4:
                break
        assert seen == [0, 1, 2, 3, 4]

    run(main, farm.url)
    assert [each.json for each in farm.left("push_pull.cows")] == [4]  # the loop was left over it


@pytest.mark.parametrize("way", ["break", "raise", "cancel"])
def test_a_message_that_the_loop_is_left_over_goes_back(farm: Peer, way: str) -> None:
    async def main(client: rpcd.AsyncClient) -> None:
        output, begun = rpcd.Output(client, "cows"), asyncio.Event()
        await output.push("bella")

        async def leaving() -> None:
            async for _message in client.pull("cows"):
                begun.set()
                if way == "raise":
                    raise KeyError("the bucket")
                if way == "cancel":
                    await asyncio.sleep(SECONDS)
                break

        task = asyncio.create_task(leaving())
        await begun.wait()
        if way == "cancel":
            task.cancel()
        await asyncio.wait([task])
        async for message in client.pull("cows"):
            assert (message.body, message.redelivered) == ("bella", True)
            message.ack()
            break

    run(main, farm.url)
    assert farm.left("push_pull.cows") == []


def test_what_was_sent_ahead_goes_back_as_well_when_a_block_ends(farm: Peer) -> None:
    async def main(client: rpcd.AsyncClient) -> None:
        for number in range(10):
            await rpcd.Output(client, "cows").push(number)
        async with client.pull("cows", prefetch=10) as cows:
            async for message in cows:
                if message.body == 2:
                    message.drop()
                if message.body == 3:
                    break
        assert [message async for message in cows] == []  # it is closed

    run(main, farm.url)
    assert sorted(each.json for each in farm.take("push_pull.cows", 7)) == [3, 4, 5, 6, 7, 8, 9]
    assert farm.get("push_pull.cows.archive").json == 2


def test_a_subscriber_hears_everything_and_others_hear_it_too(peer: Peer) -> None:
    async def main(client: rpcd.AsyncClient) -> None:
        other = rpcd.AsyncClient(peer.url)

        async def hearing(ears: rpcd.AsyncClient, subscribed: asyncio.Event) -> list[Any]:
            heard = []
            async for message in ears.subscribe("cows", prefix="farm"):
                subscribed.set()
                heard.append(message.body)
                if message.body == "end":
                    break
            return [each for each in heard if each != "hello"]

        subscribed = [asyncio.Event(), asyncio.Event()]
        tasks = [asyncio.create_task(hearing(*each)) for each in zip((client, other), subscribed, strict=True)]
        output = rpcd.Output(client, "cows", prefix="farm")
        while not all(each.is_set() for each in subscribed):
            await published(output, "hello")
        for number in range(20):
            await output.publish(number)
        await output.publish("end")
        assert await asyncio.gather(*tasks) == [[*range(20), "end"]] * 2
        await other.close()

    run(main, peer.url)


@dataclasses.dataclass
class Cow:
    name: str
    age: int


def test_what_nobody_hears_is_published_all_the_same(peer: Peer) -> None:
    with rpcd.Client(peer.url) as client:
        output = rpcd.Output(client, "cows")
        output.publish("moo")
        peer.channel.exchange_declare("publish_subscribe.cows", "fanout", passive=True)
        queue = peer.channel.queue_declare("", exclusive=True).method.queue
        peer.channel.queue_bind(queue, "publish_subscribe.cows")
        output.publish("mooo")
        output.publish("moooo", headers={"loud": True})
        assert [each.json for each in peer.left(queue)] == ["mooo", "moooo"]


def test_an_exchange_that_is_made_otherwise_is_published_to_as_it_is(peer: Peer) -> None:
    peer.channel.exchange_declare("publish_subscribe.cows", "fanout", durable=True)
    queue = peer.channel.queue_declare("", exclusive=True).method.queue
    peer.channel.queue_bind(queue, "publish_subscribe.cows")
    with rpcd.Client(peer.url) as client:
        rpcd.Output(client, "cows").publish("moo")
    assert [each.json for each in peer.left(queue)] == ["moo"]


def test_an_exchange_that_is_forgotten_is_made_again_on_the_next_connection(peer: Peer, proxy: Proxy) -> None:
    with rpcd.Client(proxy.url(peer.url)) as client:
        output = rpcd.Output(client, "cows")
        output.publish("moo")
        peer.channel.exchange_delete("publish_subscribe.cows")
        proxy.cut()
        peer.until(lambda: proxy.named() == [])
        output.publish("mooo")
        peer.channel.exchange_declare("publish_subscribe.cows", "fanout", passive=True)


def test_publishing_to_nobody_ends_in_its_time() -> None:
    with rpcd.Client("amqp://127.0.0.1:1/") as client:
        output = rpcd.Output(client, "cows")
        with pytest.raises(rpcd.PublishTimeout, match=r"not published within 0\.2 s"):
            output.publish("moo", timeout=0.2)


def test_requests_are_answered_and_bad_ones_do_not_reach_the_loop(peer: Peer) -> None:
    async def main(client: rpcd.AsyncClient) -> None:
        async def responding() -> None:
            async for message in client.respond("cows", body_type=Cow):
                if message.body.name == "silent":
                    continue
                if message.body.age < 0:
                    await message.fail("no such age", {"age": message.body.age})
                    continue
                await message.reply({"older": message.body.age + 1})
                with pytest.raises(RuntimeError, match="answered already"):
                    await message.reply()

        task = asyncio.create_task(responding())
        output = rpcd.Output(client, "cows")
        assert await asked(output, Cow("bella", 3)) == {"older": 4}
        assert await output.request(Cow("silent", 3)) == {}
        with pytest.raises(rpcd.CallFailed, match="no such age") as failed:
            await output.request(Cow("rosa", -1))
        assert failed.value.data == {"age": -1}
        with pytest.raises(rpcd.CallFailed, match="Bad message: body"):
            await output.request({"name": "rosa"})
        task.cancel()
        await asyncio.wait([task])

    run(main, peer.url)
    assert peer.get("request_response.cows.archive").json == {"name": "rosa"}
    assert peer.left("request_response.cows") == []


def test_an_input_and_a_decorated_handler_share_a_queue(start: StartDaemon, peer: Peer) -> None:
    handlers = """
        import rpcd

        @rpcd.pull("cows")
        def milk(message):
            print("milked", message.body)

        @rpcd.respond("cows")
        def count(message):
            return {"by": "daemon"}
        """
    daemon = start('[service]\nmodules = ["handlers_of_test"]\n', handlers)

    async def main(client: rpcd.AsyncClient) -> None:
        pulled: list[int] = []

        async def pulling() -> None:
            async for message in client.pull("cows"):
                pulled.append(message.body)  # noqa: PERF401  # one by one, as they come

        task = asyncio.create_task(pulling())
        output = rpcd.Output(client, "cows")
        assert await output.request({}) == {"by": "daemon"}
        number = 0
        while not (pulled and "milked" in daemon.output):  # each of them gets some
            await output.push(number)
            number += 1
        task.cancel()
        await asyncio.wait([task])

    run(main, peer.url)
    assert daemon.stop() == 0


def test_an_input_goes_on_after_a_lost_connection(farm: Peer, proxy: Proxy) -> None:
    async def main(client: rpcd.AsyncClient) -> None:
        output = rpcd.Output(client, "cows")
        await output.push("bella")
        seen = []
        async for message in client.pull("cows"):
            seen.append((message.body, message.redelivered))
            if len(seen) == 1:
                proxy.cut()
                await pushed(output, "rosa")  # by the next connection
                assert message.redelivered is False
            elif {name for name, _ in seen} == {"bella", "rosa"} and len(seen) >= 3:
                message.ack()
                break
        assert seen[0] == ("bella", False)
        assert ("bella", True) in seen  # its ack has met a channel that was gone

    run(main, proxy.url(farm.url))


def test_an_input_goes_on_after_its_queue_was_deleted(farm: Peer) -> None:
    async def main(client: rpcd.AsyncClient) -> None:
        output = rpcd.Output(client, "cows")
        await output.push("bella")
        async for message in client.pull("cows"):
            if message.body == "rosa":
                message.ack()
                break
            message.ack()
            farm.channel.queue_delete("push_pull.cows")
            task = asyncio.create_task(pushed(output, "rosa"))
        await task

    run(main, farm.url)


def test_a_client_has_one_input_of_a_name(farm: Peer) -> None:
    async def main(client: rpcd.AsyncClient) -> None:
        cows = client.pull("cows")
        with pytest.raises(ValueError, match=r"has an input 'push_pull\.cows' already"):
            client.pull("cows")
        client.pull("cows", prefix="farm").close()
        cows.close()
        client.pull("cows").close()

    run(main, farm.url)


def test_the_end_of_the_client_is_the_end_of_the_loop(farm: Peer) -> None:
    async def main(client: rpcd.AsyncClient) -> None:
        await rpcd.Output(client, "cows").push("bella")
        async for _message in client.pull("cows"):
            await client.close()
        with pytest.raises(RuntimeError, match="the client is closed"):
            async for _message in client.pull("sheep"):
                pass

    run(main, farm.url)
    assert farm.get("push_pull.cows").json == "bella"


def test_a_queue_that_is_something_else_is_told(peer: Peer) -> None:
    peer.channel.queue_declare("push_pull.cows", durable=True)

    async def main(client: rpcd.AsyncClient) -> None:
        with pytest.raises(rpcd.RpcdError, match=r"push_pull\.cows.*inequivalent"):
            async for _message in client.pull("cows"):
                pass

    run(main, peer.url)


def test_a_message_of_an_input_holds_nothing_back(farm: Peer) -> None:
    async def main(client: rpcd.AsyncClient) -> None:
        await rpcd.Output(client, "cows").push("bella")
        async for message in client.pull("cows"):
            for send in (message.publish, message.publish_now, message.call):
                with pytest.raises(RuntimeError, match="publish and call by the client"):
                    send("", "anywhere")
            message.ack()
            break

    run(main, farm.url)
