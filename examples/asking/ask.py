"""Any program may ask: in a thread that waits, with futures, on asyncio, on Twisted's reactor."""

import asyncio

from twisted.internet import defer, task

import rpcd


def blocking():
    with rpcd.Client() as client:  # RABBITMQ_URL, or the broker on this machine
        print("waited:", client.call("", "orders", {"items": ["tea"]}, timeout=5))
        futures = [client.submit("", "prices", {"item": item}) for item in ("tea", "cup")]
        print("futures:", [future.result()["cents"] for future in futures])
        try:
            client.call("", "orders", {"items": ["gold"]})
        except rpcd.CallFailed as error:
            print("failed:", error.message)
        try:
            client.call("", "no-such-queue", {}, timeout=60)
        except rpcd.Unroutable as error:
            print("at once:", error)


async def on_asyncio():
    async with rpcd.AsyncClient() as client:
        orders = [client.call("", "orders", {"items": [item]}) for item in ("tea", "cup")]
        print("asyncio:", await asyncio.gather(*orders))


async def on_twisted(_reactor):
    client = rpcd.TwistedClient()
    orders = [client.call("", "orders", {"items": [item]}) for item in ("tea", "cup")]
    print("Deferreds:", await defer.gatherResults(orders))
    await client.close()


if __name__ == "__main__":
    blocking()
    asyncio.run(on_asyncio())
    task.react(lambda reactor: defer.Deferred.fromCoroutine(on_twisted(reactor)))
