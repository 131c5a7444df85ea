"""Async handlers: many at a time on one event loop."""

import asyncio

import rpcd


async def convert(message):
    await asyncio.sleep(0.1)  # ask somebody
    return {"amount": message.body["amount"] * 1.1}


class Collect:
    def __init__(self, config):
        self.most = config["most"]
        self.seen = 0  # one instance, used on the loop alone: no lock is needed

    async def __call__(self, message):
        if self.seen >= self.most:
            raise rpcd.Nack(delay=5)
        self.seen += 1
        await message.publish_now("", "rates.log", {"seen": self.seen})  # waits until the broker has it

    async def shutdown(self, exception=None):
        """Close what was opened."""
