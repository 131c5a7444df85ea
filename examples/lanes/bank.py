"""One message of an account at a time, and work that ends when nobody waits for it any more."""

import asyncio
import time

import rpcd

balances = {}


class Book:
    lock = "body.account"  # two threads never have the same account, and each account's orders keep their order

    def __call__(self, message):
        account, amount = message.body["account"], message.body["amount"]
        before = balances.get(account, 0)
        time.sleep(0.01)  # ask somebody; without the lock another thread would book meanwhile
        balances[account] = before + amount
        return {"balance": balances[account]}


def report(message):
    for _month in range(message.body["months"]):
        if message.cancelled:  # look between two steps: nobody can interrupt a thread
            raise rpcd.DeadlinePassed
        time.sleep(0.1)  # the work of a month
    return {"months": message.body["months"]}


async def quote(message):
    await asyncio.sleep(message.body["seconds"])  # cancelled here at the deadline
    return {"price": 7}
