"""The example of lanes and deadlines does what its guide says of it, with many messages at once."""

import pathlib
import shutil
from collections.abc import Iterator

import pytest
from daemon import Daemon
from peer import Peer

EXAMPLE = pathlib.Path(__file__).parent.parent.parent / "examples/lanes"


@pytest.fixture
def bank(tmp_path: pathlib.Path, url: str) -> Iterator[Daemon]:
    """The example's daemon."""
    shutil.copytree(EXAMPLE, tmp_path / "bank")
    daemon = Daemon(tmp_path / "bank/bank.toml", url).ready()
    yield daemon
    daemon.kill()


def test_the_books_are_right_although_sixteen_threads_keep_them(bank: Daemon, peer: Peer) -> None:
    for number in range(150):
        peer.publish("accounts", {"account": ("ada", "bob", "eve")[number % 3], "amount": number})
    for number, account in enumerate(("ada", "bob", "eve")):
        reply = peer.call("accounts", {"account": account, "amount": 0})  # comes behind all others of its account
        assert reply.json["data"] == {"balance": sum(range(number, 150, 3))}
    assert bank.stop() == 0


@pytest.mark.parametrize(("queue", "body"), [("reports", {"months": 600}), ("quotes", {"seconds": 60})])
def test_nobody_works_for_a_sender_that_waits_no_longer(bank: Daemon, peer: Peer, queue: str, body: object) -> None:
    answer = peer.call(queue, body, expiration="2000")
    assert answer.json == {"success": False, "data": {}, "message": "The deadline has passed"}
    bank.wait_for("done: deadline passed while it ran")
    assert bank.stop() == 0
