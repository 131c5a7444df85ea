"""From a config to plans when handlers are named by decorators or by a namespace."""

import importlib
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rpcd.config import assemble
from rpcd.core.errors import SettingsError
from rpcd.core.message import Message
from rpcd.core.routes import Stray
from rpcd.core.topology import Bind, DeclareExchange, DeclareQueue

Assemble = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder for handlers; the import system is afterwards as it was."""
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("shop", "acme", "broken"):
            del sys.modules[name]


@pytest.fixture
def assembled(folder: pathlib.Path) -> Assemble:
    """Assemble a config with these files beside it; `path` are the directories in [service] path."""

    def made(text: str, files: dict[str, str], path: tuple[str, ...] = (".",), virtual_host: str | None = None) -> Any:
        for name, source in files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(source))
        text = textwrap.dedent(text)
        text = text if "[service]" in text else f"[service]\n{text}"
        config = folder / "rpcd.toml"
        config.write_text(text.replace("[service]\n", f"[service]\npath = {list(path)!r}\n", 1))
        importlib.invalidate_caches()
        return assemble(str(config), {"SECRET": "s3"}, virtual_host)

    return made


@pytest.fixture
def wrong(assembled: Assemble) -> Callable[..., list[str]]:
    """Return what is told of a wrong config."""

    def told(*arguments: Any, **named: Any) -> list[str]:
        with pytest.raises(SettingsError) as error:
            assembled(*arguments, **named)
        return [re.sub(r"^\S*/rpcd\.toml: ", "FILE: ", str(each)) for each in error.value.problems]

    return told


# Decorators ---------------------------------------------------------------------------------------

EVENTS = """
    import rpcd

    @rpcd.message_handler(["order.*", "stock.#"], exchange="shop", workers=3, config={"dsn": "${SECRET}"})
    class Changed:
        def __init__(self, config):
            self.config = config

        def __call__(self, message):
            return self.config

    @rpcd.message_handler("paid", exchange="money", queue="payments", retry={"delays": [1]})
    def paid(message):
        return message.body
"""

MODULES = '[service]\nmodules = ["shop.events"]\n'


def test_registrations_become_queues_and_consumers(assembled: Assemble) -> None:
    settings, (changed, paid) = assembled(MODULES + '[exchanges.money]\ntype = "direct"\n', {"shop/events.py": EVENTS})
    assert (changed.name, changed.queue, changed.section.workers) == ("shop.events.Changed", "shop.events.Changed", 3)
    assert changed.routes[0].make_handler()[0](Message()) == {"dsn": "s3"}
    assert changed.who.handler == "shop.events:Changed"
    assert [item for item in changed.declarations if isinstance(item, Bind | DeclareExchange)] == [
        Bind("@message_handler shop.events:Changed, bindings[0]", "shop.events.Changed", "shop", key, {})
        for key in ("order.*", "stock.#")
    ]
    assert (paid.name, paid.queue, paid.section.retry.delays) == ("payments", "payments", [1])
    assert [item.name for item in paid.declarations if isinstance(item, DeclareExchange)] == ["money"]
    assert list(settings.consumers) == ["shop.events.Changed", "payments"]


def test_the_file_and_its_overlay_win_over_the_decorator(assembled: Assemble) -> None:
    _, (changed, paid) = assembled(
        MODULES
        + """
        [queues.payments]
        type = "classic"
        bindings = []
        [consumers."shop.events.Changed"]
        workers = 8
        [consumers.payments.retry]
        attempts = 7
        [virtual_hosts.staging.consumers."shop.events.Changed".config]
        dsn = "staging"
        """,
        {"shop/events.py": EVENTS},
        virtual_host="staging",
    )
    assert (changed.section.workers, changed.section.config) == (8, {"dsn": "staging"})
    assert (paid.section.retry.attempts, paid.section.retry.delays) == (7, [1])
    assert not [item for item in paid.declarations if isinstance(item, Bind)]


def test_a_consumer_that_the_file_moves_to_another_queue_takes_its_bindings_along(assembled: Assemble) -> None:
    config = MODULES + '[queues.mine]\n[virtual_hosts.staging.consumers.payments]\nqueue = "mine"\n'
    settings, (_, paid) = assembled(config, {"shop/events.py": EVENTS}, virtual_host="staging")
    assert [(item.queue, item.routing_key) for item in paid.declarations if isinstance(item, Bind)] == [("mine", "paid")]
    assert sorted(settings.queues) == ["mine", "shop.events.Changed"]


def test_a_file_that_names_the_module_twice_registers_once(assembled: Assemble) -> None:
    files = {"shop/events.py": EVENTS, "shop/__init__.py": "from shop.events import Changed, paid\n"}
    _, plans = assembled('[service]\nmodules = ["shop", "shop.events", "shop.events"]\n', files)
    assert [plan.name for plan in plans] == ["shop.events.Changed", "payments"]


def test_wrong_arguments_are_told_with_the_line_of_the_decorator(wrong: Any, folder: pathlib.Path) -> None:
    source = 'import rpcd\n\n@rpcd.message_handler([], exchange="shop")\ndef handle(message):\n    pass\n'
    (told,) = wrong(MODULES, {"shop/events.py": source})
    assert told.startswith(
        "FILE: service.modules[0]: shop.events can't be imported: ValueError: @message_handler: a routing key"
    )
    assert told.endswith(f'is none; for a fanout exchange write "#" ({folder}/shop/events.py, line 3)')


def test_every_mistake_of_decorator_and_file_is_told_at_once_with_its_place(wrong: Any) -> None:
    source = """
        import rpcd

        @rpcd.message_handler("a", exchange="shop", workers="8", retry={"delay": [1]})
        def one(message):
            pass

        @rpcd.message_handler("a", exchange="shop", time_limit=0)
        def two(message, more):
            pass
    """
    config = MODULES + '[consumers."shop.events.two"]\nworkers = 0\n[queues."shop.events.one"]\ntypo = 1\n'
    told = wrong(config, {"shop/events.py": source})
    assert [each.partition("; ")[0] for each in told] == [
        "FILE: queues.shop.events.one.typo: unknown key",
        "FILE: consumers.shop.events.two.workers: expected a whole number from 1, got 0",
        "@message_handler shop.events:one, workers: expected a whole number from 1, got a string",
        "@message_handler shop.events:one, retry.delay: unknown key",
        "@message_handler shop.events:two, time_limit: no handler can run in 0 seconds",
        (
            "@message_handler shop.events:two: shop.events:two(message, more) can't be called with one positional argument, "
            "the message: missing a required argument: 'more'"
        ),
    ]


def test_a_module_that_cannot_be_imported_or_registers_nothing_is_an_error(wrong: Any) -> None:
    told = wrong(
        '[service]\nmodules = ["shop.nothing", "shop.missing", "shop.broken", "3 x"]\n'
        '[consumers."shop.broken.handle"]\nworkers = 2\n',
        {"shop/nothing.py": "import rpcd\n", "shop/broken.py": "1 / 0\n"},
    )
    assert [each[:79] for each in told] == [
        "FILE: service.modules[3]: '3 x' is no module; expected package.module"[:79],
        "FILE: service.modules[0]: shop.nothing registers no handler; mark one with @rpcd.message_handler"[:79],
        "FILE: service.modules[1]: shop.missing: there is no module 'shop.missing'; looked in service.path"[:79],
        "FILE: service.modules[2]: shop.broken can't be imported: ZeroDivisionError: division by zero"[:79],
    ]


def test_an_override_of_what_nobody_registers_says_what_it_lacks(wrong: Any) -> None:
    told = wrong(MODULES + '[consumers."shop.events.paid"]\nworkers = 2\n', {"shop/events.py": EVENTS})
    assert told == ["FILE: consumers.shop.events.paid.queue: missing; The queue: the name of a [queues] section."]


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ("""
    def setup():
        @rpcd.message_handler("b", exchange="shop")
        def nested(message): ...
    setup()
    """, "setup.<locals>.nested"),
        ("""
    def bare(function):
        return lambda message: function(message)

    @bare
    @rpcd.message_handler("b", exchange="shop")
    def hidden(message): ...
    """, "hidden"),
        ("""
    @rpcd.message_handler("b", exchange="shop")
    def twice(message): ...

    def twice(message): ...
    """, "twice"),
    ],
    ids=["nested", "under a decorator without wraps", "overwritten"],
)  # fmt: skip
def test_what_is_decorated_and_can_never_be_found_is_told(wrong: Any, more: str, name: str) -> None:
    """It would look registered, and never run."""
    (said,) = wrong('modules = ["shop.events"]', {"shop/events.py": EVENTS + more})
    assert said.startswith(f"@message_handler shop.events:{name}: no top-level name of its module leads to it")


def test_a_handler_that_cannot_even_be_looked_at_is_told(wrong: Any) -> None:
    source = """
        class Raising:
            def __get__(self, instance, owner):
                raise RuntimeError("not today")

        class Handler:
            __call__ = Raising()

        handle = Handler()
        """
    text = '[queues.q]\n[consumers.c]\nqueue = "q"\nhandler = "shop.events:handle"'
    (said,) = wrong(f"[service]\n{text}", {"shop/events.py": source})
    assert said.startswith("FILE: consumers.c.handler: shop.events:handle can't be looked at: RuntimeError: not today (")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", "the consumer 'shop.events.one' is that of another decorator on the same object already"),
        (', name="other"', "the queue 'shop.events.one' is that of shop.events:one already"),
    ],
)
def test_two_registrations_of_one_queue_are_an_error(wrong: Any, more: str, said: str) -> None:
    source = f"""
        import rpcd

        @rpcd.message_handler("b", exchange="crm"{more})
        @rpcd.message_handler("a", exchange="shop")
        def one(message):
            pass
    """
    assert wrong(MODULES, {"shop/events.py": source}) == [
        f"@message_handler shop.events:one: {said}; give each decorator a queue= of its own"
    ]


def test_several_decorators_with_queues_of_their_own_are_several_consumers(assembled: Assemble) -> None:
    source = """
        import rpcd

        @rpcd.message_handler("b", exchange="crm", queue="customers")
        @rpcd.message_handler("a", exchange="shop")
        def one(message):
            pass
    """
    _, plans = assembled(MODULES, {"shop/events.py": source})
    assert [(plan.name, plan.who.handler) for plan in plans] == [
        ("shop.events.one", "shop.events:one"),
        ("customers", "shop.events:one"),
    ]


def test_a_queue_that_a_consumer_of_the_file_has_is_an_error(wrong: Any) -> None:
    config = MODULES + '[queues.payments]\n[consumers.mine]\nqueue = "payments"\nhandler = "shop.events:paid"\n'
    assert wrong(config, {"shop/events.py": EVENTS}) == [
        (
            "@message_handler shop.events:paid: the queue 'payments' is that of consumers.mine already; "
            "give each decorator a queue= of its own"
        )
    ]


# Namespaces ---------------------------------------------------------------------------------------

HANDLE = "def handle(message):\n    return __name__\n"
CLASS = "class Handler:\n    def __call__(self, message):\n        return __name__\n"
CLUSTER = '[queues.node1]\n[consumers.cluster]\nqueue = "node1"\nnamespace = "acme.handlers"\n'


def test_the_modules_of_a_namespace_handle_the_exchanges_of_their_names(assembled: Assemble) -> None:
    settings, (plan,) = assembled(
        CLUSTER + 'exchanges = ["server-create", "server.delete"]\n',
        {"one/acme/handlers/server_create.py": HANDLE, "two/acme/handlers/server_delete.py": CLASS},
        path=("one", "two"),
    )
    assert plan.exchanges == ("server-create", "server.delete")
    assert [route.target.path for route in plan.routes] == [
        "acme.handlers.server_create:handle",
        "acme.handlers.server_delete:Handler",
    ]
    assert [item.name for item in plan.declarations if isinstance(item, DeclareQueue)][-1] == "node1"
    assert [(item.exchange, item.routing_key) for item in plan.declarations if isinstance(item, Bind)] == [
        ("server-create", "node1"),
        ("server.delete", "node1"),
    ]
    assert [(item.name, item.type, item.durable) for item in plan.declarations if isinstance(item, DeclareExchange)] == [
        ("server-create", "direct", True),
        ("server.delete", "direct", True),
    ]
    assert list(settings.exchanges) == ["server-create", "server.delete"]
    chosen = plan.choose(Message(exchange="server.delete"))
    assert (chosen, chosen.number) == (plan.routes[1], 1)
    assert isinstance(plan.choose(Message(exchange="")), Stray)


def test_without_exchanges_every_module_counts_but_those_that_begin_with_an_underscore(assembled: Assemble) -> None:
    _, (plan,) = assembled(
        CLUSTER,
        {
            "one/acme/handlers/one.py": HANDLE,
            "one/acme/handlers/_shared.py": "",
            "two/acme/handlers/two/__init__.py": HANDLE,
            "two/acme/handlers/data.txt": "",
        },
        path=("one", "two"),
    )
    assert plan.exchanges == ("one", "two")


def test_an_ordinary_package_is_a_namespace_as_well(assembled: Assemble) -> None:
    _, (plan,) = assembled(
        CLUSTER, {f"acme/{name}": HANDLE for name in ("__init__.py", "handlers/__init__.py", "handlers/a.py")}
    )
    assert plan.exchanges == ("a",)


def test_sections_say_what_an_exchange_is(assembled: Assemble) -> None:
    _, (plan,) = assembled(
        """
        [exchanges.server-create]
        name = "prod.server"
        type = "fanout"
        [queues.node1]
        bindings = [{ exchange = "amq.topic", routing_keys = ["more"] }]
        [consumers.cluster]
        queue = "node1"
        namespace = "acme.handlers"
        """,
        {"acme/handlers/server_create.py": HANDLE},
    )
    assert plan.exchanges == ("prod.server",)
    assert [(item.name, item.type) for item in plan.declarations if isinstance(item, DeclareExchange)] == [
        ("prod.server", "fanout")
    ]
    assert [(item.path, item.exchange, item.routing_key) for item in plan.declarations if isinstance(item, Bind)] == [
        ("queues.node1.bindings[0]", "amq.topic", "more"),
        ("consumers.cluster.namespace", "prod.server", "node1"),
    ]


def test_an_exchange_of_the_brokers_own_is_bound_to_but_never_declared(assembled: Assemble) -> None:
    _, (plan,) = assembled(CLUSTER + 'exchanges = ["amq.direct"]\n', {"acme/handlers/amq_direct.py": HANDLE})
    assert [item.exchange for item in plan.declarations if isinstance(item, Bind)] == ["amq.direct"]
    assert not [item for item in plan.declarations if isinstance(item, DeclareExchange)]


@pytest.mark.parametrize(
    ("exchanges", "files", "said"),
    [
        (["one", "two"], {"one.py": HANDLE}, "exchanges[1]: exchange 'two': acme.handlers.two: there is no module "),
        (["one", "two"], {"one.py": HANDLE, "b.py": HANDLE}, "; of modules in acme.handlers there are b, one"),
        (
            ["a/b"],
            {"one.py": HANDLE},
            "exchanges[0]: no module can be named for the exchange 'a/b': 'a/b' is no Python name",
        ),
        ([], {"_own.py": HANDLE}, "namespace: there is no module in acme.handlers; add one for each exchange"),
        ([], {"one.py": ""}, "acme.handlers.one has neither a function `handle` nor a class `Handler` (FOLDER/one.py)"),
        (
            ["one"],
            {"one.py": HANDLE + CLASS},
            "exchanges[0]: acme.handlers.one has both `handle` and `Handler`; keep one (FOLDER",
        ),
        (
            ["one"],
            {"one.py": "Handler = 5"},
            "acme.handlers.one.Handler is no class; a function or callable object is called",
        ),
        (["one"], {"one.py": "handle = 5"}, "acme.handlers.one:handle is of type int, which can't be called"),
        (
            ["one"],
            {"one.py": "1 / 0"},
            "acme.handlers.one can't be imported: ZeroDivisionError: division by zero (FOLDER/one.py",
        ),
    ],
)
def test_what_a_namespace_lacks_is_told(
    wrong: Any, folder: pathlib.Path, exchanges: list[str], files: dict[str, str], said: str
) -> None:
    given = {f"acme/handlers/{name}": source for name, source in files.items()}
    (told,) = wrong(CLUSTER + f"exchanges = {exchanges}\n", given)
    assert told.startswith("FILE: consumers.cluster.")
    assert said.replace("FOLDER", f"{folder}/acme/handlers") in told


def test_a_namespace_that_is_not_there_or_is_a_module_is_told(wrong: Any, folder: pathlib.Path) -> None:
    (told,) = wrong(CLUSTER, {})
    assert told.startswith(
        "FILE: consumers.cluster.namespace: acme.handlers: there is no module 'acme'; looked in service.path"
    )
    (told,) = wrong(CLUSTER, {"acme/handlers.py": HANDLE})
    assert told.endswith(f"acme.handlers is a module, not a package ({folder}/acme/handlers.py)")


def test_the_queue_of_a_namespace_has_a_name(wrong: Any) -> None:
    told = wrong(CLUSTER.replace("[queues.node1]", '[queues.node1]\nname = ""'), {"acme/handlers/one.py": HANDLE})
    (said,) = told
    assert said.endswith("namespace: its queue is named by the broker; give it a name: that is the key of its bindings")
