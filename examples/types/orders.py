"""A handler whose body is a model of pydantic (pip install "rpcd[pydantic]")."""

import datetime as dt

from pydantic import BaseModel, Field, field_validator

import rpcd


class Item(BaseModel):
    sku: str = Field(pattern=r"^[a-z]+-\d+$")
    count: int = Field(1, gt=0, le=100)


class Order(BaseModel):
    customer: str = Field(min_length=2)
    items: list[Item] = Field(min_length=1)
    deliver_on: dt.date | None = None

    @field_validator("customer")
    @classmethod
    def known(cls, customer: str) -> str:
        if customer == "mallory":
            raise rpcd.BadValue("no such customer")  # these words are sent to the caller; those of other errors never are
        return customer


class Receipt(BaseModel):
    customer: str
    pieces: int
    deliver_on: dt.date


def place(message: rpcd.Message[Order]) -> Receipt:
    order = message.body
    day = order.deliver_on or dt.date(2026, 1, 2)
    return Receipt(customer=order.customer, pieces=sum(item.count for item in order.items), deliver_on=day)
