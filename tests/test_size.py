"""Small and flat: limits on the size of modules and functions."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULE_LINES = 300
FUNCTION_LINES = 40

FILES = sorted((ROOT / "rpcd").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_and_its_functions_stay_small(path: pathlib.Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MODULE_LINES
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: lines for name, lines in long.items() if lines > FUNCTION_LINES} == {}


def test_there_is_no_init_file_under_twisted() -> None:
    assert list((ROOT / "twisted").rglob("__init__.py")) == []
