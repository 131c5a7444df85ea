"""What is declared, what is only checked for, and what the broker refuses."""

import signal

import pytest
from daemon import StartDaemon
from peer import Peer

from rpcd.ops.rabbitmq import PrivateNode

HANDLERS = """
    import rpcd

    def echo(message):
        return {"exchange": message.exchange, "key": message.routing_key, "attempt": message.attempt}

    def third(message):
        if message.attempt < 3:
            raise rpcd.Retry
        return echo(message)

    def never(message):
        raise rpcd.Retry
"""


def arguments(node: PrivateNode, virtual_host: str) -> dict[str, dict[str, str]]:
    """What the broker itself says of every queue: type, durability and arguments."""
    listed = node.ctl("list_queues", "--vhost", virtual_host, "--silent", "name", "type", "durable", "arguments")
    found = {}
    for line in listed.splitlines():
        name, kind, durable, rest = line.split("\t")
        found[name] = {"type": kind, "durable": durable, "arguments": rest}
    return found


def test_a_queue_brings_its_archive_and_its_retry_steps(start: StartDaemon, node: PrivateNode, virtual_host: str) -> None:
    start(
        """
        [exchanges.shop]
        [queues.orders]
        bindings = [{ exchange = "shop", routing_keys = ["order.#"] }]
        [consumers.orders]
        queue = "orders"
        handler = "handlers_of_test:echo"
        [consumers.orders.retry]
        delays = [0.5, 60]
        [consumers.orders.archive]
        max_length = 1000
        """,
        HANDLERS,
    )
    queues = arguments(node, virtual_host)
    assert set(queues) == {"orders", "orders.archive", "orders.retry.500", "orders.retry.60000"}
    assert {queue["type"] for queue in queues.values()} == {"quorum"}
    for wanted in (
        "at-least-once",
        "reject-publish",
        '{"x-dead-letter-routing-key","orders.archive"}',
        '{"x-delivery-limit",20}',
    ):
        assert wanted in queues["orders"]["arguments"]
    for wanted in ('{"x-message-ttl",500}', '{"x-dead-letter-routing-key","orders"}', "at-least-once", "reject-publish"):
        assert wanted in queues["orders.retry.500"]["arguments"]
    assert '{"x-max-length",1000}' in queues["orders.archive"]["arguments"]
    limit = '{"x-delivery-limit",-1}' in queues["orders.archive"]["arguments"]
    assert limit is (int(node.ctl("version").partition(".")[0]) >= 4)  # RabbitMQ 3 takes -1 for "drop at once"


def test_messages_come_through_topic_fanout_and_headers_exchanges(start: StartDaemon, peer: Peer) -> None:
    start(
        """
        [exchanges.topics]
        [exchanges.all]
        type = "fanout"
        durable = false
        [exchanges.heads]
        type = "headers"
        [queues.work]
        type = "classic"
        [[queues.work.bindings]]
        exchange = "topics"
        routing_keys = ["order.*.placed", "stock.#"]
        [[queues.work.bindings]]
        exchange = "all"
        [[queues.work.bindings]]
        exchange = "heads"
        arguments = { x-match = "all", colour = "red" }
        [consumers.work]
        queue = "work"
        handler = "handlers_of_test:third"
        [consumers.work.retry]
        delays = [0.05]
        attempts = 3
        """,
        HANDLERS,
    )
    for exchange, key in (("topics", "order.eu.placed"), ("topics", "stock.low.tea"), ("all", "")):
        data = peer.call(key, {}, exchange=exchange).json["data"]
        assert data == {"exchange": exchange, "key": key, "attempt": 3}
    assert peer.call("", {}, exchange="heads", headers={"colour": "red"}).json["success"] is True


def test_a_queue_that_the_broker_names_gets_a_new_name_and_its_bindings_each_time(
    start: StartDaemon, peer: Peer, node: PrivateNode, virtual_host: str
) -> None:
    daemon = start(
        """
        [exchanges.news]
        type = "fanout"
        [queues.listener]
        name = ""
        bindings = [{ exchange = "news" }]
        [consumers.listener]
        queue = "listener"
        handler = "handlers_of_test:third"
        [consumers.listener.retry]
        delays = [0.05, 0.05]
        """,
        HANDLERS,
    )
    assert peer.call("", {}, exchange="news").json["data"]["attempt"] == 3
    node.ctl("close_all_connections", "--vhost", virtual_host, "again")
    daemon.wait_for("INFO rpcd.consumer: consuming", 2)
    client = Peer(peer.url)
    assert client.call("", {}, exchange="news").json["success"] is True
    queues = arguments(node, virtual_host)
    assert sorted(name for name in queues if not name.startswith("amq.gen-")) == ["listener.archive"]
    client.close()


@pytest.mark.parametrize("kind", ["exclusive = true", "auto_delete = true"])
def test_queues_that_die_with_their_connection_are_retried_in_the_process(
    start: StartDaemon, peer: Peer, node: PrivateNode, virtual_host: str, kind: str
) -> None:
    daemon = start(
        f"""
        [queues.brief]
        {kind}
        [consumers.brief]
        queue = "brief"
        handler = "handlers_of_test:never"
        [consumers.brief.retry]
        delays = [0.05, 0.1]
        """,
        HANDLERS,
    )
    peer.publish("brief", {}, message_id="gone")
    spent = peer.get("brief.archive")
    assert (spent.properties.message_id, spent.headers["x-rpcd-attempt"]) == ("gone", 3)
    assert not any(".retry." in name for name in arguments(node, virtual_host))
    assert daemon.stop() == 0
    assert "brief" not in arguments(node, virtual_host)


def test_a_passive_queue_is_waited_for(start: StartDaemon, peer: Peer) -> None:
    daemon = start(
        """
        [queues.theirs]
        passive = true
        [consumers.theirs]
        queue = "theirs"
        handler = "handlers_of_test:echo"
        """,
        HANDLERS,
        wait=False,
    )
    (line,) = daemon.wait_for("NOT_FOUND - no queue 'theirs'")
    assert "queues.theirs: the broker refused queue 'theirs': 404" in line
    assert "waiting for it" in line
    peer.channel.queue_declare("theirs", durable=True)
    daemon.ready()
    assert peer.call("theirs").json["success"] is True


def test_with_declare_off_nothing_is_made(start: StartDaemon, node: PrivateNode, virtual_host: str) -> None:
    daemon = start(
        """
        [service]
        declare = false
        [queues.work]
        [consumers.work]
        queue = "work"
        handler = "handlers_of_test:echo"
        """,
        HANDLERS,
        wait=False,
    )
    daemon.wait_for("no queue 'work.archive'")
    assert arguments(node, virtual_host) == {}
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0


@pytest.fixture
def user(node: PrivateNode, virtual_host: str) -> str:
    """A user without any permission in the test's virtual host."""
    name = f"user-of-{virtual_host}"
    node.ctl("add_user", name, "secret-of-user")
    return name


@pytest.mark.parametrize(
    ("configure", "write", "read", "says"),
    [
        ("", ".*", ".*", "access to queue 'work.archive' in vhost"),
        (".*", "^work", ".*", "write` on `^amq\\.default$`"),
        (".*", ".*", "", "access to queue 'work.retry.200' in vhost"),
        (".*", ".*", "^work.retry", "access to queue 'work' in vhost"),
    ],
)
def test_a_missing_permission_exits_77_and_names_it(
    start: StartDaemon, node: PrivateNode, virtual_host: str, user: str, configure: str, write: str, read: str, says: str
) -> None:
    node.ctl("set_permissions", "--vhost", virtual_host, user, configure, write, read)
    daemon = start(
        '[queues.work]\n[consumers.work]\nqueue = "work"\nhandler = "handlers_of_test:echo"\n',
        HANDLERS,
        at=node.url(virtual_host, user, "secret-of-user"),
        wait=False,
    )
    assert daemon.wait() == 77
    assert says in daemon.output
    assert "secret-of-user" not in daemon.output


def test_a_passive_queue_that_may_not_be_read_exits_77(
    start: StartDaemon, peer: Peer, node: PrivateNode, virtual_host: str, user: str
) -> None:
    peer.channel.queue_declare("theirs", durable=True)
    node.ctl("set_permissions", "--vhost", virtual_host, user, ".*", ".*", "^theirs.retry")
    daemon = start(
        '[queues.theirs]\npassive = true\n[consumers.theirs]\nqueue = "theirs"\nhandler = "handlers_of_test:echo"\n',
        HANDLERS,
        at=node.url(virtual_host, user, "secret-of-user"),
        wait=False,
    )
    assert daemon.wait() == 77
    assert "consumers.theirs: the broker refused to deliver from queue 'theirs': 403" in daemon.output
    assert "grant the permission `read` on 'theirs'" in daemon.output


def test_an_unknown_exchange_type_exits_78(start: StartDaemon) -> None:
    daemon = start(
        """
        [exchanges.odd]
        type = "x-no-such-plugin"
        [queues.work]
        bindings = [{ exchange = "odd" }]
        [consumers.work]
        queue = "work"
        handler = "handlers_of_test:echo"
        """,
        HANDLERS,
        wait=False,
    )
    assert daemon.wait() == 78
    assert "exchanges.odd: the broker refused exchange 'odd': " in daemon.output
