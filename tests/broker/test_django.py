"""Real Django, real PostgreSQL, and connections that break while the daemon runs."""

import pathlib
import textwrap
from collections.abc import Callable

import pytest
from daemon import Daemon, StartDaemon
from databases import Postgresql
from peer import Peer

SETTINGS = """
    SECRET_KEY = "x"
    USE_TZ = True
    INSTALLED_APPS = ["goods"]
    DATABASES = {{
        "default": {{
            "ENGINE": "django.db.backends.postgresql",
            "NAME": {name!r},
            "HOST": "127.0.0.1",
            "PORT": {port},
            "USER": "rpcd",
            "CONN_MAX_AGE": {age},
            "CONN_HEALTH_CHECKS": {checks},
        }}
    }}
"""

MODELS = """
    from django.db import models

    class Order(models.Model):
        number = models.IntegerField(unique=True)

        class Meta:
            app_label = "goods"
"""

HANDLERS = """
    import logging
    import rpcd
    from django.db import connection, transaction
    from goods.models import Order  # Django is set up by now

    def pid():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return cursor.fetchone()[0]

    def work(message):
        what, number = message.body["do"], message.body.get("number")
        if what == "pid":
            return {"pid": pid(), "attempt": message.attempt}
        if what == "create":
            Order.objects.create(number=number)
        elif what == "abort":
            with connection.cursor() as cursor:
                cursor.execute("BEGIN")
                cursor.execute("INSERT INTO goods_order (number) VALUES (1), (1)")
        elif what == "leave":
            transaction.atomic().__enter__()
            Order.objects.create(number=number)
        return {"orders": sorted(Order.objects.values_list("number", flat=True))}

    async def work_async(message):
        await Order.objects.acreate(number=message.body["number"])
        return {"orders": await Order.objects.acount()}
"""

CONFIG = """
    [queues.work]
    [consumers.work]
    queue = "work"
    handler = "handlers_of_test:{handler}"
    workers = {workers}
    layers = {layers}
    on_error = "{on_error}"
    retry = {{ delays = [0.1, 0.2] }}
    {section}
"""

Begin = Callable[..., Daemon]


@pytest.fixture
def database(postgresql: Postgresql) -> str:
    name = postgresql.make_database()
    postgresql.execute("CREATE TABLE goods_order (id bigserial PRIMARY KEY, number integer UNIQUE NOT NULL)", name)
    return name


@pytest.fixture
def begin(start: StartDaemon, tmp_path: pathlib.Path, postgresql: Postgresql, database: str) -> Begin:
    """Start a daemon with Django's settings for the test's own database; connections stay open unless said."""

    def made(
        *,
        handler: str = "work",
        workers: int = 1,
        layered: bool = True,
        age: int | None = None,
        checks: bool = False,
        on_error: str = "retry",
    ) -> Daemon:
        settings = SETTINGS.format(name=database, port=postgresql.port, age=age, checks=checks)
        (tmp_path / "settings_of_test.py").write_text(textwrap.dedent(settings))
        (tmp_path / "goods").mkdir()
        (tmp_path / "goods/__init__.py").touch()
        (tmp_path / "goods/models.py").write_text(textwrap.dedent(MODELS))
        config = CONFIG.format(
            handler=handler,
            workers=workers,
            layers=["django"] if layered else [],
            on_error=on_error,
            section='[layers.django]\n    settings = "settings_of_test"' if layered else "",
        )
        before = (
            ""
            if layered
            else "import os, django\nos.environ['DJANGO_SETTINGS_MODULE'] = 'settings_of_test'\ndjango.setup()\n"
        )
        return start(config, before + textwrap.dedent(HANDLERS))

    return made


def break_connections(postgresql: Postgresql, database: str) -> None:
    postgresql.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")


def test_a_message_after_the_one_that_met_a_broken_connection_gets_a_new_one(
    begin: Begin, peer: Peer, postgresql: Postgresql, database: str
) -> None:
    begin()
    first = peer.call("work", {"do": "pid"}).json["data"]
    assert peer.call("work", {"do": "pid"}).json["data"] == first  # it is kept
    break_connections(postgresql, database)
    second = peer.call("work", {"do": "pid"}).json["data"]
    assert second["attempt"] == 2
    assert second["pid"] != first["pid"]


def test_with_djangos_health_checks_not_even_one_message_meets_a_broken_connection(
    begin: Begin, peer: Peer, postgresql: Postgresql, database: str
) -> None:
    begin(checks=True)
    first = peer.call("work", {"do": "pid"}).json["data"]
    break_connections(postgresql, database)
    second = peer.call("work", {"do": "pid"}).json["data"]
    assert second["attempt"] == 1
    assert second["pid"] != first["pid"]


def test_without_the_layer_a_broken_connection_stays_broken(
    begin: Begin, peer: Peer, postgresql: Postgresql, database: str
) -> None:
    begin(layered=False)
    assert peer.call("work", {"do": "pid"}).json["success"] is True
    break_connections(postgresql, database)
    assert [peer.call("work", {"do": "pid"}).json["success"] for _ in range(2)] == [False, False]


def test_an_aborted_transaction_is_gone_with_its_message(begin: Begin, peer: Peer) -> None:
    daemon = begin(on_error="reply")
    assert peer.call("work", {"do": "create", "number": 1}).json["data"] == {"orders": [1]}
    assert peer.call("work", {"do": "abort"}).json["success"] is False
    assert peer.call("work", {"do": "create", "number": 2}).json["data"] == {"orders": [1, 2]}
    assert peer.call("work", {"do": "create", "number": 2}).json["success"] is False
    assert peer.call("work", {"do": "create", "number": 3}).json["data"] == {"orders": [1, 2, 3]}
    assert "current transaction is aborted" not in daemon.output


def test_a_transaction_that_a_handler_never_ends_is_dropped(begin: Begin, peer: Peer) -> None:
    begin(on_error="reply")
    assert peer.call("work", {"do": "leave", "number": 1}).json["data"] == {"orders": [1]}
    assert peer.call("work", {"do": "create", "number": 2}).json["data"] == {"orders": [2]}


def test_a_database_that_is_restarted_costs_no_message(
    begin: Begin, peer: Peer, postgresql: Postgresql, database: str
) -> None:
    daemon = begin(workers=3)
    for number in range(10):
        peer.publish("work", {"do": "create", "number": number})
    postgresql.stop()
    postgresql.start()
    for number in range(10, 20):
        peer.publish("work", {"do": "create", "number": number})

    given_up: set[int] = set()

    def accounted() -> bool:
        """Look where each is: in the table, or given up when it had met the restart on each of its attempts."""
        given_up.update(each.json["number"] for each in peer.left("work.archive"))
        made = {row[0] for row in postgresql.execute("SELECT number FROM goods_order", database)}
        return made | given_up == set(range(20))

    peer.until(accounted)
    assert daemon.stop() == 0


def test_async_handlers_have_a_connection_each_and_leave_none_open(
    begin: Begin, peer: Peer, postgresql: Postgresql, database: str
) -> None:
    daemon = begin(handler="work_async", workers=10)
    for number in range(40):
        peer.publish("work", {"number": number}, reply_to=peer.reply_queue)
    assert all(reply.json["success"] for reply in peer.replies(40))

    def connected() -> int:
        (row,) = postgresql.execute(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'")
        return int(row[0])

    peer.until(lambda: connected() == 0)
    assert postgresql.execute("SELECT count(*) FROM goods_order", database) == [(40,)]
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("", "layers.django.settings: missing; name Django's settings module here, or in DJANGO_SETTINGS_MODULE"),
        ('[layers.django]\nsettings = "nowhere"', "consumers.work.layers[0]: the layer django can't be set up: Mod"),
        ('[layers.django]\nsetings = "x"', "layers.django.setings: unknown key; did you mean 'settings'?"),
    ],
)
def test_settings_that_are_missing_or_wrong_are_told_at_start(start: StartDaemon, section: str, said: str) -> None:
    config = CONFIG.format(handler="work", workers=1, layers=["django"], on_error="auto", section="")
    daemon = start(textwrap.dedent(config) + section, "def work(message): ...", wait=False)
    assert daemon.wait() == 78
    assert said in daemon.output
