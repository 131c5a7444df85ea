"""Encrypted values against a real broker: what is opened, what is refused, and that nobody but the handler sees it."""

import json
import pathlib
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from canary import CANARY
from command import rpcd
from cryptography.fernet import Fernet
from daemon import Daemon, StartDaemon
from fernet import keep, new_key, seal
from inputs import Inputs, ended
from peer import Peer
from proxy import Proxy

from rpcd.core.crypto import Keyring
from rpcd.ops.rabbitmq import PrivateNode

KEY, OLD, OTHER = new_key(), new_key(), new_key()

HANDLERS = """
    import attrs
    import rpcd

    @attrs.define
    class Order:
        card: rpcd.Secret[str]
        pin: rpcd.Secret[int] | None = None

    def typed(message: rpcd.Message[Order]):
        return {"length": len(message.body.card.reveal()), "shown": f"{message.body}"}

    async def tasks(message: rpcd.Message[Order]):
        return {"length": len(message.body.card.reveal()), "shown": f"{message.body}"}

    def named(message):
        password = message.body["password"]
        return {"length": len(password.reveal()), "shown": str(password)}

    def opportunistic(message):
        return {name: len(value) for name, value in message.body.items()}

    def whole(message):
        return {"names": sorted(message.body)}

    def aged(message):
        return {"length": len(message.body["password"].reveal())}

    def later(message):
        raise rpcd.Retry
"""

CONFIG = """
    [broker]
    fernet_keys = ["${file:fernet.key}"]
    [queues.typed]
    [consumers.typed]
    queue = "typed"
    handler = "input_handlers:typed"
    lock = "body.card"
    [queues.tasks]
    [consumers.tasks]
    queue = "tasks"
    handler = "input_handlers:tasks"
    [queues.named]
    [consumers.named]
    queue = "named"
    handler = "input_handlers:named"
    [queues.opportunistic]
    [consumers.opportunistic]
    queue = "opportunistic"
    handler = "input_handlers:opportunistic"
    secrets = "opportunistic"
    [queues.whole]
    [consumers.whole]
    queue = "whole"
    handler = "input_handlers:whole"
    encrypted = true
"""

QUEUES = ("typed", "tasks", "named", "opportunistic", "whole")


@pytest.fixture(scope="module")
def inputs(node: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inputs]:
    directory = tmp_path_factory.mktemp("secrets")
    keep(directory / "fernet.key", KEY, OLD)
    yield from ended(Inputs(node, "secrets", directory, CONFIG, HANDLERS), *QUEUES)


def test_every_key_opens_and_the_handler_alone_sees_what_was_sealed(inputs: Inputs) -> None:
    for key in (KEY, OLD):
        token = seal(key, CANARY)
        for queue in ("typed", "tasks"):
            answer = inputs.peer.call(queue, {"card": token, "pin": seal(key, 1234)}).json["data"]
            assert answer == {"length": len(CANARY), "shown": "Order(card=Secret('****'), pin=Secret('****'))"}
        assert inputs.peer.call("named", {"password": token}).json["data"] == {"length": len(CANARY), "shown": "****"}
        found = inputs.peer.call("opportunistic", {"a": token, "b": CANARY, "password": "plain"}).json["data"]
        assert found == {"a": len(CANARY), "b": len(CANARY), "password": 5}
        whole = seal(key, {"a": 1, "b": CANARY}).encode()
        assert inputs.peer.call("whole", whole, content_type="application/json").json["data"] == {"names": ["a", "b"]}


TOKEN = seal(KEY, CANARY)

NO_TOKEN: dict[str, Any] = {
    "plain text": CANARY,
    "empty": "",
    "truncated": TOKEN[:-4],
    "cut in the middle": TOKEN[:40],
    "a wrong key": seal(OTHER, CANARY),
    "another alphabet": next(
        each for each in (seal(KEY, CANARY * 9) for _ in range(1000)) if "-" in each or "_" in each
    ).translate(str.maketrans("-_", "+/")),
    "altered": TOKEN[:-20] + ("A" if TOKEN[-20] != "A" else "B") + TOKEN[-19:],
    "a newline at its end": TOKEN + "\n",
    "huge": "g" * 4_000_000,
    "null": None,
    "a number": 5,
    "an object": {"token": CANARY},
    "not ASCII": "é" + TOKEN,
}


@pytest.mark.parametrize("what", NO_TOKEN)
def test_input_26_what_is_no_token_is_refused_with_the_field_and_never_taken_as_it_is(inputs: Inputs, what: str) -> None:
    value = NO_TOKEN[what]
    for queue, field in (("typed", "card"), ("tasks", "card"), ("named", "password")):
        answer = inputs.peer.call(queue, {field: value}).json
        place = "body.password[...]" if queue == "named" and what == "an object" else f"body.{field}"
        assert answer["success"] is False
        assert answer["data"] == {"place": place, "reason": "cannot be decrypted"}
        assert answer["message"] == f"Bad message: {place}: cannot be decrypted"
        assert json.loads(inputs.archived(queue).body) == {field: value}
    if isinstance(value, str):
        answer = inputs.peer.call("whole", value.encode(), content_type="application/json").json
        assert answer["data"] == {"place": "body", "reason": "cannot be decrypted"}
        assert inputs.archived("whole").body == value.encode()
    inputs.unharmed()


def test_input_26_the_log_names_the_field_and_nothing_of_what_was_in_it(inputs: Inputs) -> None:
    inputs.peer.publish("named", {"password": CANARY}, message_id="told")
    (line,) = inputs.daemon.wait_for("archived: bad message: body.password: cannot be decrypted.*told")
    assert CANARY not in line
    assert inputs.archived("named").body


def test_input_28_a_token_that_is_moved_to_another_field_is_opened_there(inputs: Inputs) -> None:
    token = seal(KEY, "1234")
    assert inputs.peer.call("typed", {"card": token, "pin": token}).json["data"]["length"] == 4
    assert inputs.peer.call("named", {"password": token}).json["data"]["length"] == 4


# How old a token may be ---------------------------------------------------------------------------

AGED = """
    [broker]
    fernet_keys = ["${file:fernet.key}"]
    fernet_ttl = 3600
    [queues.aged]
    [consumers.aged]
    queue = "aged"
    handler = "handlers_of_test:aged"
    [queues.later]
    [consumers.later]
    queue = "later"
    handler = "handlers_of_test:later"
    retry = { delays = [1000] }
"""


@pytest.fixture
def aged(start: StartDaemon, tmp_path: pathlib.Path) -> Daemon:
    keep(tmp_path / "fernet.key", KEY, OLD)
    return start(AGED, HANDLERS)


def test_input_27_a_token_that_is_too_old_or_from_the_future_is_refused(aged: Daemon, peer: Peer) -> None:
    def reason(age: float) -> str | None:
        found = peer.call("aged", {"password": seal(KEY, CANARY, age)}).json
        return None if found["success"] else str(found["data"]["reason"])

    assert reason(0) is None
    assert reason(1800) is None
    assert reason(-20) is None
    assert reason(3700) == "cannot be decrypted: the token has expired"
    assert reason(10**8) == "cannot be decrypted: the token has expired"
    assert reason(-3600) == "cannot be decrypted: the token is from the future (is the sender's clock right?)"
    aged.wait_for("archived: bad message: body.password: cannot be decrypted: the token has expired", 2)
    aged.wait_for("archived: bad message: body.password: cannot be decrypted: the token is from the future")
    assert len(peer.left("aged.archive")) == 3


def test_input_27_the_age_counts_at_the_first_arrival_and_a_client_can_not_claim_another(aged: Daemon, peer: Peer) -> None:
    body = json.dumps({"password": seal(KEY, CANARY)}).encode()
    before = time.time()
    peer.publish("later", body)
    copy = peer.get("later.retry.1000000")
    arrival = Keyring([KEY]).arrival(copy.headers["x-rpcd-arrival"], body)
    assert arrival is not None
    assert before - 1 <= arrival <= time.time()
    long_ago = time.time() - 10**6
    old = json.dumps({"password": seal(KEY, CANARY, 10**6)}).encode()
    for key, answer in ((KEY, True), (OLD, True), (OTHER, False)):  # as it comes back from a retry, long after
        mark = Keyring([key]).mark(long_ago, old)
        assert peer.call("aged", old, headers={"x-rpcd-arrival": mark}).json["success"] is answer
    for forged in (f"{long_ago:.3f}", int(long_ago), Keyring([KEY]).mark(long_ago, body)):
        assert peer.call("aged", old, headers={"x-rpcd-arrival": forged}).json["success"] is False
    archived = [peer.get("aged.archive") for _ in range(4)]
    assert not any("x-rpcd-arrival" in each.headers for each in archived)
    assert aged.process.poll() is None


# What nobody is to see ----------------------------------------------------------------------------

CARELESS = """
    import threading
    import attrs
    import rpcd

    @attrs.define
    class Order:
        do: str
        card: rpcd.Secret[str]

    class Careless:
        def __call__(self, message: rpcd.Message[Order]):
            opened, what = message.body.card.reveal(), message.body.do
            print("handles", what, message.body, message.body.card, repr(message), [message.body.card])
            if what == "return":
                return {"card": message.body.card}
            if what == "reply":
                return rpcd.Reply({"order": attrs.asdict(message.body)})
            if what == "publish":
                message.publish("", "nobody", message.body)
            if what == "raise":
                raise ValueError(message.body)
            if what == "local":
                return {}[len(opened)]
            if what == "retry":
                raise rpcd.Retry
            if what == "nack":
                raise rpcd.Nack
            if what == "drop":
                raise rpcd.Drop
            if what == "permanent":
                raise rpcd.PermanentFailure(f"{message.body.card}")
            if what == "failed":
                raise rpcd.RequestFailed(str(message.body.card), {"card": str(message.body.card)})
            if what == "exit":
                raise SystemExit(message.body)
            if what == "pickle":
                import pickle
                pickle.dumps(message.body)
            if what == "stuck":
                threading.Event().wait(60)
            if what == "halt":
                raise rpcd.HaltConsumer(70, f"{message.body}")
            return {}
"""

CARELESS_CONFIG = """
    [broker]
    fernet_keys = ["${file:fernet.key}"]
    [service]
    control = "ctl"
    drain_timeout = 1
    [logging]
    level = "debug"
    format = "FORMAT"
    [queues.work]
    [consumers.work]
    queue = "work"
    handler = "handlers_of_test:Careless"
    lock = "body.card"
    retry = { delays = [0.05], attempts = 2 }
    [queues.short]
    [consumers.short]
    queue = "short"
    handler = "handlers_of_test:Careless"
    time_limit = 0.3
"""

ANSWERED = ("return", "reply", "raise", "local", "drop", "permanent", "failed", "exit", "pickle", "publish")

ARCHIVED = ("raise", "local", "retry", "drop", "permanent", "exit", "pickle", "publish")


@pytest.mark.parametrize("form", ["text", "json"])
def test_security_11_what_was_decrypted_is_in_no_line_no_reply_and_no_copy(
    start: StartDaemon, peer: Peer, proxy: Proxy, url: str, tmp_path: pathlib.Path, form: str
) -> None:
    keep(tmp_path / "fernet.key", KEY)
    daemon = start(CARELESS_CONFIG.replace("FORMAT", form), CARELESS, at=proxy.url(url))
    token = seal(KEY, CANARY)
    for what in ARCHIVED:
        peer.publish("work", {"do": what, "card": token}, message_id=what)
        archived = peer.get("work.archive")
        assert archived.json == {"do": what, "card": token}, "the archive keeps the cipher text"
        assert CANARY not in str(archived.headers)
    for what in ANSWERED:
        answer = peer.call("work", {"do": what, "card": token})
        assert CANARY not in answer.body.decode()
        assert answer.json["success"] is False
    assert peer.call("short", {"do": "stuck", "card": token}).json["success"] is False
    peer.publish("work", {"do": "nack", "card": token})
    daemon.wait_for("put off by Nack")
    for command in (("ctl", "report"), ("ctl", "status", "--json")):
        done = rpcd(*command, "--socket", str(tmp_path / "ctl"))
        assert CANARY not in done.stdout + done.stderr
    peer.publish("work", {"do": "permanent", "card": token}, message_id="kept")
    daemon.wait_for("archived: .*kept")
    done = rpcd("archive", "show", "kept", "--queue", "work.archive", "--body", "--headers", url=url)
    assert token in done.stdout
    assert CANARY not in done.stdout + done.stderr
    proxy.reset()
    daemon.wait_for("rpcd.*consuming, workers", 4)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("ready, consuming: ", 2)
    peer.publish("work", {"do": "halt", "card": token})
    assert daemon.wait() == 70
    shown = [line for line in daemon.lines if "handles raise" in line]
    assert shown
    assert all("Order(do='raise', card=Secret('****')) ****" in line for line in shown)
    assert re.search(r"ValueError: Order\(do='raise', card=Secret\('\*\*\*\*'\)\)", daemon.output)
    assert CANARY not in daemon.output
    for key in (KEY, token):
        assert key not in daemon.output


def test_security_11_a_key_is_in_no_line_and_no_report_whatever_is_wrong_with_it(
    start: StartDaemon, tmp_path: pathlib.Path
) -> None:
    for number, wrong in enumerate((KEY[:-1], KEY + "=", f"{KEY}\n{KEY[1:]}", KEY.replace("=", "é"))):
        keep(tmp_path / "fernet.key", wrong)
        daemon = start(CARELESS_CONFIG.replace("FORMAT", "text"), CARELESS, wait=False)
        assert daemon.wait() == 78, number
        assert "broker.fernet_keys[0]: " in daemon.output
        assert "`rpcd keys generate` makes one" in daemon.output
        done = rpcd("check", "--config", str(tmp_path / "rpcd.toml"))
        assert done.returncode == 78
        for text in (daemon.output, done.stdout + done.stderr):
            assert KEY[4:20] not in text


def test_security_11_a_key_that_everybody_may_read_ends_the_start(start: StartDaemon, tmp_path: pathlib.Path) -> None:
    keep(tmp_path / "fernet.key", KEY)
    (tmp_path / "fernet.key").chmod(0o644)
    daemon = start(CARELESS_CONFIG.replace("FORMAT", "text"), CARELESS, wait=False)
    assert daemon.wait() == 78
    assert "broker.fernet_keys[0]: " in daemon.output
    assert "fernet.key is open to everybody (mode 0644); chmod o-r " in daemon.output


def test_a_handler_with_secrets_and_no_key_does_not_start(start: StartDaemon) -> None:
    daemon = start(
        '[queues.typed]\n[consumers.typed]\nqueue = "typed"\nhandler = "handlers_of_test:typed"\n', HANDLERS, wait=False
    )
    assert daemon.wait() == 78
    assert "consumers.typed.handler: handlers_of_test:typed: its body has an rpcd.Secret" in daemon.output
    assert "set broker.fernet_keys; `rpcd keys generate` makes one" in daemon.output


def test_messages_with_one_secret_in_common_are_handled_one_at_a_time(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    keep(tmp_path / "fernet.key", KEY)
    handlers = """
        import collections, threading
        import rpcd
        running, most, both = collections.Counter(), collections.Counter(), threading.Barrier(2)

        def handle(message):
            card = message.body["password"].reveal()
            running[card] += 1
            most[card] = max(most[card], running[card])
            if message.body.get("meet"):
                both.wait(60)  # two cards are handled at a time
            running[card] -= 1
            return dict(most)
    """
    start(
        '[broker]\nfernet_keys = ["${file:fernet.key}"]\n[queues.q]\n[consumers.q]\nqueue = "q"\n'
        'handler = "handlers_of_test:handle"\nworkers = 4\nlock = "body.password"\n',
        handlers,
    )
    for number in range(40):
        body = {"password": seal(KEY, f"card{number % 2}"), "meet": number < 2}
        peer.publish("q", body, reply_to=peer.reply_queue, correlation_id=str(number))
    answers = peer.replies(40)
    assert max(max(each.json["data"].values()) for each in answers) == 1


def test_a_secret_can_be_handed_on_as_the_token_that_it_came_as(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    keep(tmp_path / "fernet.key", KEY)
    start(
        '[broker]\nfernet_keys = ["${file:fernet.key}"]\n[queues.q]\n[queues.next]\n[consumers.q]\nqueue = "q"\n'
        'handler = "handlers_of_test:handle"\n',
        'def handle(message):\n    message.publish("", "next", {"password": message.body["password"].token})\n',
    )
    token = seal(KEY, CANARY)
    peer.publish("q", {"password": token})
    assert Fernet(KEY).decrypt(peer.get("next").json["password"]) == CANARY.encode()


def test_overlays_have_keys_of_their_own(
    start: StartDaemon, peer: Peer, node: PrivateNode, virtual_host: str, tmp_path: pathlib.Path
) -> None:
    keep(tmp_path / "fernet.key", OLD)
    keep(tmp_path / "own.key", KEY)
    config = (
        CARELESS_CONFIG.replace("FORMAT", "text") + f'[virtual_hosts.{virtual_host}]\nfernet_keys = ["${{file:own.key}}"]\n'
    )
    start(config, CARELESS, RPCD_VIRTUAL_HOST=virtual_host)
    assert peer.call("work", {"do": "nothing", "card": seal(KEY, CANARY)}).json["success"] is True
    assert peer.call("work", {"do": "nothing", "card": seal(OLD, CANARY)}).json["success"] is False
