"""A handler whose body is an attrs class; it needs no more than rpcd itself."""

from typing import Annotated, Literal

import attrs
from msgspec import Meta

import rpcd


@attrs.define
class Movement:
    sku: str
    pieces: Annotated[int, Meta(gt=0)]
    direction: Literal["in", "out"] = "in"


class Count:
    def __init__(self):
        self.pieces = {}

    def __call__(self, message: rpcd.Message[Movement]):
        moved = message.body
        sign = 1 if moved.direction == "in" else -1
        self.pieces[moved.sku] = self.pieces.get(moved.sku, 0) + sign * moved.pieces
        return {"sku": moved.sku, "pieces": self.pieces[moved.sku]}
