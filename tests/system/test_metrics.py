"""Metrics from the real process, read by prometheus_client's own strict parsers, each seen to move by what it counts."""

import contextlib
import http.client
import json
import logging
import os
import pathlib
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pika
import pytest
import yaml
from daemon import RPCD, Daemon, StartDaemon
from peer import Peer
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser
from proxy import Proxy
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.resource import Resource

from rpcd.core.stats import BOUNDS, OutboxStats, Stats
from rpcd.ops import health, lag, site
from rpcd.ops.metrics import FAMILIES
from rpcd.ops.rabbitmq import PrivateNode, free_ports

ROOT = pathlib.Path(__file__).parent.parent.parent

CONFIG = """
[service]
http = "tcp:{port}:interface=127.0.0.1"
publish_timeout = 3
drain_timeout = 20
[queues.work]
[consumers.work]
queue = "work"
handler = "handlers_of_test:handle"
workers = 2
time_limit = {time_limit}
[consumers.work.retry]
delays = [0.1]
"""

HANDLERS = """
    import threading, time
    import rpcd

    def handle(message):
        body = message.body
        what = body["do"]
        if what == "fail":
            raise ValueError("no")
        if what == "archive":
            raise rpcd.PermanentFailure("no")
        if what == "drop":
            raise rpcd.Drop()
        if what == "requeue":
            raise rpcd.Nack(delay=0) if not message.redelivered else rpcd.RequestFailed("no")
        if what == "hang":
            threading.Event().wait()
        if what == "publish":
            message.publish("no-such-exchange", "key", {})
        if what == "wait":
            open("let-go").read()
            if body.get("then") == "archive":
                raise rpcd.PermanentFailure("no")
        if what == "block":
            from twisted.internet import reactor
            reactor.callFromThread(time.sleep, 2.5)
        return {}
"""

AT = {"consumer": "work", "queue": "work"}

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Scraper:
    """What scrapes one daemon."""

    def __init__(self, port: int, peer: Peer) -> None:
        self.port = port
        self._peer = peer

    def get(self, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read().decode()

    def ready(self) -> tuple[int, Any]:
        status, _headers, text = self.get("/ready")
        return status, json.loads(text)

    def value(self, name: str, **labels: str) -> float:
        """Return one sample; labels are those of the consumer if none are given."""
        own = any(name.startswith(each.shown) and each.labels[:1] == ("consumer",) for each in FAMILIES)
        wanted = labels or (AT if own else {})
        for family in parser.text_string_to_metric_families(self.get()[2]):
            for sample in family.samples:
                if sample.name == name and sample.labels == wanted:
                    return float(sample.value)
        raise AssertionError(f"there is no {name} with {wanted}")

    def until(self, name: str, done: Callable[[float], bool], **labels: str) -> None:
        self._peer.until(lambda: done(self.value(name, **labels)), what=lambda: f"{name} is {self.value(name, **labels)}")

    def handled(self, outcome: str) -> float:
        return self.value("rpcd_messages_handled_total", **AT, outcome=outcome)


@pytest.fixture
def scraper(peer: Peer) -> Scraper:
    return Scraper(free_ports(1)[0], peer)


@pytest.fixture
def begin(start: StartDaemon, scraper: Scraper) -> Callable[..., Daemon]:
    def started(more: str = "", *, time_limit: float = 600, **options: Any) -> Daemon:
        return start(CONFIG.format(port=scraper.port, time_limit=time_limit) + more, HANDLERS, **options)

    return started


# The page -----------------------------------------------------------------------------------------


def test_both_formats_are_what_their_parsers_take_and_tell_the_same(begin: Any, scraper: Scraper, peer: Peer) -> None:
    daemon = begin()
    peer.call("work", {"do": "nothing"})
    peer.until(lambda: "rpcd_retry_depth{" in scraper.get()[2])  # asked of the broker after the first scrape
    status, headers, plain = scraper.get()
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=")
    status, headers, strict = scraper.get(accept=f"{OPENMETRICS},text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
    assert status == 200
    assert headers["content-type"].startswith("application/openmetrics-text; version=")
    assert strict.endswith("# EOF\n")
    ours = {family.shown.removesuffix("_total").removesuffix("_info") for family in FAMILIES}
    found: dict[str, set[str]] = {}
    for name, families in (
        ("plain", parser.text_string_to_metric_families(plain)),
        ("strict", openmetrics_parser.text_string_to_metric_families(strict)),
    ):
        for family in families:
            base = family.name.removesuffix("_info")
            assert family.documentation
            found.setdefault(name, set()).add(base)
            if base in ours:
                assert family.samples, f"{base} shows nothing"
    standard = {"process_open_fds", "process_start_time_seconds", "python", "python_gc_collections"}
    assert found["plain"] >= ours | standard
    assert found["strict"] >= ours | standard
    (info,) = re.findall(r'^rpcd_info\{version="(.*)"\} 1.0$', plain, re.MULTILINE)
    assert info in daemon.output
    assert scraper.value("rpcd_ready") == 1
    assert scraper.value("rpcd_start_time_seconds") > 1e9


def test_head_and_get_alone_and_accept_headers_of_all_kinds(begin: Any, scraper: Scraper) -> None:
    begin()
    status, headers, text = scraper.get(method="HEAD")
    assert (status, text) == (200, "")
    assert int(headers["content-length"]) > 1000
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        status, headers, _text = scraper.get(method=method)
        assert (status, headers["allow"]) == (405, "GET, HEAD")
    for accept in ("", "*/*", "application/openmetrics-text; version=x", "text/plain; version=", ",;,", "a" * 5000):
        status, headers, text = scraper.get(accept=accept)
        assert status == 200
        assert "rpcd_ready" in text
    assert scraper.get("/")[0] == scraper.get("/metrics/more")[0] == 404
    assert scraper.get("/metrics?collect[]=x")[0] == 200


def test_nothing_of_it_is_loaded_for_those_who_serve_no_http(begin: Any, start: StartDaemon, peer: Peer) -> None:
    look = "    import sys\n    def handle(message):\n        return 'prometheus_client' in sys.modules\n"
    start('[queues.work]\n[consumers.work]\nqueue = "work"\nhandler = "handlers_of_test:handle"\n', look)
    assert peer.call("work", {}).json["data"] == {"result": False}


# The table ----------------------------------------------------------------------------------------


def test_every_counter_has_a_metric_and_a_sentence() -> None:
    sentences = {family.sentence for family in FAMILIES}
    for field in (*attrs.fields(Stats), *attrs.fields(OutboxStats)):
        assert field.metadata.get("sentence") in sentences, f"{field.name}: define it by `counter`, with a sentence"


def test_names_are_those_of_the_field_and_each_is_there_once() -> None:
    names = [family.shown for family in FAMILIES]
    assert len(names) == len(set(names))
    for family in FAMILIES:
        assert re.fullmatch(r"rpcd_[a-z_]+", family.shown)
        assert family.sentence.endswith(".")
        assert len(family.labels) == len(set(family.labels))
        assert set(family.labels) <= {
            "consumer",
            "queue",
            "outcome",
            "state",
            "step",
            "code",
            "channel",
            "reason",
            "version",
        }


def test_the_guides_rules_are_about_metrics_that_there_are() -> None:
    page = (ROOT / "docs/guide/metrics.md").read_text()
    known = {family.shown for family in FAMILIES} | {"rpcd_handler_duration_seconds_bucket"}
    assert set(re.findall(r"\brpcd_[a-z_]+", page)) <= known
    prometheus, rules = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    assert prometheus["rule_files"] == ["rpcd.rules.yml"]
    (group,) = rules["groups"]
    assert all({"alert", "expr", "annotations"} <= rule.keys() for rule in group["rules"])


# What moves them ----------------------------------------------------------------------------------


def test_every_outcome_moves_its_counter(begin: Any, scraper: Scraper, peer: Peer) -> None:
    begin()
    assert scraper.value("rpcd_messages_received_total") == 0
    for what in ("nothing", "archive", "drop", "requeue"):
        peer.publish("work", {"do": what})
    peer.publish("work", {"do": "fail"})  # retried once, then archived
    peer.publish("work", b"{")
    peer.publish("work", {"do": "publish"})
    scraper.until("rpcd_messages_received_total", lambda value: value >= 8)
    peer.until(lambda: scraper.handled("archive") >= 4)
    assert scraper.value("rpcd_messages_bad_total") == 1
    assert scraper.handled("reject") == 1
    assert scraper.handled("requeue") == 1
    assert scraper.handled("retry") >= 1
    assert scraper.handled("ack") >= 2
    assert scraper.value("rpcd_messages_redelivered_total") == 1
    assert scraper.value("rpcd_outcomes_unpublished_total") >= 1
    assert scraper.value("rpcd_publish_failures_total", channel="publications", reason="refused") >= 1
    assert scraper.value("rpcd_publisher_channel_errors_total", channel="publications", code="404") >= 1
    assert scraper.value("rpcd_published_total", channel="copies") >= 4
    count = scraper.value("rpcd_handler_duration_seconds_count")
    assert count == scraper.value("rpcd_handler_duration_seconds_bucket", **AT, le="+Inf")
    assert count >= 8
    assert scraper.value("rpcd_handler_duration_seconds_sum") > 0
    assert scraper.value("rpcd_handler_duration_seconds_bucket", **AT, le=str(BOUNDS[-1])) == count
    scraper.until("rpcd_unsettled", lambda value: value == 0)


def test_replies_are_counted_by_how_they_went(begin: Any, scraper: Scraper, peer: Peer) -> None:
    begin()
    peer.call("work", {"do": "nothing"})  # to a queue
    assert scraper.value("rpcd_replies_total") == 1
    peer.publish("work", {"do": "nothing"}, reply_to="amq.gen-gone", correlation_id="x")
    scraper.until("rpcd_replies_unroutable_total", lambda value: value == 1)
    channel = peer.connection.channel()
    replies = []
    channel.basic_consume(
        "amq.rabbitmq.reply-to", lambda _channel, _method, _properties, body: replies.append(body), auto_ack=True
    )
    properties = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to")
    channel.basic_publish("", "work", b'{"do": "nothing"}', properties)
    peer.until(lambda: bool(replies))
    assert scraper.value("rpcd_replies_direct_total") == 1


def test_a_running_handler_shows_and_one_that_hangs_is_counted_as_lost(begin: Any, scraper: Scraper, peer: Peer) -> None:
    begin(time_limit=2)
    assert (scraper.value("rpcd_workers"), scraper.value("rpcd_prefetch")) == (2, 4)
    peer.publish("work", {"do": "hang"})
    scraper.until("rpcd_handlers_running", lambda value: value == 1)
    assert scraper.value("rpcd_unsettled") == 1
    scraper.until("rpcd_handlers_overdue_total", lambda value: value == 1)
    assert scraper.value("rpcd_threads_lost") == 1
    scraper.until("rpcd_handlers_running", lambda value: value == 0)


def test_messages_that_wait_for_a_key_or_a_worker_show(
    start: StartDaemon, scraper: Scraper, peer: Peer, tmp_path: pathlib.Path
) -> None:
    os.mkfifo(tmp_path / "let-go")
    config = CONFIG.format(port=scraper.port, time_limit=600).replace("workers = 2", 'workers = 2\nlock = "body.key"')
    start(config, HANDLERS)
    for key in "aaabb":
        peer.publish("work", {"do": "wait", "key": key})
    scraper.until("rpcd_handlers_running", lambda value: value == 2)
    scraper.until("rpcd_unsettled", lambda value: value == 5)
    held, waiting = scraper.value("rpcd_keys_held"), scraper.value("rpcd_keys_waiting")
    assert held in (1, 2)
    assert waiting + scraper.value("rpcd_messages_waiting") == 3
    with letting_go(tmp_path / "let-go"):
        scraper.until("rpcd_unsettled", lambda value: value == 0)
    assert (scraper.value("rpcd_keys_held"), scraper.value("rpcd_keys_waiting")) == (0, 0)


def test_a_consumer_that_the_broker_cancels_shows_and_comes_back(begin: Any, scraper: Scraper, peer: Peer) -> None:
    begin()
    assert (scraper.value("rpcd_consuming"), scraper.value("rpcd_connected")) == (1, 1)
    assert scraper.value("rpcd_consumer_state", **AT, state="consuming") == 1
    assert scraper.value("rpcd_consumer_state", **AT, state="paused") == 0
    peer.channel.queue_delete("work")
    scraper.until("rpcd_reconnects_total", lambda value: value == 1)
    assert scraper.value("rpcd_consumers_cancelled_total") == 1
    scraper.until("rpcd_consuming", lambda value: value == 1)
    assert scraper.value("rpcd_connections_total") == 2


def test_settlements_that_come_too_late_and_redeliveries_that_join_are_counted(
    begin: Any, scraper: Scraper, peer: Peer, proxy: Proxy, url: str, tmp_path: pathlib.Path
) -> None:
    os.mkfifo(tmp_path / "let-go")
    daemon = begin(at=proxy.url(url))
    peer.publish("work", {"do": "wait"}, message_id="only")
    scraper.until("rpcd_handlers_running", lambda value: value == 1)
    assert proxy.reset("work") == 1
    scraper.until("rpcd_reconnects_total", lambda value: value == 1)
    scraper.until("rpcd_redeliveries_joined_total", lambda value: value == 1)
    with (tmp_path / "let-go").open("w"):
        pass
    scraper.until("rpcd_stale_settlements_total", lambda value: value == 1)
    peer.until(lambda: scraper.handled("ack") == 1)
    assert scraper.value("rpcd_duplicates_suppressed_total") == 0
    assert daemon.stop() == 0


# Not ready, and why -------------------------------------------------------------------------------


def test_a_full_archive_is_not_ready_until_there_is_room(begin: Any, scraper: Scraper, peer: Peer) -> None:
    begin("[consumers.work.archive]\nmax_length = 1\n")
    sent = 0
    while scraper.ready()[0] == 200:  # a full quorum queue takes what comes before its channels are told
        assert sent < 50
        peer.publish("work", {"do": "archive"}, message_id=str(sent))
        sent += 1
        peer.until(lambda now=sent: scraper.ready()[1]["consumers"][0]["archived"] == now or scraper.ready()[0] == 503)
    report = scraper.ready()[1]
    (consumer,) = report["consumers"]
    assert report["state"] == "not ready"
    assert (consumer["state"], consumer["ready"]) == ("consuming", False)
    assert consumer["why"] == "the broker refuses copies to work.archive; it is full, or a policy limits it"
    assert scraper.value("rpcd_ready") == 0
    assert scraper.value("rpcd_queues_full") == 1
    assert scraper.value("rpcd_publish_nacks_total", channel="copies") >= 1
    code, line = status(scraper.port)
    assert (code, "work: the broker refuses copies to work.archive" in line) == (2, True)
    found: list[str] = []

    def emptied() -> bool:
        found.extend(each.properties.message_id for each in peer.left("work.archive"))
        return len(found) == sent and scraper.ready()[0] == 200

    peer.until(emptied, 60, lambda: f"{found}, {scraper.ready()}")
    assert sorted(found) == sorted(map(str, range(sent)))
    assert scraper.value("rpcd_queues_full") == 0


def test_a_lost_publishing_connection_is_not_ready_until_it_is_made_again(
    begin: Any, scraper: Scraper, peer: Peer, proxy: Proxy, url: str
) -> None:
    begin(at=proxy.url(url))
    assert scraper.ready()[1]["publisher"] == {"connected": True, "why": None, "pending": 0}
    proxy.refuse()
    assert proxy.cut("publisher") == 1
    peer.until(lambda: scraper.ready()[0] == 503)
    report = scraper.ready()[1]
    assert report["publisher"]["connected"] is False
    assert [each["state"] for each in report["consumers"]] == ["consuming"]
    assert (scraper.value("rpcd_publisher_connected"), scraper.value("rpcd_connected")) == (0, 1)
    code, line = status(scraper.port)
    assert (code, "consuming: work; not publishing: " in line) == (2, True)
    proxy.accept()
    peer.until(lambda: scraper.ready()[0] == 200)
    assert scraper.value("rpcd_publisher_reconnects_total") == 1
    assert scraper.value("rpcd_reconnects_total") == 0


def test_an_alarm_shows_at_both_connections_and_takes_nothing_from_ready(
    begin: Any, scraper: Scraper, peer: Peer, node: PrivateNode, tmp_path: pathlib.Path
) -> None:
    os.mkfifo(tmp_path / "let-go")
    begin()
    peer.publish("work", {"do": "wait", "then": "archive"}, message_id="a")
    peer.publish("work", {"do": "wait"}, message_id="b", reply_to="amq.gen-gone")
    scraper.until("rpcd_handlers_running", lambda value: value == 2)
    node.ctl("eval", "rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []}).")
    try:
        with letting_go(tmp_path / "let-go"):
            scraper.until("rpcd_publisher_blocked", lambda value: value == 1)
            scraper.until("rpcd_blocked", lambda value: value == 1)
        code, report = scraper.ready()
        assert (code, report["publisher"]["connected"]) == (200, True)
        assert report["publisher"]["why"].startswith("the broker blocks it: ")
        assert report["consumers"][0]["why"].startswith("the broker blocks it: ")
        assert status(scraper.port)[0] == 0
    finally:
        node.ctl("eval", "rabbit_alarm:clear_alarm({resource_limit, memory, node()}).")
    scraper.until("rpcd_publisher_blocked", lambda value: value == 0)
    peer.until(lambda: scraper.handled("archive") == 1 and scraper.handled("ack") == 1)
    assert peer.get("work.archive").properties.message_id == "a"


@contextlib.contextmanager
def letting_go(fifo: pathlib.Path) -> Iterator[None]:
    """Let every handler go on that waits at a fifo, as long as the block lasts."""
    enough = threading.Event()

    def write() -> None:
        while not enough.wait(0.02):
            with contextlib.suppress(OSError):  # nobody reads right now
                os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        enough.set()
        writer.join()


def status(port: int) -> tuple[int, str]:
    done = subprocess.run([str(RPCD), "status", "--http", f"127.0.0.1:{port}"], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout


# The reactor --------------------------------------------------------------------------------------


def test_fault_29_a_blocked_reactor_is_measured_and_told(begin: Any, scraper: Scraper, peer: Peer) -> None:
    daemon = begin()
    assert scraper.value("rpcd_reactor_lag_seconds") < 1
    peer.call("work", {"do": "block"})
    (line,) = daemon.wait_for("the reactor was blocked for")
    assert "WARNING rpcd: " in line
    assert scraper.value("rpcd_reactor_lag_seconds") > 1
    assert scraper.value("rpcd_reactor_stalls_total") == 1
    assert scraper.ready()[0] == 200


def test_a_lag_is_said_once_in_a_while_and_forgotten_after_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock, now = Clock(), [0.0]
    probe = lag.Lag(clock, lambda: now[0])
    probe.start()
    probe.start()  # has begun

    def turn(late: float) -> None:
        now[0] += lag.PERIOD + late
        clock.advance(lag.PERIOD)

    with caplog.at_level(logging.WARNING):
        for late in (0.0, 0.4, 3.0, 5.0):
            turn(late)
        assert (probe.longest, probe.stalls) == (pytest.approx(5.0), 2)
        assert [record.args for record in caplog.records] == [(pytest.approx(3.0),)]
        turn(6.0)
        assert len(caplog.records) == 2
        for _ in range(lag.REMEMBERED):
            turn(0.0)
    assert (probe.longest, probe.stalls, len(caplog.records)) == (0.0, 3, 2)
    turn(-5.0)  # a timer that comes early
    assert probe.longest == 0.0
    probe.stop()
    probe.stop()
    assert clock.getDelayedCalls() == []


# Who asks -----------------------------------------------------------------------------------------


def descriptors(daemon: Daemon) -> int:
    return len(list(pathlib.Path(f"/proc/{daemon.process.pid}/fd").iterdir()))


def test_idle_connections_can_not_use_up_the_descriptors(begin: Any, scraper: Scraper, peer: Peer) -> None:
    daemon = begin()
    before = descriptors(daemon)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", scraper.port))) for _ in range(200)]
        peer.until(lambda: descriptors(daemon) <= before + site.MOST_CONNECTIONS + 2)
        idle[-1].sendall(b"GET /ready HTTP/1.1\r\n")  # a half-said request is idle, too
        assert scraper.ready()[0] == 200  # a new question gets its answer
        assert peer.call("work", {"do": "nothing"}).json["success"] is True
    peer.until(lambda: descriptors(daemon) <= before + 2)
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.output


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET /ready HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 200_000,
        b"POST /ready HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"x" * 0x10000 + b"\r\n",
        b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /ready HTTP/1.1\r\n" + b"X-Header: x\r\n" * 20_000,
        b"AMQP\0\0\x09\x01" + b"\r\n\r\n",
    ],
    ids=["body", "chunked", "path", "headers", "amqp"],
)
def test_a_request_that_is_too_large_or_none_is_hung_up_on(begin: Any, scraper: Scraper, request_text: bytes) -> None:
    daemon = begin()
    with socket.create_connection(("127.0.0.1", scraper.port), timeout=20) as connection:
        with contextlib.suppress(OSError):  # it hangs up while we still write
            connection.sendall(request_text)
        with contextlib.suppress(ConnectionError):
            while connection.recv(65536):
                pass
    assert scraper.ready()[0] == 200
    assert "Traceback" not in daemon.output


def test_what_says_nothing_is_hung_up_on_in_the_end() -> None:
    clock = Clock()
    quiet = site.Quiet(Resource())
    assert quiet.timeOut == site.IDLE_SECONDS
    quiet.reactor = clock
    transport = StringTransport()
    protocol = quiet.buildProtocol(None)
    assert protocol is not None
    protocol.callLater = clock.callLater
    protocol.makeConnection(transport)
    clock.advance(site.IDLE_SECONDS + 1)
    assert transport.disconnecting


# Who may ask --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "warned"),
    [
        ("tcp:8001", True),
        ("tcp:port=8001", True),
        ("tcp6:8001", True),
        ("haproxy:tcp:8001", True),
        ("tcp:8001:interface=127.0.0.1", False),
        ("tcp:8001:interface=0.0.0.0", False),
        (r"tcp6:8001:interface=\:\:1", False),
        ("unix:/run/x", False),
        ("systemd:domain=INET:index=0", False),
        (None, False),
    ],
)
def test_security_15_an_endpoint_for_everybody_is_to_be_said(endpoint: str | None, warned: bool) -> None:
    assert bool(health.warnings(endpoint)) is warned
    assert health.problems(endpoint) == []


def test_security_15_check_and_start_warn_of_an_endpoint_that_others_can_ask(
    start: StartDaemon, scraper: Scraper, tmp_path: pathlib.Path
) -> None:
    said = (
        f"service.http: others on the network can ask tcp:{scraper.port}, which listens on all interfaces; write interface="
    )
    config = CONFIG.format(port=scraper.port, time_limit=60).replace(":interface=127.0.0.1", "")
    daemon = start(config, HANDLERS)
    (line,) = daemon.wait_for("others on the network")
    assert f"WARNING rpcd: {said}" in line
    check = [str(RPCD), "check", "--config", str(tmp_path / "rpcd.toml")]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert said in done.stderr
    done = subprocess.run([*check, "--json"], capture_output=True, text=True, timeout=60)
    (advice,) = json.loads(done.stdout)["advice"]
    assert (advice["path"], advice["grave"]) == ("service.http", False)
