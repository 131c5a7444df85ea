"""Layers as the real daemon folds them: around functions, classes and async handlers."""

from daemon import StartDaemon
from peer import Peer

HANDLERS = """
    import logging
    import rpcd

    def audit(handler, config):
        logging.info("folded for %s", config["name"])

        def around(message):
            logging.info("before, body is a %s", type(message.body).__name__)
            try:
                return {config["name"]: handler(message)}
            except ValueError:
                raise rpcd.RequestFailed("audited") from None
            finally:
                message.publish("", "audited", {"queue": message.queue})

        return around

    def audit_async(handler):
        async def around(message):
            return ["async", await handler(message)]
        return around

    def forgets(handler):
        return lambda message: {"nothing": "awaited"}

    def stop(handler):
        def around(message):
            if message.body == "stop":
                raise rpcd.RequestFailed("stopped by a layer")
            return handler(message)
        return around

    class Work:
        layers = [stop]

        def __call__(self, message: rpcd.Message[str]):
            if message.body == "boom":
                raise ValueError("boom")
            return message.body

    async def later(message):
        return message.body

    attempts = []

    def late(handler):
        attempts.append(1)
        if len(attempts) < 2:
            raise OSError("not there yet")
        return handler
"""

CONFIG = """
    [queues.work]
    [queues.audited]
    [consumers.work]
    queue = "work"
    handler = "handlers_of_test:Work"
    workers = 3
    layers = ["audit"]
    [layers.audit]
    layer = "handlers_of_test:audit"
    name = "audited"
"""


def test_layers_are_folded_once_a_worker_and_see_what_the_handler_does(start: StartDaemon, peer: Peer) -> None:
    daemon = start(CONFIG, HANDLERS)
    for _ in range(9):
        assert peer.call("work", "hello").json["data"] == {"audited": "hello"}
    assert peer.call("work", "boom").json == {"success": False, "data": {}, "message": "audited"}
    assert peer.call("work", "stop").json["message"] == "stopped by a layer"
    assert peer.call("work", 5).json["data"]["place"] == "body"  # no layer sees what can't be opened
    assert len(daemon.wait_for("folded for audited", 3)) == 3
    assert len(daemon.wait_for("before, body is a str", 11)) == 11
    assert len(list(peer.take("audited", 9))) == 9  # what is published for a failure is not


def test_a_layer_around_an_async_handler_is_async(start: StartDaemon, peer: Peer) -> None:
    start(
        """
        [queues.work]
        [queues.wrong]
        [consumers.work]
        queue = "work"
        handler = "handlers_of_test:later"
        layers = ["handlers_of_test:audit_async"]
        [consumers.wrong]
        queue = "wrong"
        handler = "handlers_of_test:later"
        layers = ["handlers_of_test:forgets"]
        """,
        HANDLERS,
    )
    assert peer.call("work", 1).json["data"] == {"result": ["async", 1]}
    assert peer.call("wrong", 1).json["success"] is False


def test_a_layer_that_fails_when_it_is_folded_is_tried_again(start: StartDaemon, peer: Peer) -> None:
    daemon = start(
        CONFIG.replace(":audit", ":late").replace('name = "audited"', "").replace("workers = 3", ""), HANDLERS, wait=False
    )
    daemon.wait_for("handlers_of_test:Work can't be made; next try in 0.5 s")
    daemon.ready()
    assert peer.call("work", "here").json["data"] == {"result": "here"}


def test_a_layer_that_is_not_there_ends_the_process_with_its_place(start: StartDaemon) -> None:
    daemon = start(CONFIG.replace(":audit", ":audti"), HANDLERS, wait=False)
    assert daemon.wait() == 78
    assert (
        "consumers.work.layers[0]: handlers_of_test:audti: 'handlers_of_test' has no 'audti'; did you mean" in daemon.output
    )
