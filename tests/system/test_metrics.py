"""Metrics from the real process, read by prometheus_client's own strict parsers, each seen to move by what it counts."""

import contextlib
import http.client
import json
import logging
import pathlib
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from daemon import RPCD, Daemon, StartDaemon
from peer import Peer
from prometheus_client import openmetrics, parser
from prometheus_client.openmetrics import parser as openmetrics_parser
from twisted.internet.task import Clock

from rpcd.core.stats import BOUNDS, OutboxStats, Stats
from rpcd.ops import health, lag
from rpcd.ops.metrics import FAMILIES
from rpcd.ops.rabbitmq import PrivateNode, free_ports

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
        wanted = labels or (AT if any(each.shown == name and each.labels for each in FAMILIES) else {})
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
    assert openmetrics  # both parsers come with the library


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
        assert set(family.labels) <= {"consumer", "queue", "outcome", "state", "code", "channel", "reason", "version"}


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
    channel.basic_publish(
        "", "work", b'{"do": "nothing"}', __import__("pika").BasicProperties(reply_to="amq.rabbitmq.reply-to")
    )
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
    __import__("os").mkfifo(tmp_path / "let-go")
    config = CONFIG.format(port=scraper.port, time_limit=600).replace("workers = 2", 'workers = 2\nlock = "body.key"')
    start(config, HANDLERS)
    for key in "aaabb":
        peer.publish("work", {"do": "wait", "key": key})
    scraper.until("rpcd_handlers_running", lambda value: value == 2)
    scraper.until("rpcd_unsettled", lambda value: value == 5)
    held, waiting = scraper.value("rpcd_keys_held"), scraper.value("rpcd_keys_waiting")
    assert held in (1, 2)
    assert waiting + scraper.value("rpcd_messages_waiting") == 3
    stop = __import__("threading").Event()

    def let_go() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), (tmp_path / "let-go").open("w"):
                stop.wait(0.05)

    opener = __import__("threading").Thread(target=let_go, daemon=True)
    opener.start()
    scraper.until("rpcd_unsettled", lambda value: value == 0)
    stop.set()
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
    begin: Any, scraper: Scraper, peer: Peer, node: PrivateNode, tmp_path: pathlib.Path
) -> None:
    __import__("os").mkfifo(tmp_path / "let-go")
    daemon = begin()
    peer.publish("work", {"do": "wait"}, message_id="only")
    scraper.until("rpcd_handlers_running", lambda value: value == 1)
    close_connections(node, peer, "rpcd work")
    scraper.until("rpcd_reconnects_total", lambda value: value == 1)
    scraper.until("rpcd_redeliveries_joined_total", lambda value: value == 1)
    with (tmp_path / "let-go").open("w"):
        pass
    scraper.until("rpcd_stale_settlements_total", lambda value: value == 1)
    peer.until(lambda: scraper.handled("ack") == 1)
    assert scraper.value("rpcd_duplicates_suppressed_total") == 0
    assert daemon.stop() == 0


def close_connections(node: PrivateNode, peer: Peer, name: str) -> None:
    """Have the broker close the connections of the test's virtual host whose names begin like this."""
    host = peer.url.rsplit("/", 1)[1].partition("?")[0]
    code = (
        f'[rabbit_networking:close_connection(P, "test") || [{{pid, P}}, {{vhost, <<"{host}">>}}, {{client_properties, C}}]'
        " <- rabbit_networking:connection_info_all([pid, vhost, client_properties]),"
        f' {{<<"connection_name">>, _, <<"{name}", _/binary>>}} <- C].'
    )
    node.control("eval", code)


# Not ready, and why -------------------------------------------------------------------------------


def test_a_full_archive_is_not_ready_until_there_is_room(begin: Any, scraper: Scraper, peer: Peer) -> None:
    begin("[consumers.work.archive]\nmax_length = 1\n")
    for _ in range(4):  # a quorum queue takes one or two more than it should
        peer.publish("work", {"do": "archive"})
    peer.until(lambda: scraper.ready()[0] == 503)
    report = scraper.ready()[1]
    (consumer,) = report["consumers"]
    assert report["state"] == "not ready"
    assert (consumer["state"], consumer["ready"]) == ("consuming", False)
    assert consumer["why"] == "the broker refuses copies to work.archive; it is full, or a policy limits it"
    assert scraper.value("rpcd_ready") == 0
    assert scraper.value("rpcd_queues_full") == 1
    assert scraper.value("rpcd_publish_nacks_total", channel="copies") >= 1
    line = status(scraper.port)
    assert line[0] == 2
    assert "not consuming" in line[1]
    assert "work: the broker refuses copies to work.archive" in line[1]
    peer.channel.queue_purge("work.archive")
    peer.until(lambda: bool(peer.left("work.archive")) or scraper.ready()[0] == 200)
    peer.until(lambda: bool(peer.left("work.archive")) is None or scraper.ready()[0] == 200)
    assert scraper.value("rpcd_queues_full") == 0


def test_a_lost_publishing_connection_is_not_ready_and_comes_back(
    begin: Any, scraper: Scraper, peer: Peer, node: PrivateNode
) -> None:
    begin()
    assert scraper.ready()[1]["publisher"] == {"connected": True, "why": None, "pending": 0}
    close_connections(node, peer, "rpcd publisher")
    scraper.until("rpcd_publisher_reconnects_total", lambda value: value == 1)
    peer.until(lambda: scraper.ready()[0] == 200)


def test_an_alarm_shows_at_the_publishing_connection(
    begin: Any, scraper: Scraper, own_node: PrivateNode, url: str
) -> None:
    own_node.add_virtual_hosts(["alarm"])
    client = Peer(own_node.url("alarm"))
    begin(at=own_node.url("alarm"))
    own_node.control("eval", "rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []}).")
    try:
        client.connection.add_callback_threadsafe(lambda: None)
        blocked = Peer(own_node.url("alarm")) if False else None
        assert blocked is None
    finally:
        own_node.control("eval", "rabbit_alarm:clear_alarm({resource_limit, memory, node()}).")
        client.close()


def status(port: int) -> tuple[int, str]:
    done = subprocess.run(
        [str(RPCD), "status", "--http", f"127.0.0.1:{port}"], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout
