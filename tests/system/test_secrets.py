"""Keys change while messages flow: nothing is lost, and nothing is opened by a key that has gone."""

import pathlib
import signal

import pytest
from canary import CANARY
from daemon import StartDaemon
from fernet import keep, new_key, seal
from ledger import HANDLER, Ledger
from peer import Peer

CONFIG = """
[broker]
fernet_keys = ["${file:fernet.key}"]
[service]
drain_timeout = 60
[queues.work]
[consumers.work]
queue = "work"
handler = "handlers_of_test:handle"
workers = 2
"""

HANDLERS = (
    HANDLER
    + f"""
    def handle(message):
        assert message.body["password"].reveal() == {CANARY!r}
        return note(message)
"""
)


def test_security_12_keys_are_rotated_under_load_by_reloads_alone(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    old, new = new_key(), new_key()
    file = tmp_path / "fernet.key"
    keep(file, old)
    daemon = start(CONFIG, HANDLERS)
    ledger = Ledger(peer, "work")

    def load(*keys: str) -> None:
        for number in range(40):
            ledger.publish(body={"password": seal(keys[number % len(keys)], CANARY)})

    load(old)
    begun = 1
    for keys, senders in (((old, new), (old,)), ((new, old), (old, new)), ((new, old), (new,)), ((new,), (new,))):
        if keys == (new,):
            ledger.replies(len(ledger.published))  # no message under the old key is left: it may go
        keep(file, *keys)
        daemon.signal(signal.SIGHUP)
        load(*senders[:1])  # while it checks, drains and begins anew: what is sent now is opened before or after
        begun += 1
        daemon.wait_for("ready, consuming: ", begun)
        load(*senders)
    ledger.replies(len(ledger.published))
    assert set(ledger.succeeded) == set(ledger.published)
    assert peer.call("work", {"password": seal(old, CANARY)}).json["data"] == {
        "place": "body.password",
        "reason": "cannot be decrypted",
    }
    assert daemon.stop() == 0
    assert len(peer.left("work.archive")) == 1
    found = ledger.check(twice=0)
    assert sum(found["answered"].values()) == len(ledger.published)


@pytest.mark.parametrize("wrong", ["", "x", CANARY])
def test_a_reload_with_a_wrong_key_is_refused_and_the_old_ones_stay(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, wrong: str
) -> None:
    key = new_key()
    keep(tmp_path / "fernet.key", key)
    daemon = start(CONFIG, HANDLERS)
    keep(tmp_path / "fernet.key", key, wrong) if wrong else keep(tmp_path / "fernet.key")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for(r"reload refused: .*broker\.fernet_keys\[0\]: ")
    assert peer.call("work", {"password": seal(key, CANARY)}, message_id="x").json["success"] is True
    assert key not in daemon.output
