"""A thousand coroutines at once on a real broker: what becomes of them when something goes wrong, and endings that hang."""

import pathlib
import signal
from collections import Counter

import pytest
from daemon import StartDaemon
from peer import Peer

from rpcd.ops.rabbitmq import PrivateNode

HANDLERS = """
import asyncio, logging, os, pathlib, time
import rpcd

gate = pathlib.Path(__file__).with_name("gate")
ledger = os.open(pathlib.Path(__file__).with_name("ledger"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
running = 0

def write(line):
    os.write(ledger, f"{line}\\n".encode())

async def many(message):
    global running
    running += 1
    if running == 1000:
        logging.info("all are running")
    while not gate.exists():
        await asyncio.sleep(0.1)
    if message.body.get("halt"):
        raise rpcd.HaltConsumer(exit_code=3, reason="enough")
    write(message.message_id)

async def gather(message):
    await asyncio.gather(*(message.publish_now("", "out", {"number": number}) for number in range(500)))

class AsyncEnd:
    async def __call__(self, message):
        pass

    async def shutdown(self):
        logging.info("shutting down")
        await asyncio.Event().wait()

class BlockingEnd(AsyncEnd):
    def shutdown(self):
        logging.info("shutting down")
        time.sleep(300)

async def everybody(message):
    if message.body.get("cancel"):
        for task in asyncio.all_tasks():
            task.cancel()
        await asyncio.sleep(0)
    return {"id": message.message_id}
"""

CONFIG = """
[service]
drain_timeout = {drain}
[queues.work]
[queues.out]
[consumers.work]
queue = "work"
handler = "handlers_of_test:{handler}"
workers = {workers}
prefetch = {workers}
{more}
"""


def config(handler: str, *, workers: int = 1000, drain: float = 30, more: str = "") -> str:
    return CONFIG.format(handler=handler, workers=workers, drain=drain, more=more)


def written(tmp_path: pathlib.Path) -> Counter[str]:
    return Counter((tmp_path / "ledger").read_text().splitlines())


def give(peer: Peer, count: int) -> list[str]:
    ids = [f"m{number}" for number in range(count)]
    for each in ids:
        peer.publish("work", {}, message_id=each)
    return ids


def test_a_thousand_coroutines_outlive_their_connection_and_each_counts_once(
    start: StartDaemon, peer: Peer, node: PrivateNode, virtual_host: str, tmp_path: pathlib.Path
) -> None:
    daemon = start(config("many"), HANDLERS)
    ids = give(peer, 1000)
    daemon.wait_for("all are running")
    node.ctl("close_all_connections", "--vhost", virtual_host, "cut")
    daemon.wait_for("INFO rpcd.consumer: consuming", 2)
    (tmp_path / "gate").touch()
    assert daemon.stop() == 0
    assert written(tmp_path) == Counter(ids)
    again = Peer(peer.url)
    assert again.left("work") == []
    again.close()


@pytest.mark.parametrize("halts", [False, True])
def test_a_stop_lets_a_thousand_coroutines_end(start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, halts: bool) -> None:
    daemon = start(config("many"), HANDLERS)
    ids = give(peer, 999 if halts else 1000)
    if halts:
        peer.publish("work", {"halt": True}, message_id="halt")
    daemon.wait_for("all are running")
    give(peer, 5)
    if not halts:
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("SIGTERM: stopping")
    (tmp_path / "gate").touch()
    assert daemon.wait() == (3 if halts else 0)
    done = written(tmp_path)
    if not halts:
        assert done == Counter(ids)
    left = Counter(message.properties.message_id for message in peer.left("work"))
    assert done + left == Counter(ids) + Counter([f"m{number}" for number in range(5)])


def test_hundreds_of_publications_are_awaited_together(start: StartDaemon, peer: Peer) -> None:
    start(config("gather", workers=4), HANDLERS)
    peer.call("work", {})
    assert sorted(message.json["number"] for message in peer.left("out")) == list(range(500))


@pytest.mark.parametrize("handler", ["AsyncEnd", "BlockingEnd"])
def test_a_shutdown_that_hangs_holds_the_stop_no_longer_than_drain_timeout(
    start: StartDaemon, peer: Peer, handler: str
) -> None:
    daemon = start(config(handler, workers=4, drain=0.5), HANDLERS)
    peer.call("work", {})
    daemon.signal(signal.SIGTERM)
    daemon.wait_for("shutting down")
    assert daemon.wait() == 75


def test_a_handler_that_cancels_everybody_harms_neither_the_next_one_nor_the_stop(start: StartDaemon, peer: Peer) -> None:
    daemon = start(config("everybody", workers=4), HANDLERS)
    assert peer.call("work", {"cancel": True}).json["success"] is False
    assert peer.call("work", {}, message_id="next").json["data"] == {"id": "next"}
    assert daemon.stop() == 0
