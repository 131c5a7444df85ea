"""Two services: orders asks prices."""

import asyncio

import attrs

import rpcd

CENTS = {"tea": 250, "cup": 700}


@attrs.define
class Price:
    item: str
    cents: int


def price(message):
    item = message.body["item"]
    if item not in CENTS:
        raise rpcd.RequestFailed(f"we have no {item}", {"known": sorted(CENTS)})
    return Price(item, CENTS[item])


def order(message):
    total = 0
    for item in message.body["items"]:
        try:
            found = message.call("", "prices", {"item": item}, timeout=5, reply_type=Price)
        except rpcd.CallFailed as error:  # the other service said so: tell our own caller, in our own words
            raise rpcd.RequestFailed(f"can't be ordered: {error.message}") from None
        total += found.cents
    return {"total": total}


async def order_at_once(message):
    calls = [message.call("", "prices", {"item": item}, reply_type=Price) for item in message.body["items"]]
    return {"total": sum(found.cents for found in await asyncio.gather(*calls))}
