"""What may be a layer, what a config says of layers, and what is folded around which handler."""

import asyncio
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import rpcd
from rpcd.config import assemble
from rpcd.core.errors import SettingsError
from rpcd.core.handler import HandlerError
from rpcd.core.layers import layer, own_layers


def around(handler: Any) -> Any:
    return lambda message: ["around", handler(message)]


def with_config(handler: Any, config: Any) -> Any:
    return lambda message: [config, handler(message)]


def optional(handler: Any, level: str = "info") -> Any:
    return lambda message: [level, handler(message)]


class Counted:
    def __init__(self, handler: Any) -> None:
        self.handler, self.count = handler, 0

    def __call__(self, message: Any) -> Any:
        self.count += 1
        return [self.count, self.handler(message)]


def echo(message: Any) -> Any:
    return message


async def echo_later(message: Any) -> Any:
    return message


@pytest.mark.parametrize(
    ("value", "table", "said"),
    [
        (around, None, ["around", 1]),
        (with_config, None, [{}, 1]),
        (with_config, {"a": 2}, [{"a": 2}, 1]),
        (optional, None, ["info", 1]),
        (Counted, None, [1, 1]),
    ],
)
def test_a_layer_takes_the_handler_and_its_config_if_it_wants_one(value: Any, table: Any, said: Any) -> None:
    assert layer("here", value, table)(echo)(1) == said


async def is_async(handler: Any) -> Any: ...
def generates(handler: Any) -> Iterator[Any]:
    yield handler


def takes_nothing() -> None: ...
def takes_three(handler: Any, config: Any, more: Any) -> None: ...


class NotCalled:
    def __init__(self, handler: Any) -> None: ...


@pytest.mark.parametrize(
    ("value", "table", "what"),
    [
        (5, None, "here is of type int, which can't be called"),
        (is_async, None, "here is async; a layer is a plain function"),
        (generates, None, "here is a generator"),
        (takes_nothing, None, "can't be called with the handler"),
        (takes_three, None, "can't be called with the handler"),
        (around, {"a": 1}, "takes no config, but there is one for it"),
        (NotCalled, None, "a class without a __call__"),
    ],
)
def test_what_can_be_no_layer_is_told_at_once(value: Any, table: Any, what: str) -> None:
    with pytest.raises(HandlerError, match=re.escape(what)):
        layer("here", value, table)


def test_what_a_layer_returns_must_be_callable() -> None:
    with pytest.raises(HandlerError, match="the layer here returned what is of type NoneType"):
        layer("here", lambda handler: None)(echo)


def test_an_async_layer_around_a_plain_handler_is_refused() -> None:
    def folds(handler: Any) -> Any:
        async def call(message: Any) -> Any:
            return await handler(message)

        return call

    with pytest.raises(HandlerError, match="the layer here is async, and the handler in it is not"):
        layer("here", folds)(echo)
    assert asyncio.run(layer("here", folds)(echo_later)(1)) == 1


def test_a_plain_layer_may_pass_on_what_an_async_handler_returns_and_no_more() -> None:
    assert asyncio.run(layer("here", lambda handler: lambda message: handler(message + 1))(echo_later)(1)) == 2
    wrong = layer("here", lambda handler: lambda message: {"a": message})(echo_later)
    with pytest.raises(TypeError, match="returned what is of type dict in the place of an async handler"):
        asyncio.run(wrong(1))


def test_a_handler_may_name_layers_of_its_own() -> None:
    class Handler:
        layers = (around, "a.b:c")

    assert own_layers("here", Handler) == (around, "a.b:c")
    assert own_layers("here", echo) == ()


@pytest.mark.parametrize("value", ["a.b:c", 5, [1]])
def test_what_is_called_layers_and_is_no_list_of_them_is_told(value: Any) -> None:
    class Handler:
        layers = value

    with pytest.raises(HandlerError, match=r"here\.layers"):
        own_layers("here", Handler)


# From a config ------------------------------------------------------------------------------------

HANDLERS = """
import rpcd

def named(name):
    def fold(handler, config=None):
        return lambda message: [name + str(config or ""), handler(message)]
    return fold

outer, middle, inner = named("outer"), named("middle"), named("inner")

def echo(message):
    return message.body

def plain(message):
    return message.body

echo.layers = ["LAYERS_MODULE:inner", named("innermost")]

class Wrong:
    layers = ["LAYERS_MODULE:inner", "LAYERS_MODULE:gone"]
    def __call__(self, message): ...

def explode(handler):
    raise ValueError("at fold")

@rpcd.message_handler("a", exchange="shop", queue="decorated", layers=["LAYERS_MODULE:middle"])
def decorated(message):
    return message.body

number = 5
"""

CONFIG = """
[service]
path = [FOLDER]
layers = ["LAYERS_MODULE:outer"]
[queues.work]
[queues.plain]
[consumers.work]
queue = "work"
handler = "LAYERS_MODULE:echo"
layers = ["LAYERS_MODULE:middle"]
[consumers.plain]
queue = "plain"
handler = "LAYERS_MODULE:plain"
"""

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[Write]:
    """Write a config beside handlers, whose module no other test has; return its path."""
    module = f"layers_{abs(hash(request.node.name))}"
    (tmp_path / f"{module}.py").write_text(textwrap.dedent(HANDLERS).replace("LAYERS_MODULE", module))
    before = list(sys.path)

    def put(config: str) -> str:
        file = tmp_path / "rpcd.toml"
        file.write_text(config.replace("FOLDER", repr(str(tmp_path))).replace("LAYERS_MODULE", module))
        return str(file)

    yield put
    sys.path[:] = before
    sys.modules.pop(module, None)


def called(path: str) -> dict[str, Any]:
    _, plans = assemble(path, {})
    return {each.name: each.routes[0].make_handler()[0](rpcd.Message("body")) for each in plans}


def mistakes(path: str) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        assemble(path, {})
    return [f"{each.path.partition(': ')[2]}: {each}" for each in raised.value.problems]


def test_layers_of_service_consumer_and_handler_are_folded_in_that_order(write: Write) -> None:
    assert called(write(CONFIG)) == {
        "work": ["outer", ["middle", ["inner", ["innermost", "body"]]]],
        "plain": ["outer", "body"],
    }


def test_a_decorator_may_name_layers(write: Write) -> None:
    config = CONFIG.replace("[service]", '[service]\nmodules = ["LAYERS_MODULE"]') + '[exchanges.shop]\ntype = "direct"\n'
    assert called(write(config))["decorated"] == ["outer", ["middle", "body"]]


def test_a_section_gives_a_layer_a_name_and_a_config(write: Write) -> None:
    config = CONFIG.replace('["LAYERS_MODULE:middle"]', '["audit", "LAYERS_MODULE:middle"]')
    config += '[layers.audit]\nlayer = "LAYERS_MODULE:middle"\nlevel = 3\n'
    assert called(write(config))["work"][1] == ["middle{'level': 3}", ["middle", ["inner", ["innermost", "body"]]]]


def test_every_mistake_with_layers_is_told_with_its_place(write: Write) -> None:
    config = CONFIG.replace(
        '["LAYERS_MODULE:middle"]', '["tracin", "LAYERS_MODULE:number", "no path:", "LAYERS_MODULE:gone"]'
    )
    config += """
[queues.wrong]
[consumers.wrong]
queue = "wrong"
handler = "LAYERS_MODULE:Wrong"
layers = ["other"]
[layers.other]
layer = 5
[layers.audt]
level = 3
"""
    found = mistakes(write(config))
    for expected in (
        r"consumers.work.layers\[0\]: .*rpcd has no layer 'tracin'; ",
        r"consumers.work.layers\[1\]: .*number is of type int, which can't be called",
        r"consumers.work.layers\[2\]: .*'no path:' is no dotted path",
        r"consumers.work.layers\[3\]: .*has no 'gone'",
        r"consumers.wrong.layers\[0\]: .*layers.other.layer is no dotted path",
        r"layers.audt: .*no consumer has a layer of this name",
    ):
        assert [each for each in found if re.match(expected, each)], (expected, found)
    assert len(found) == 6


def test_a_mistake_of_a_handlers_own_layer_names_its_attribute(write: Write) -> None:
    (said,) = mistakes(write(CONFIG.replace(":plain", ":Wrong")))
    assert re.search(r"consumers.plain.handler: .*:Wrong.layers\[1\]: .*has no 'gone'", said)


def test_what_a_layer_raises_when_it_is_folded_comes_through(write: Write) -> None:
    with pytest.raises(ValueError, match="at fold"):
        called(write(CONFIG.replace(":middle", ":explode")))
