"""What must never be said: secrets go through every trouble, and no line of the log, no report and no reply holds one."""

import contextlib
import json
import pathlib
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest
from command import rpcd
from daemon import Daemon, StartDaemon
from peer import Peer
from proxy import Proxy

from rpcd.ops.rabbitmq import PrivateNode, free_ports

BODY, HEADER, REPLY = "canary-body-51c2", "canary-header-88d1", "canary-reply-9b07"
PASSWORD, CONFIG, PUBLISHED = "canary-password-3e4f", "canary-config-6a2b", "canary-published-c5d9"
SECRETS = (BODY, HEADER, REPLY, PASSWORD, CONFIG, PUBLISHED)

RAISED = "canary-raised-f00d"
"""The text of a handler's own exception: it is for the log, as a traceback, and for nobody else."""

HANDLERS = """
    import dataclasses, threading
    import rpcd

    class Careless:
        def __init__(self, config):
            self.dsn, self.news = config["dsn"], config["news"]
            self.stuck = threading.Event()

        def __call__(self, message):
            secret, dsn = message.body.get("secret"), self.dsn
            what = message.body["do"]
            if what == "raise":
                raise ValueError("RAISED")
            if what == "chain":
                try:
                    raise KeyError("RAISED")
                except KeyError as error:
                    raise rpcd.Retry from error
            if what == "unencodable":
                return {"secret": secret, "what": object()}
            if what == "too_much":
                return {"secret": secret * 1000}
            if what == "publish":
                message.publish("nowhere", "k", {"secret": self.news}, headers={"h": self.news})
            if what == "publish_now":
                message.publish_now("", "nobody", {"secret": self.news}, mandatory=True)
            if what == "wrong_publish":
                message.publish("x" * 300, "k", {"secret": self.news})
            if what == "drop":
                raise rpcd.Drop
            if what == "stuck":
                self.stuck.wait(60)
            if what == "wait":
                print("waits")
                self.stuck.wait(1)
            return {"secret": "REPLY"}

    @dataclasses.dataclass
    class Order:
        number: int

    def typed(message: rpcd.Message[Order]):
        return {}
""".replace("RAISED", RAISED).replace("REPLY", REPLY)

DAEMON = f"""
    [service]
    control = "ctl"
    http = "HTTP"
    publish_timeout = 1
    drain_timeout = 1
    [logging]
    level = "debug"
    format = "FORMAT"
    [queues.work]
    [queues.short]
    [queues.typed]
    [queues.last]
    [consumers.work]
    queue = "work"
    handler = "handlers_of_test:Careless"
    max_reply = 2000
    retry = {{ delays = [0.05], attempts = 2 }}
    config = {{ dsn = "{CONFIG}", news = "{PUBLISHED}" }}
    [consumers.short]
    queue = "short"
    handler = "handlers_of_test:Careless"
    time_limit = 0.3
    config = {{ dsn = "{CONFIG}", news = "{PUBLISHED}" }}
    [consumers.typed]
    queue = "typed"
    handler = "handlers_of_test:typed"
    [consumers.last]
    queue = "last"
    handler = "handlers_of_test:Careless"
    on_error = "halt"
    config = {{ dsn = "{CONFIG}", news = "{PUBLISHED}" }}
"""

LINE = re.compile(r"\d{4}-\d\d-\d\dT\S+ [A-Z]+ \S+: |  \| ")


def silent(text: str, *more: str) -> None:
    for secret in (*SECRETS, *more):
        assert secret not in text, text


@pytest.fixture
def at(node: PrivateNode, virtual_host: str) -> str:
    """The URL of a user whose password is a secret of its own."""
    user = f"canary-{virtual_host}"
    node.ctl("add_user", user, PASSWORD)
    node.ctl("set_permissions", "--vhost", virtual_host, user, ".*", ".*", ".*")
    return node.url(virtual_host, user, PASSWORD)


def troubles(peer: Peer, daemon: Daemon) -> None:
    """Send secrets into whatever can go wrong with a message; what comes back to the sender holds none but its reply."""

    def send(queue: str, body: object, **properties: object) -> None:
        headers = {"h": HEADER, "nested": {HEADER: [HEADER]}}
        peer.publish(queue, body, headers=headers, message_id="m", correlation_id="c", **properties)

    def ask(queue: str, body: object) -> None:
        (answer,) = (send(queue, body, reply_to=peer.reply_queue), *peer.replies())[1:]
        silent(answer.body.decode(), RAISED)
        assert answer.json["success"] is False

    for what in ("raise", "chain", "unencodable", "too_much", "publish", "publish_now", "wrong_publish", "drop"):
        body = {"do": what, "secret": BODY}
        send("work", body)
        if what not in ("unencodable", "too_much"):  # which matter to whoever wants a reply
            archived = peer.get("work.archive")
            silent(str({name: value for name, value in archived.headers.items() if name not in ("h", "nested")}), RAISED)
        if what not in ("publish", "chain"):
            ask("work", body)
    peer.left("work.archive")
    for bad in (f"{BODY}".encode(), f'{{"{BODY}": '.encode(), json.dumps([BODY]).encode() + b"\xff"):
        ask("work", bad)
    ask("typed", {"number": BODY})
    ask("typed", {BODY: 1})
    ask("typed", [BODY])
    ask("short", {"do": "stuck", "secret": BODY})
    send("work", {"do": "return", "secret": BODY}, reply_to="amq.gen-nobody")
    daemon.wait_for("a reply came back")
    send("work", {"do": "return", "secret": BODY}, reply_to=BODY)
    daemon.wait_for("reply_to is not allowed here")


@pytest.mark.parametrize("form", ["text", "json"])
def test_security_09_10_11_no_secret_is_in_any_line_report_or_reply(
    start: StartDaemon, peer: Peer, at: str, proxy: Proxy, tmp_path: pathlib.Path, form: str
) -> None:
    (port,) = free_ports(1)
    config = DAEMON.replace("FORMAT", form).replace("HTTP", f"tcp:{port}:interface=127.0.0.1")
    daemon = start(config, HANDLERS, at=proxy.url(at))
    troubles(peer, daemon)
    peer.publish("work", {"do": "wait", "secret": BODY})
    daemon.wait_for("waits")
    proxy.reset()
    daemon.wait_for("rpcd.*consuming, workers", 8)
    for command in (("ctl", "report"), ("ctl", "status", "--json"), ("status", "--json"), ("ctl", "pause", "work")):
        done = rpcd(*command, "--socket", str(tmp_path / "ctl")) if command[0] == "ctl" else rpcd(*command, url=at)
        silent(done.stdout + done.stderr, RAISED)
    for page in ("live", "ready", "metrics"):
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}") as told:
            silent(told.read().decode() + str(told.headers), RAISED)
    file = tmp_path / "rpcd.toml"
    file.write_text(file.read_text() + f'[broker]\npassword = ["{PASSWORD}"]\npasswort = "{PASSWORD}"\n')
    file.chmod(0o600)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("broker.passwort")
    peer.publish("last", {"do": "raise", "secret": BODY})
    assert daemon.wait() == 70
    silent(daemon.output)
    traces = [line for line in daemon.lines if RAISED in line]
    assert traces  # the log is where it belongs
    if form == "text":
        assert all(line.startswith("  | ") for line in traces)
        assert all(LINE.match(line) for line in daemon.lines), daemon.output
    else:
        assert all(RAISED not in str({**json.loads(line), "traceback": ""}) for line in traces)


WRONG: dict[str, tuple[int, Callable[[str], str]]] = {
    "a_wrong_password": (77, lambda url: url.replace(PASSWORD, PASSWORD + "x")),
    "a_wrong_virtual_host": (77, lambda url: url.rpartition("/")[0] + "/nowhere"),
    "a_port_that_is_none": (78, lambda url: re.sub(r":\d+/", ":99999/", url)),
    "a_slash_in_the_password": (78, lambda url: url.replace(PASSWORD, f"{PASSWORD}/@")),
    "an_unknown_query_key": (78, lambda url: f"{url}?passwort=1"),
    "no_url": (78, lambda url: url.replace("amqp://", "")),
}


@pytest.mark.parametrize("case", WRONG)
def test_security_09_no_mistake_in_the_url_shows_the_password(
    start: StartDaemon, at: str, tmp_path: pathlib.Path, case: str
) -> None:
    code, spoil = WRONG[case]
    config = "[broker]\nlogin_patience = 0\n" + DAEMON.replace("FORMAT", "text").replace('http = "HTTP"', "")
    daemon = start(config, HANDLERS, at=spoil(at), wait=False)
    assert daemon.wait() == code
    silent(daemon.output)
    for command in ("check", "declare", "status")[: 3 if case == "a_wrong_password" else 1]:
        options = ("--broker",) if command == "check" else ()
        config_option = ("--config", str(tmp_path / "rpcd.toml"))
        done = rpcd(command, *options, *config_option, url=spoil(at))
        assert done.returncode != 0
        silent(done.stdout + done.stderr)


@pytest.mark.parametrize("where", ["broker", "virtual_hosts.shop.broker", "consumers.work.config"])
@pytest.mark.parametrize("wrong", ['"SECRET', '["SECRET"]', '{ SECRET = "SECRET" }', '"${SECRET"', '"${file:/no/SECRET}"'])
def test_security_09_no_mistake_in_the_file_shows_what_is_secret(tmp_path: pathlib.Path, where: str, wrong: str) -> None:
    config = tmp_path / "rpcd.toml"
    config.write_text(
        '[queues.work]\n[consumers.work]\nqueue = "work"\nhandler = "json:dumps"\n'
        f"[{where}]\npassword = {wrong.replace('SECRET', PASSWORD)}\nworkers = '{PASSWORD}'\n"
    )
    config.chmod(0o600)
    done = rpcd("check", "--config", str(config))
    if where == "consumers.work.config" and "$" not in wrong and wrong != '"SECRET':
        assert done.returncode == 0, done.stderr  # it is the handler's own
    else:
        assert done.returncode == 78
    text = (done.stdout + done.stderr).replace(f"/no/{PASSWORD}", "")  # a path is no secret
    silent(text)


# Forged lines -------------------------------------------------------------------------------------

EVIL = "x\r\n2026-01-01T00:00:00.000+00:00 CRITICAL rpcd: forged\x1b[2J\x1b]0;title\x07\x9b2J\u2028\u202efdp\x00\x7f"

FORGER = f"""
    import rpcd

    EVIL = {EVIL!r}

    class Evil(Exception):
        pass

    Evil.__name__ = Evil.__qualname__ = "Evil" + EVIL.replace("\\0", "")

    def handle(message):
        what = message.body["do"]
        if what == "raise":
            raise ValueError(EVIL)
        if what == "type":
            raise Evil(EVIL)
        if what == "permanent":
            raise rpcd.PermanentFailure(EVIL)
        if what == "halt":
            raise rpcd.HaltConsumer(3, EVIL)
        if what == "publish":
            message.publish(EVIL, EVIL, {{}})
        if what == "print":
            print(EVIL)
        return {{}}
"""

FORGED = """
    [logging]
    format = "FORMAT"
    level = "debug"
    [queues.work]
    [consumers.work]
    queue = "work"
    handler = "handlers_of_test:handle"
    on_error = "archive"
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_security_19_nobody_can_forge_a_line_or_move_the_cursor(start: StartDaemon, peer: Peer, form: str) -> None:
    daemon = start(FORGED.replace("FORMAT", form), FORGER)
    for what in ("raise", "type", "permanent", "publish", "print"):
        peer.publish(
            "work",
            {"do": what},
            message_id=EVIL,
            correlation_id=EVIL,
            headers={EVIL: EVIL},
            content_type="application/json",
            type=EVIL,
            app_id=EVIL,
        )
    peer.publish("work", {"do": "return"}, reply_to=EVIL, message_id=EVIL)
    peer.publish("work", {"do": "return"}, reply_to=f"amq.gen-{EVIL}", correlation_id=EVIL)
    peer.publish("work", EVIL.encode(), content_type=EVIL, message_id=EVIL)
    list(peer.take("work.archive", 6))
    daemon.wait_for("a reply came back")
    peer.publish("work", {"do": "halt"}, message_id=EVIL)
    assert daemon.wait() == 3
    for line in daemon.lines:
        assert line.isprintable(), line
        if form == "text":
            assert LINE.match(line), line
            assert line.startswith("  | ") or " CRITICAL " not in line[:45], line
        else:
            assert isinstance(json.loads(line), dict)
    if form == "json":  # nothing is lost by it
        told = [json.loads(line) for line in daemon.lines]
        assert any(EVIL in line.get("traceback", "") for line in told)
    assert sum("CRITICAL rpcd: forged" in line for line in daemon.lines) > 5


# Names in messages --------------------------------------------------------------------------------


def test_security_13_a_message_that_names_a_module_imports_nothing(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "trap.py").write_text("import pathlib\npathlib.Path(__file__).with_name('sprung').touch()\n")
    daemon = start(
        """
        [queues.work]
        [consumers.work]
        queue = "work"
        handler = "handlers_of_test:handle"
        retry = { delays = [0.05], attempts = 2 }
        """,
        """
        import rpcd, sys

        def handle(message):
            if message.attempt == 1:
                raise rpcd.Retry
            return {"imported": "trap" in sys.modules}
        """,
    )
    names = ("task", "handler", "x-rpcd-handler", "x-rpcd-consumer", "x-rpcd-exception", "__type__", "py/object")
    answer = peer.call(
        "work",
        {**dict.fromkeys(names, "trap:handle"), "$ref": "trap", "__class__": "trap.X"},
        headers=dict.fromkeys(names, "trap:handle"),
        type="trap:handle",
        app_id="trap",
    )
    assert answer.json["data"] == {"imported": False}
    assert not (tmp_path / "sprung").exists()
    assert daemon.stop() == 0


def test_security_21_a_forged_user_id_is_refused_by_the_broker_and_a_true_one_reaches_the_handler(
    start: StartDaemon, peer: Peer
) -> None:
    start(
        '[queues.work]\n[consumers.work]\nqueue = "work"\nhandler = "handlers_of_test:handle"\n',
        "def handle(message):\n    return {'user': message.properties.user_id}\n",
    )
    assert peer.call("work", {}, user_id="guest").json["data"] == {"user": "guest"}
    other = Peer(peer.url)
    with pytest.raises(Exception, match="user_id property set to 'admin'"):
        other.publish("work", {}, user_id="admin")
    other.close()
    assert peer.call("work", {}).json["data"] == {"user": None}


def test_security_22_what_is_archived_can_be_kept_from_those_who_may_only_ask(
    start: StartDaemon, peer: Peer, node: PrivateNode, virtual_host: str
) -> None:
    start(
        '[queues.work]\n[consumers.work]\nqueue = "work"\nhandler = "handlers_of_test:handle"\n',
        "import rpcd\ndef handle(message):\n    raise rpcd.PermanentFailure('no')\n",
    )
    user = f"client-{virtual_host}"
    node.ctl("add_user", user, "pw")
    own = r"^amq\.gen-.*$"
    node.ctl("set_permissions", "--vhost", virtual_host, user, own, r"^(amq\.default|amq\.gen-.*)$", own)
    client = Peer(node.url(virtual_host, user, "pw"))
    assert client.call("work", {}).json["success"] is False
    with pytest.raises(Exception, match=r"ACCESS_REFUSED.*work\.archive"):
        client.left("work.archive")
    client.close()
    assert peer.get("work.archive").json == {}
