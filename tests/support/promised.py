"""The handlers that the promises of `conformance.py` are about; the harness and the daemon import the same."""

import itertools
import os
import pathlib
import threading
from typing import Any

import attrs

import rpcd


class Boom(Exception):
    """What nobody expects."""


def tell(message: rpcd.Message[Any], **more: Any) -> None:
    """Say at once that a handler runs, so that the world outside can count."""
    message.publish_now("", "seen", told(message, more), **ids(message))


def ids(message: rpcd.Message[Any]) -> dict[str, Any]:
    """What a message is known by; one handler's message leads to another's."""
    return {"correlation_id": message.correlation_id, "message_id": message.message_id}


def told(message: rpcd.Message[Any], more: dict[str, Any]) -> dict[str, Any]:
    return {
        "attempt": message.attempt,
        "nacks": message.nacks,
        "redelivered": message.redelivered,
        "exchange": message.exchange,
        "key": message.routing_key,
        "deadline": message.deadline is not None,
        "died_in": [death["queue"] for death in message.headers.get("x-death", [])],
        **more,
    }


RAISE = {
    "boom": lambda _body: Boom("a secret text"),
    "exit": lambda _body: SystemExit(0),
    "request_failed": lambda _body: rpcd.RequestFailed("customer is blocked", {"customer": 7}),
    "permanent": lambda _body: rpcd.PermanentFailure("no such warehouse"),
    "drop": lambda _body: rpcd.Drop(),
    "retry": lambda body: rpcd.Retry(body.get("delay")),
    "nack": lambda body: rpcd.Nack(body.get("delay")),
    "halt": lambda _body: rpcd.HaltConsumer(0, "enough"),
}

RETURN = {
    "object": lambda: {"number": 17},
    "nothing": lambda: None,
    "list": lambda: [1, 2],
    "reply": lambda: rpcd.Reply({"a": 1}, message="done"),
    "unencodable": lambda: {"value": object()},
    "too much": lambda: "x" * 5000,
    "generator": lambda: (number for number in range(3)),
}


def do(message: rpcd.Message[Any]) -> Any:
    """Do what the body says, as often as its `times` says; then return an object."""
    body = message.body
    tell(message)
    for each in body.get("publish", ()):
        message.publish(*each["to"], {"n": each["n"]}, correlation_id=message.correlation_id, **each.get("options", {}))
    for each in body.get("publish_now", ()):
        try:
            message.publish_now(
                *each["to"], {"n": each["n"]}, correlation_id=message.correlation_id, **each.get("options", {})
            )
        except rpcd.PublishError as error:
            if body.get("catch"):
                return {"error": type(error).__name__}
            raise
    what = body.get("do", "object")
    runs = message.attempt + message.nacks + message.redelivered
    if what in RAISE and runs <= body.get("times", 99):
        raise RAISE[what](body)
    return RETURN.get(what, RETURN["object"])()


async def do_async(message: rpcd.Message[Any]) -> Any:
    """Do what the body says, on a loop."""
    body = message.body
    await message.publish_now("", "seen", told(message, {}), **ids(message))
    if body["do"] == "forget":
        message.publish_now("", "no.such.queue", {}, mandatory=True)
    if body["do"] in RAISE:
        raise RAISE[body["do"]](body)
    return RETURN.get(body["do"], RETURN["object"])()


@attrs.define
class Order:
    customer: str
    items: list[str] = attrs.Factory(list)


def typed(message: rpcd.Message[Order]) -> Any:
    tell(message)
    return {"customer": message.body.customer}


def echo(message: rpcd.Message[Any]) -> Any:
    tell(message)
    return {"body": message.body, "kind": type(message.body).__name__}


class Counted:
    """A class whose instances have numbers."""

    numbers = itertools.count(1)

    def __init__(self, config: dict[str, Any]) -> None:
        self.number = next(self.numbers)
        self.greeting = config["greeting"]

    def __call__(self, message: rpcd.Message[Any]) -> Any:
        if message.body.get("do") in RAISE:
            raise RAISE[message.body["do"]](message.body)
        return {"number": self.number, "greeting": self.greeting}

    def shutdown(self, exception: BaseException | None = None) -> None:
        """Nothing is open."""


def ask(message: rpcd.Message[Any]) -> Any:
    tell(message)
    try:
        return {"answer": message.call("", message.body["whom"], {"of": "tea"}, timeout=10, message_id=message.message_id)}
    except rpcd.CallFailed as error:
        return {"failed": error.message, "data": error.data}
    except rpcd.PublishError as error:
        return {"error": type(error).__name__}


def hold(message: rpcd.Message[Any]) -> Any:
    """Run until a file is there: the world takes the connection away meanwhile."""
    tell(message)
    place = os.environ.get("PROMISED_GO")
    while place is not None and not pathlib.Path(place).exists():
        threading.Event().wait(0.02)
    return {"held": True}


def stamped(handler: Any) -> Any:
    """Put a stamp around what a handler returns: a layer."""

    def call(message: rpcd.Message[Any]) -> Any:
        if message.body.get("refuse"):
            raise rpcd.RequestFailed("refused by a layer")
        return {"stamped": handler(message)}

    return call


class Locked:
    """A class that names its own lock."""

    lock = "body.customer"

    def __call__(self, message: rpcd.Message[Any]) -> Any:
        return {"customer": message.body["customer"]}


@attrs.define
class Card:
    number: rpcd.Secret[str]


def pay(message: rpcd.Message[Card]) -> Any:
    tell(message)
    return {"length": len(message.body.number.reveal()), "shown": str(message.body.number)}


def sign_in(message: rpcd.Message[Any]) -> Any:
    password = message.body["password"]
    return {"kind": type(password).__name__, "length": len(password.reveal())}
