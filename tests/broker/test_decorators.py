"""Handlers that register themselves, as the real daemon runs them."""

import re

import pytest
from daemon import StartDaemon
from peer import Peer

EVENTS = """
    import rpcd

    @rpcd.message_handler(
        ["order.*", "stock.#"], exchange="shop", queue="changes", retry={"delays": [0.1]}, on_error="retry"
    )
    def changed(message):
        if message.body == "again" and message.attempt == 1:
            raise OSError("the database is down")
        return {"key": message.routing_key, "attempt": message.attempt}

    @rpcd.message_handler("two", exchange="money", queue="second")
    @rpcd.message_handler("one", exchange="money")
    class Paid:
        def __init__(self, config):
            self.config = config

        def __call__(self, message):
            return {"queue": message.queue, **self.config}
"""

CONFIG = """
    [service]
    modules = ["handlers_of_test"]
    [exchanges.shop]
    [exchanges.money]
    type = "direct"
    [consumers.second.config]
    currency = "NOK"
"""


def test_what_a_decorator_asks_for_is_what_its_handler_is_sent(start: StartDaemon, peer: Peer) -> None:
    daemon = start(CONFIG, EVENTS)
    assert "ready, consuming: " in daemon.output
    for key in ("order.placed", "stock", "stock.oslo.tea"):
        assert peer.call(key, {}, "shop").json["data"] == {"key": key, "attempt": 1}
    assert peer.call("order.placed", "again", "shop").json["data"] == {"key": "order.placed", "attempt": 2}
    assert peer.call("one", {}, "money").json["data"] == {"queue": "handlers_of_test.Paid"}
    assert peer.call("two", {}, "money").json["data"] == {"queue": "second", "currency": "NOK"}
    assert daemon.stop() == 0


def test_an_archived_message_names_its_decorated_handler(start: StartDaemon, peer: Peer) -> None:
    start(CONFIG, EVENTS.replace('if message.body == "again" and message.attempt == 1', "if True"))
    peer.publish("order.placed", {}, "shop")
    headers = peer.get("changes.archive").headers
    assert (headers["x-rpcd-handler"], headers["x-rpcd-consumer"]) == ("handlers_of_test:changed", "changes")
    assert (headers["x-rpcd-exchange"], headers["x-rpcd-routing-key"], headers["x-rpcd-attempt"]) == (
        "shop",
        "order.placed",
        2,
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('queue="changes"', 'queue="changes", wrokers=2'), r"there is no setting 'wrokers'; did you mean 'workers'\?"),
        (('queue="changes"', 'queue="changes", workers=0'), "^@message_handler handlers_of_test:changed, workers: expected"),
        (('exchange="shop"', 'exchange=""'), r"exchange is empty; .*handlers_of_test.py, line 4\)"),
        (
            ("rpcd.message_handler", "(lambda *_keys, **_settings: lambda decorated: decorated)"),
            r"service.modules\[0\]: handlers_of_test registers no handler",
        ),
    ],
)
def test_a_wrong_decorator_ends_the_daemon_as_a_wrong_config_does(
    start: StartDaemon, change: tuple[str, str], said: str
) -> None:
    daemon = start(CONFIG, EVENTS.replace(*change), at="amqp://127.0.0.1:1/", wait=False)
    assert daemon.wait() == 78
    assert re.search(said, daemon.output, re.MULTILINE)
    assert "Traceback" not in daemon.output


def test_an_exchange_that_is_not_there_is_waited_for_and_told_with_the_decorator_that_wants_it(
    start: StartDaemon, peer: Peer
) -> None:
    daemon = start(CONFIG.replace("[exchanges.shop]", ""), EVENTS, wait=False)
    daemon.wait_for("@message_handler handlers_of_test:changed, bindings.0.: the broker refused .*; waiting for it")
    peer.channel.exchange_declare("shop", "topic", durable=True)
    daemon.ready()
    assert peer.call("stock", {}, "shop").json["success"] is True
