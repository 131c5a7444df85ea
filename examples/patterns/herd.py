"""The same queue, pulled by any asyncio program: python herd.py."""

import asyncio

import rpcd


async def main():
    async with rpcd.AsyncClient() as client:  # the broker is that of RABBITMQ_URL, or the one on this machine
        async for message in client.pull("cows"):
            print("milking", message.body["name"])
            if message.body["name"] == "rosa":
                message.ack()  # without it, she would be milked again by the next one: the loop is left over her
                break


asyncio.run(main())
