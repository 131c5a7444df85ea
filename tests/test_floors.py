"""The arrows between the floors: a module imports only from floors below its own."""

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "rpcd"

ALLOWED = {
    "rpcd.core": ("rpcd.core",),
    "rpcd.features": ("rpcd.core", "rpcd.features"),
    "rpcd.styles": ("rpcd.core",),
    "rpcd.amqp": ("rpcd.core", "rpcd.amqp"),
    "rpcd.importing": ("rpcd.core",),
    "rpcd.namespaces": ("rpcd.core", "rpcd.importing"),
    "rpcd.layers": ("rpcd.core", "rpcd.features", "rpcd.importing"),
    "rpcd.assembly": ("rpcd.core", "rpcd.importing", "rpcd.layers", "rpcd.namespaces"),
    "rpcd.testing": ("rpcd.core", "rpcd.files", "rpcd.importing", "rpcd.assembly", "rpcd.testing"),
    "rpcd.testing.node": ("rpcd.ops.rabbitmq",),
    "rpcd.ops": ("rpcd.core", "rpcd.ops"),
    "rpcd": ("rpcd",),
}
"""Which of rpcd's own packages a floor may import; the longest prefix counts."""

CORE_MAY_USE = frozenset(sys.stdlib_module_names) - {
    *("socket", "ssl", "select", "asyncio", "subprocess", "threading", "time"),
    *("random", "secrets", "uuid", "os", "io", "pathlib", "tempfile"),
} | {
    "attrs",
    "cattrs",
    "msgspec",
    "cryptography",
    "rpcd",
}
"""The core knows no Twisted, no pika, no socket, no file, no clock, no randomness and no thread of its own."""

MODELS = "rpcd.core.models"
"""The only module that imports pydantic, which is an extra: it is loaded for types that are pydantic's own."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            yield node.module or ""


MODULES = dict(modules())


def floor(name: str) -> str:
    return max((prefix for prefix in ALLOWED if name == prefix or name.startswith(f"{prefix}.")), key=len)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_its_own_floor_or_below(name: str) -> None:
    allowed = ALLOWED[floor(name)] if name != "rpcd" else ("rpcd.core", "rpcd.client")  # the clients are loaded late
    ours = {each for each in imported(MODULES[name]) if each == "rpcd" or each.startswith("rpcd.")}
    assert not {each for each in ours if not each.startswith(allowed)}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("rpcd.core")])
def test_the_core_uses_nothing_that_does_io(name: str) -> None:
    extra = {"pydantic"} if name == MODELS else set()
    assert {each.partition(".")[0] for each in imported(MODULES[name])} <= CORE_MAY_USE | extra


def test_pika_is_imported_by_the_port_alone() -> None:
    assert [name for name in MODULES if any(each.partition(".")[0] == "pika" for each in imported(MODULES[name]))] == [
        "rpcd.amqp.port"
    ]


def test_features_do_not_know_each_other() -> None:
    for name, tree in MODULES.items():
        if name.startswith("rpcd.features."):
            own = ".".join(name.split(".")[:3])
            others = {each for each in imported(tree) if each.startswith("rpcd.features.")}
            assert not {each for each in others if each != own and not each.startswith(f"{own}.")}


def test_pydantic_is_imported_by_one_module_alone_which_is_loaded_when_a_type_needs_it() -> None:
    assert [name for name in MODULES if any(each.partition(".")[0] == "pydantic" for each in imported(MODULES[name]))] == [
        MODELS
    ]
    used = "import sys, rpcd.config; from rpcd.core.bodies import decode_json; decode_json(dict[str, int])"
    loaded = f"{used}; print(sorted({{name.partition('.')[0] for name in sys.modules}} & {{'pydantic', 'pydantic_core'}}))"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_rpcd_loads_neither_twisted_nor_pika_nor_what_only_a_layer_needs() -> None:
    heavy = {"twisted", "pika", "django", "opentelemetry", "sqlite3", "psycopg", "redis"}
    loaded = f"import sys, rpcd; print(sorted({{name.partition('.')[0] for name in sys.modules}} & {heavy}))"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
