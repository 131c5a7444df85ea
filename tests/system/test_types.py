"""What a type checker makes of handlers."""

import pathlib
import subprocess
import sys


def test_a_decorated_object_keeps_its_type(tmp_path: pathlib.Path) -> None:
    (tmp_path / "typed.py").write_text(
        "import rpcd\n\n"
        '@rpcd.message_handler("a", exchange="shop", workers=2)\n'
        "def double(message: rpcd.Message[int]) -> int:\n    return 2 * message.body\n\n"
        '@rpcd.message_handler("a", exchange="shop")\n'
        "class Handler:\n    def __call__(self, message: rpcd.Message[int]) -> str:\n        return str(message.body)\n\n"
        'reveal_type(double(rpcd.Message(5)))\nreveal_type(Handler()(rpcd.Message(5)))\ndouble("x")\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "typed.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert 'typed.py:12: note: Revealed type is "int"' in done.stdout.replace("builtins.", "")
    assert 'typed.py:13: note: Revealed type is "str"' in done.stdout.replace("builtins.", "")
    assert 'incompatible type "str"; expected "Message[int]"' in done.stdout
    assert "Found 1 error" in done.stdout


def test_a_body_is_of_the_type_that_its_message_names(tmp_path: pathlib.Path) -> None:
    (tmp_path / "typed.py").write_text(
        "import pydantic\nimport rpcd\n\n"
        "class Order(pydantic.BaseModel):\n    customer: str\n\n"
        "def place(message: rpcd.Message[Order]) -> rpcd.Reply:\n    reveal_type(message.body)\n"
        "    message.body.nothing\n    return rpcd.Reply(message.body)\n\n"
        'place(rpcd.Message(Order(customer="ada")))\nplace(rpcd.Message({"customer": "ada"}))\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "typed.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert 'typed.py:8: note: Revealed type is "typed.Order"' in done.stdout
    assert '"Order" has no attribute "nothing"' in done.stdout
    assert 'expected "Order"' in done.stdout
    assert "Found 2 errors" in done.stdout
