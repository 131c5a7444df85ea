"""A message whose handler ends the process: the broker convicts it alone, and its neighbours are handled."""

import pathlib
import re
import signal

import pytest
from daemon import Daemon, StartDaemon
from ledger import HANDLER, Ledger, runs
from peer import Peer

HANDLERS = (
    HANDLER
    + """
    import faulthandler, os

    faulthandler.disable()

    def work(message):
        answer = note(message)
        what = message.headers.get("what")
        if what == "exit":
            os._exit(7)
        if what == "fault":
            faulthandler._sigsegv()
        return answer

    async def work_async(message):
        return work(message)
    """
)

CONFIG = """
[queues.work]
delivery_limit = {limit}
[consumers.work]
queue = "work"
handler = "handlers_of_test:{handler}"
workers = 8
prefetch = 16
"""


class Unit:
    """What systemd does for a unit: starts the daemon again whenever it ends by itself. It looks when it is told to."""

    def __init__(self, start: StartDaemon, config: str) -> None:
        self.codes: list[int] = []
        self.output = ""
        self._start = start
        self._config = config
        self._begin()

    def _begin(self) -> None:
        self.daemon: Daemon = self._start(self._config, HANDLERS, wait=False, PYTHONFAULTHANDLER="")

    def look(self) -> None:
        if self.daemon.process.poll() is not None:
            self.codes.append(self.daemon.wait())
            self.output += self.daemon.output + "\n"
            self._begin()

    def stop(self) -> None:
        self.daemon.ready()
        assert self.daemon.stop() == 0
        self.output += self.daemon.output


def declare(start: StartDaemon, config: str) -> None:
    """Let a daemon make the queues, and stop it."""
    assert start(config, HANDLERS).stop() == 0


def convicted(peer: Peer, ledger: Ledger, units: list[Unit], count: int) -> list[str]:
    """Wait until so many messages are in the archive and all others are answered; return the ids in the archive."""
    found: list[str] = []

    def done() -> bool:
        for each in units:
            each.look()
        if peer.exists("work.archive"):
            for message in peer.left("work.archive"):
                assert message.headers["x-first-death-reason"] == "delivery_limit"
                found.append(str(message.properties.message_id))
        ledger.collect()
        return len(found) >= count and len(ledger.answered) >= len(ledger.published) - count

    def said() -> str:
        unanswered = set(ledger.published) - set(ledger.answered)
        return f"archived: {found}, not answered: {unanswered}\n" + "\n".join(
            each.output + each.daemon.output for each in units
        )

    peer.until(done, 100, said)
    for each in units:
        each.stop()
    return found


def check(peer: Peer, ledger: Ledger, units: list[Unit], guilty: list[str], tmp_path: pathlib.Path) -> None:
    """Insist that the guilty, and nobody else, were convicted by the broker, and that all others were answered."""
    found = convicted(peer, ledger, units, len(guilty))
    assert sorted(found) == sorted(guilty), f"convicted: {found}, guilty: {guilty}"
    assert set(ledger.answered) == set(ledger.published) - set(guilty)
    assert set(runs(tmp_path)) == set(ledger.published)
    deaths = sum(len(each.codes) for each in units)
    ledger.published = [each for each in ledger.published if each not in guilty]  # this test took them out itself
    ledger.check(twice=16 * deaths)  # an answer may have left just before the process ended, and its ack not


def alone(unit: Unit, guilty: str) -> list[int]:
    """Tell how often a message had come back, each time that it ran alone."""
    said = rf"message {guilty} came back (\d+) times, perhaps because it ends the process: it runs alone"
    return [int(found) for found in re.findall(said, unit.output)]


@pytest.mark.parametrize(("what", "code", "handler"), [("exit", 7, "work"), ("fault", -signal.SIGSEGV, "work_async")])
def test_fault_36_a_message_that_ends_the_process_is_convicted_alone(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, what: str, code: int, handler: str
) -> None:
    unit = Unit(start, CONFIG.format(limit=6, handler=handler))
    unit.daemon.ready()
    ledger = Ledger(peer, "work")
    ledger.publish(10)
    (guilty,) = ledger.publish(headers={"what": what})
    ledger.publish(20)
    check(peer, ledger, [unit], [guilty], tmp_path)
    assert unit.codes == [code] * 7, "it is given up when it comes back once more than the delivery limit says"
    assert alone(unit, guilty) == [3, 4, 5, 6]
    assert runs(tmp_path)[guilty] == 7


def test_fault_36_at_the_default_limit_and_in_the_middle_of_its_career(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    config = CONFIG.format(limit=20, handler="work")
    declare(start, config)
    ledger = Ledger(peer, "work")
    (guilty,) = ledger.publish(headers={"what": "exit"})
    for _ in range(18):  # other processes have died of it
        method, _properties, _body = peer.channel.basic_get("work")
        peer.channel.basic_nack(method.delivery_tag)
    ledger.publish(30)
    unit = Unit(start, config)
    check(peer, ledger, [unit], [guilty], tmp_path)
    assert alone(unit, guilty) == [18, 19, 20]
    assert len(unit.codes) == 3


def test_fault_36_two_of_them(start: StartDaemon, peer: Peer, tmp_path: pathlib.Path) -> None:
    unit = Unit(start, CONFIG.format(limit=4, handler="work"))
    unit.daemon.ready()
    ledger = Ledger(peer, "work")
    ledger.publish(5)
    guilty = ledger.publish(headers={"what": "exit"})
    ledger.publish(3)
    guilty += ledger.publish(headers={"what": "fault"})
    ledger.publish(22)
    check(peer, ledger, [unit], guilty, tmp_path)


def test_fault_36_two_daemons_on_one_queue(start: StartDaemon, peer: Peer, tmp_path: pathlib.Path) -> None:
    config = CONFIG.format(limit=6, handler="work")
    ledger = Ledger(peer, "work")
    units = [Unit(start, config), Unit(start, config)]
    for each in units:
        each.daemon.ready()
    ledger.publish(10)
    (guilty,) = ledger.publish(headers={"what": "exit"})
    ledger.publish(20)
    check(peer, ledger, units, [guilty], tmp_path)
    assert sum(len(each.codes) for each in units) <= 7


def test_fault_36_a_tiny_delivery_limit_convicts_nobody_else(start: StartDaemon, peer: Peer, tmp_path: pathlib.Path) -> None:
    unit = Unit(start, CONFIG.format(limit=1, handler="work"))
    unit.daemon.ready()
    ledger = Ledger(peer, "work")
    ledger.publish(3)
    (guilty,) = ledger.publish(headers={"what": "exit"})
    ledger.publish(27)
    check(peer, ledger, [unit], [guilty], tmp_path)
    assert len(unit.codes) == 2
