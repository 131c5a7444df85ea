"""A payment must not be made twice, however often it is asked for."""

import itertools

import rpcd

numbers = itertools.count(1)


def pay(message: rpcd.Message):
    number = next(numbers)  # what must happen once
    message.publish("", "payments.made", {"number": number})
    return {"payment": number}
