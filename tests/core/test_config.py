import importlib
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from rpcd import config
from rpcd.config import assemble, read
from rpcd.core.errors import SettingsError
from rpcd.core.handler import HandlerError
from rpcd.core.message import Message
from rpcd.core.policy import Policy
from rpcd.core.topology import plan_consumer
from rpcd.importing import checked_target, resolve

HANDLERS = """
import attrs
import rpcd

@attrs.define
class Order:
    customer: str

def handle(message):
    return message.body

def start():
    pass

class PlaceOrder:
    def __init__(self, config):
        self.config = config

    def __call__(self, message: rpcd.Message[Order]):
        return self.config

    class Inner:
        def __call__(self, message):
            pass

NUMBER = 5
"""

PLAIN = """
[service]
path = [{folder}]
[queues.orders]
[consumers.shop]
queue = "orders"
handler = "shop_handlers:handle"
"""

Write = Callable[..., pathlib.Path]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder for handlers; the import system is afterwards as it was."""
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def write(folder: pathlib.Path) -> Write:
    """Write a file, and return its path."""

    def into(name: str, text: str) -> pathlib.Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        importlib.invalidate_caches()
        return path

    return into


@pytest.fixture
def importable(folder: pathlib.Path, write: Write) -> Write:
    """The same, for modules that are found without a config."""
    write("shop_handlers.py", HANDLERS)
    sys.path.insert(0, str(folder))
    return write


@pytest.fixture
def assembled(folder: pathlib.Path, write: Write) -> Callable[..., Any]:
    """Assemble a config; `{folder}` in it stands for the folder of its handlers."""

    def made(text: str, handlers: str = HANDLERS, **environment: str) -> Any:
        write("shop_handlers.py", handlers)
        path = write("rpcd.toml", text.replace("{folder}", repr(str(folder))))
        return assemble(str(path), environment)

    return made


def problems(error: pytest.ExceptionInfo[SettingsError]) -> list[str]:
    """Return what is wrong, without the name of the file."""
    return [re.sub(r"^.*/rpcd\.toml: ", "", str(problem)) for problem in error.value.problems]


# From a file to plans -----------------------------------------------------------------------------


def test_a_config_becomes_one_plan_a_consumer(assembled: Any) -> None:
    settings, plans = assembled(
        """
        [service]
        path = [{folder}]
        on_start = "shop_handlers:start"
        publish_timeout = 7
        [exchanges.shop]
        [queues.orders]
        name = "company-orders"
        bindings = [{ exchange = "shop", routing_keys = ["order.#"] }]
        [queues.live]
        name = ""
        [consumers.shop]
        queue = "orders"
        handler = "shop_handlers.PlaceOrder"
        on_error = "retry"
        lock = "body.customer"
        max_body = 1000
        max_reply = 2000
        reply = "plain"
        reply_to_allowed = ["replies.*"]
        retry = { delays = [1, 2], attempts = 9 }
        [consumers.shop.config]
        dsn = "postgresql:///shop"
        [consumers.live]
        queue = "live"
        handler = "shop_handlers:handle"
        """
    )
    shop, live = plans
    assert (shop.name, shop.queue, shop.title, shop.publish_timeout) == ("shop", "company-orders", "company-orders", 7)
    assert (live.name, live.queue, live.title) == ("live", "", "live")
    assert shop.section == settings.consumers["shop"]
    assert shop.declarations == plan_consumer(settings, "shop")
    assert (shop.who.consumer, shop.who.handler) == ("shop", "shop_handlers.PlaceOrder")
    (route,) = shop.routes
    assert (route.consumer, route.queue, route.max_body, route.config) == (
        "shop",
        "company-orders",
        1000,
        {"dsn": "postgresql:///shop"},
    )
    policy: Policy = route.policy
    assert (policy.on_error, policy.steps, policy.longest) == ("retry", shop.section.steps, None)
    assert attrs.evolve(policy.replies, own_queues=()).allowed == ("replies.*",)
    assert (policy.replies.form, policy.replies.via, policy.replies.max_reply) == ("plain", "default", 2000)
    assert policy.replies.own_queues == {
        "company-orders",
        "company-orders.archive",
        "company-orders.retry.1000",
        "company-orders.retry.2000",
        "live",
        "live.archive",
    }
    assert live.routes[0].policy.longest == 60


def test_the_route_of_a_plan_carries_a_message_to_its_handler(assembled: Any) -> None:
    _, (plan,) = assembled(PLAIN.replace(":handle", ":PlaceOrder") + 'lock = "body.customer"\nconfig = { dsn = "x" }\n')
    handler, _ = plan.routes[0].make_handler()
    message = Message[Any](payload=b'{"customer": "ann"}')
    plan.routes[0].open(message)
    assert (message.body.customer, plan.routes[0].key(message), handler(message)) == ("ann", "ann", {"dsn": "x"})


def test_what_the_file_says_is_what_the_settings_say(write: Write) -> None:
    path = write(
        "rpcd.toml",
        """
        [broker]
        url = "amqps://shop:${PASSWORD}@rabbit1,rabbit2:5671/shop"
        heartbeat = 20
        [service]
        drain_timeout = 12.5
        declare = false
        [logging]
        format = "json"
        [exchanges.shop]
        type = "direct"
        [queues.orders]
        bindings = [{ exchange = "shop", routing_keys = ["a", "b"] }]
        arguments = { x-max-length = 10 }
        [consumers.orders]
        queue = "orders"
        handler = "shop.orders:PlaceOrder"
        workers = 8
        [consumers.orders.retry]
        delays = [0.2, 1]
        [consumers.orders.archive]
        max_length = 1_000_000
        [consumers.orders.config]
        since = 2020-01-02
        """,
    )
    settings, found = read(str(path), {"PASSWORD": "p@ss"})
    assert found == []
    assert (settings.broker.url, settings.broker.heartbeat) == ("amqps://shop:p%40ss@rabbit1,rabbit2:5671/shop", 20)
    assert (settings.service.drain_timeout, settings.service.declare, settings.logging.format) == (12.5, False, "json")
    assert settings.exchanges["shop"].type == "direct"
    assert settings.queues["orders"].arguments == {"x-max-length": 10}
    assert settings.queues["orders"].bindings[0].routing_keys == ["a", "b"]
    orders = settings.consumers["orders"]
    assert (orders.workers, orders.retry.delays, orders.archive.max_length) == (8, [0.2, 1.0], 1_000_000)
    assert orders.config["since"].isoformat() == "2020-01-02"


def test_files_are_read_for_expansions(write: Write) -> None:
    secret = write("key", "correct-horse\n")
    path = write("rpcd.toml", f'[broker]\npassword = "${{file:{secret}}}"\n')
    assert read(str(path), {})[0].broker.password == "correct-horse"


# Files that can't be used -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\xff", "is not UTF-8 text"),
        (b"a = ", "is not valid TOML: Invalid value"),
        (b"[a]\n[a]\n", "is not valid TOML: Cannot declare"),
        (b"a = 1\na = 2\n", "is not valid TOML: Cannot overwrite"),
        (b"a = " + b"9" * 5000, "is not valid TOML"),
    ],
    ids=["not text", "no value", "table twice", "key twice", "huge number"],
)
def test_a_file_that_cannot_be_read_is_one_problem(tmp_path: pathlib.Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "rpcd.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        read(str(path), {})
    (problem,) = caught.value.problems
    assert problem.path == str(path)
    assert problem.what.startswith(complaint)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("nowhere.toml", "can't be read: No such file or directory"), (".", "can't be read: Is a directory")],
)
def test_a_file_that_is_not_there_is_one_problem(tmp_path: pathlib.Path, name: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(complaint)):
        read(str(tmp_path / name), {})


@pytest.mark.parametrize("value", ["${file:/etc/nowhere}", "${file:/etc}", "${file:/etc/\\u0000}"])
def test_an_expansion_of_a_file_that_cannot_be_read_is_a_problem(write: Write, value: str) -> None:
    _, found = read(str(write("rpcd.toml", f'[broker]\npassword = "{value}"\n')), {})
    assert [problem.path for problem in found if problem.path.startswith("broker")] == ["broker.password"]


def test_certificates_that_cannot_be_used_are_problems(write: Write, folder: pathlib.Path) -> None:
    write("ca.pem", "no certificate")
    write("key.pem", "no key").chmod(0o600)
    path = write(
        "rpcd.toml",
        f"""
        [broker]
        url = "amqps://h"
        [broker.tls]
        ca = "{folder}/ca.pem"
        key = "{folder}/key.pem"
        certificate = "{folder}/nowhere.pem"
        """,
    )
    _, found = read(str(path), {})
    assert [str(problem) for problem in found if problem.path.startswith("broker.tls.")] == [
        f"broker.tls.ca: {folder}/ca.pem holds no certificate (PEM)",
        f"broker.tls.certificate: {folder}/nowhere.pem can't be read: No such file or directory",
        f"broker.tls.key: {folder}/key.pem is not valid PEM",
    ]


# All problems at once -----------------------------------------------------------------------------


def test_every_problem_is_found_at_once_and_names_the_file(assembled: Any, folder: pathlib.Path) -> None:
    with pytest.raises(SettingsError) as caught:
        assembled(
            """
            [broker]
            hearbeat = 5
            [service]
            path = [{folder}]
            on_start = "shop_handlers:nowhere"
            [queues.orders]
            [consumers.a]
            queue = "orders"
            handler = "shop_handlers:NUMBER"
            workers = 0
            [consumers.b]
            queue = "order"
            handler = "shop_handlers:handel"
            [consumers.c]
            queue = "orders"
            handler = "nonsense"
            """
        )
    assert problems(caught) == [
        "broker.hearbeat: unknown key; did you mean 'heartbeat'?",
        "consumers.a.workers: expected a whole number from 1, got 0",
        "consumers.b.queue: there is no [queues.order]; did you mean 'orders'?",
        "consumers.c.handler: 'nonsense' is no dotted path; expected package.module:Name",
        "consumers.a.handler: shop_handlers:NUMBER is of type int, which can't be called",
        "consumers.b.handler: shop_handlers:handel: 'shop_handlers' has no 'handel'; did you mean 'handle'?",
        "service.on_start: shop_handlers:nowhere: 'shop_handlers' has no 'nowhere'",
    ]
    assert all(problem.path.startswith(f"{folder}/rpcd.toml: ") for problem in caught.value.problems)


@pytest.mark.parametrize("on_start", ["shop_handlers:NUMBER", "sys:path", "shop_handlers:handle"])
def test_an_on_start_that_cannot_be_called_without_arguments_is_found_before_the_start(
    assembled: Any, on_start: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        assembled(PLAIN.replace("[queues", f'on_start = "{on_start}"\n[queues', 1))
    assert problems(caught)[0].startswith(f"service.on_start: {on_start}")


def test_a_model_whose_names_are_not_found_is_a_problem(assembled: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        assembled(
            PLAIN,
            """
            import pydantic, rpcd
            class Order(pydantic.BaseModel):
                item: "Item"
            def handle(message: rpcd.Message[list[Order]]): pass
            """,
        )
    (problem,) = problems(caught)
    assert problem.startswith("consumers.shop.handler: shop_handlers:handle: a body can't be decoded to list[")
    assert problem.endswith(": name 'Item' is not defined")


def test_a_module_that_lacks_pydantic_is_told_the_extra(assembled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)  # as where it is not installed
    with pytest.raises(SettingsError) as caught:
        assembled(PLAIN, "from pydantic import BaseModel\ndef handle(message): pass")
    (problem,) = problems(caught)
    assert problem.startswith("consumers.shop.handler: shop_handlers:handle can't be imported: ModuleNotFoundError: ")
    assert problem.endswith('; pip install "rpcd[pydantic]" (Debian: apt-get install python3-pydantic)')


def test_a_body_type_that_cannot_be_decoded_to_is_a_problem(assembled: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        assembled(
            PLAIN,
            """
            import rpcd
            class Odd: pass
            def handle(message: rpcd.Message[Odd]): pass
            """,
        )
    assert problems(caught)[0].startswith("consumers.shop.handler: shop_handlers:handle: a body can't be decoded to")


@pytest.mark.parametrize(
    "handlers",
    [
        "async def handle(message): yield",
        "def handle(message): yield",
        "def handle(): pass",
        "class handle: pass",
        "import sys as handle",
    ],
)
def test_what_cannot_be_a_handler_is_a_problem_of_its_consumer(assembled: Any, handlers: str) -> None:
    with pytest.raises(SettingsError) as caught:
        assembled(PLAIN, handlers)
    (problem,) = problems(caught)
    assert problem.startswith("consumers.shop.handler: shop_handlers:handle ") or "shop_handlers:handle()" in problem


# sys.path -----------------------------------------------------------------------------------------


def test_the_folders_of_the_config_come_first_in_their_order(assembled: Any, folder: pathlib.Path, write: Write) -> None:
    write("other/nothing.py", "")
    assembled(PLAIN.replace("[{folder}]", f"[{{folder}}, {str(folder / 'other')!r}]"))
    assert sys.path[:2] == [str(folder), str(folder / "other")]


def test_a_byte_order_mark_is_no_mistake(write: Write) -> None:
    path = write("rpcd.toml", "")
    path.write_bytes(b"\xef\xbb\xbf[service]\r\ndrain_timeout = 7\r\n")
    assert read(str(path), {})[0].service.drain_timeout == 7


def test_a_folder_that_is_not_there_is_a_problem(write: Write, folder: pathlib.Path) -> None:
    path = write("rpcd.toml", '[service]\npath = [".", "nowhere"]\n')
    assert [str(each) for each in read(str(path), {})[1]][-1:] == [f"service.path[1]: {folder}/nowhere is no directory"]


def test_relative_paths_begin_beside_the_config_file(
    write: Write, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("secret", "pw\n")
    path = write(
        "rpcd.toml",
        """
        [broker]
        url = "amqps://h"
        password = "${file:secret}"
        [broker.tls]
        ca = "tls/ca.pem"
        certificate = "/etc/rpcd/shop.pem"
        [service]
        path = [".", "handlers", "/opt/shop"]
        """,
    )
    monkeypatch.chdir(folder.parent)
    found, _ = read(str(path.relative_to(folder.parent)), {})
    assert found.broker.password == "pw"
    assert found.service.path == [str(folder), str(folder / "handlers"), "/opt/shop"]
    tls = found.broker.tls
    assert (tls.ca, tls.certificate, tls.key) == (str(folder / "tls/ca.pem"), "/etc/rpcd/shop.pem", None)


def test_a_folder_is_put_there_once(assembled: Any, folder: pathlib.Path) -> None:
    assembled(PLAIN)
    assembled(PLAIN)
    assert sys.path.count(str(folder)) == 1


# Dotted paths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["shop_handlers:handle", "shop_handlers.handle"])
def test_both_forms_of_a_dotted_path_name_the_same(importable: Write, path: str) -> None:
    assert resolve(path) is importlib.import_module("shop_handlers").handle


@pytest.mark.parametrize("path", ["shop_handlers:PlaceOrder.Inner", "shop_handlers.PlaceOrder.Inner"])
def test_a_class_within_a_class_can_be_named(importable: Write, path: str) -> None:
    assert resolve(path).__qualname__ == "PlaceOrder.Inner"


@pytest.mark.parametrize("path", ["shop_package.sub.handle", "shop_package.sub:handle"])
def test_a_module_in_a_package_is_imported(importable: Write, path: str) -> None:
    importable("shop_package/__init__.py", "")
    importable("shop_package/sub.py", "def handle(message): return 1")
    assert checked_target(path).value(None) == 1


@pytest.mark.parametrize("path", ["shop_package.handle", "shop_package:handle"])
def test_a_name_in_a_package_itself_can_be_named(importable: Write, path: str) -> None:
    importable("shop_package/__init__.py", "def handle(message): return 1")
    assert resolve(path)(None) == 1


def test_a_package_without_an_init_file_is_one_too(importable: Write) -> None:
    importable("shop_namespace/sub.py", "def handle(message): return 1")
    assert resolve("shop_namespace.sub.handle")(None) == 1


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        (
            "shop_nowhere:handle",
            "shop_nowhere:handle: there is no module 'shop_nowhere'; looked in service.path and sys.path (",
        ),
        (
            "shop_nowhere.handle",
            "shop_nowhere.handle: there is no module 'shop_nowhere'; looked in service.path and sys.path (",
        ),
        ("shop_nowhere.sub:handle", "shop_nowhere.sub:handle: there is no module 'shop_nowhere'"),
        ("shop_handlers.sub:handle", "shop_handlers.sub:handle: there is no module 'shop_handlers.sub'"),
        ("shop_handlers.sub.handle", "shop_handlers.sub.handle: 'shop_handlers' has no 'sub'"),
        ("shop_handlers:handel", "shop_handlers:handel: 'shop_handlers' has no 'handel'; did you mean 'handle'?"),
        ("shop_handlers:PlaceOrder.Iner", "'PlaceOrder' has no 'Iner'; did you mean 'Inner'?"),
        ("shop_handlers", "shop_handlers names no module"),
    ],
)
def test_a_path_that_names_nothing_says_what_is_missing(importable: Write, path: str, complaint: str) -> None:
    with pytest.raises(HandlerError, match=re.escape(complaint)):
        resolve(path)


BROKEN = [
    ("raise KeyError('DSN')", "KeyError: 'DSN'"),
    ("raise SystemExit(3)", "SystemExit: 3"),
    ("def (", "SyntaxError: invalid syntax"),
    ("import shop_missing_dependency", "ModuleNotFoundError: No module named 'shop_missing_dependency'"),
    ("from shop_handlers import nothing", "ImportError: cannot import name 'nothing'"),
    ("1 / 0", "ZeroDivisionError: division by zero"),
]


@pytest.mark.parametrize(("code", "said"), BROKEN, ids=[said for _, said in BROKEN])
@pytest.mark.parametrize("path", ["shop_broken:handle", "shop_broken.handle"])
def test_a_module_that_fails_is_said_with_its_line(importable: Write, path: str, code: str, said: str) -> None:
    place = importable("shop_broken.py", f"\n{code}\ndef handle(message): pass\n")
    with pytest.raises(HandlerError, match=re.escape(f"{path} can't be imported: {said}")) as caught:
        resolve(path)
    assert str(caught.value).endswith(f"({place}, line 2)")


@pytest.mark.parametrize(("code", "said"), BROKEN, ids=[said for _, said in BROKEN])
@pytest.mark.parametrize("path", ["shop_broken.sub:handle", "shop_broken.sub.handle"])
def test_a_package_that_fails_is_said_with_its_line(importable: Write, path: str, code: str, said: str) -> None:
    place = importable("shop_broken/__init__.py", f"\n{code}\n")
    importable("shop_broken/sub.py", "def handle(message): pass\n")
    with pytest.raises(HandlerError, match=re.escape(f"{path} can't be imported: {said}")) as caught:
        resolve(path)
    assert str(caught.value).endswith(f"({place}, line 2)")


def test_a_module_whose_attributes_fail_is_said_too(importable: Write) -> None:
    importable("shop_lazy.py", "def __getattr__(name): raise RuntimeError('no database')")
    with pytest.raises(HandlerError, match="shop_lazy:handle"):
        resolve("shop_lazy:handle")


def test_the_name_of_the_environments_variable_is_promised() -> None:
    assert config.CONFIG == "RPCD_CONFIG"
