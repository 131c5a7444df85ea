"""Handlers that register themselves by patterns; see `promised.py`."""

from typing import Any

from promised import do, tell

import rpcd


@rpcd.respond("cows")
def count(message: rpcd.Message[Any]) -> Any:
    output = rpcd.Output(message, "cows")
    kept = {"correlation_id": message.correlation_id}
    output.publish(message.body["say"], **kept)
    output.push({"name": "bella"}, **kept)
    return {"cows": 1}


@rpcd.pull("cows", retry={"delays": [0.1]})
def milk(message: rpcd.Message[Any]) -> None:
    tell(message, milked=message.body["name"])


@rpcd.subscribe("cows", retry={"delays": [0.1, 0.1]})
def hear(message: rpcd.Message[Any]) -> Any:
    return do(message)
