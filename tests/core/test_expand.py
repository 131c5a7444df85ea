from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcd.core.errors import Problem
from rpcd.core.expand import Expander, files_in, literal

PROPERTY = settings(max_examples=40, deadline=None)

FILES = {
    "/etc/key": "secret\n",
    "/etc/crlf": "secret\r\n",
    "/etc/two": "secret\n\n",
    "/etc/bare": "secret",
    "/run/credentials/rabbitmq": "p@ss/word\n",
}
ENVIRONMENT = {
    "HOST": "rabbit1",
    "EMPTY": "",
    "file": "a variable that is called file",
    "DOLLAR": "${HOST}",
    "AT": "p@ss/w:rd?",
    "CREDENTIALS_DIRECTORY": "/run/credentials",
}


def read(path: str) -> str:
    if path == "/etc/binary":
        return b"\xff".decode()
    if path not in FILES:
        raise FileNotFoundError(2, "No such file or directory")
    return FILES[path]


def expanded(tree: Any, environment: Mapping[str, str] = ENVIRONMENT) -> tuple[Any, list[Problem]]:
    expander = Expander(environment, read)
    return expander.tree(tree), expander.problems


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("plain", "plain"),
        ("${HOST}", "rabbit1"),
        ("amqp://${HOST}:5672/", "amqp://rabbit1:5672/"),
        ("${HOST}${HOST}", "rabbit1rabbit1"),
        ("${EMPTY}", ""),
        ("${EMPTY:other}", ""),
        ("${HOST:other}", "rabbit1"),
        ("${NOWHERE:other}", "other"),
        ("${NOWHERE:}", ""),
        ("${NOWHERE:a:b}", "a:b"),
        ("${file}", "a variable that is called file"),
        ("${file:/etc/key}", "secret"),
        ("${file:/etc/crlf}", "secret"),
        ("${file:/etc/two}", "secret\n"),
        ("${file:/etc/bare}", "secret"),
        ("${credential:rabbitmq}", "p@ss/word"),
        ("$$", "$"),
        ("$${HOST}", "${HOST}"),
        ("$$${HOST}", "$rabbit1"),
        ("cost: 5$", "cost: 5$"),
        ("$HOST", "$HOST"),
        ("${DOLLAR}", "${HOST}"),
    ],
)
def test_every_form_of_expansion(text: str, becomes: str) -> None:
    assert expanded({"key": text}) == ({"key": becomes}, [])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("${NOWHERE}", "the environment has no NOWHERE; set it, or give a default: ${NOWHERE:default}"),
        ("${}", "${} is none of ${NAME}, ${NAME:default}, ${file:PATH} or ${credential:NAME}"),
        ("${1A}", "${1A} is none of ${NAME}, ${NAME:default}, ${file:PATH} or ${credential:NAME}"),
        ("${a-b:c}", "${a-b:c} is none of ${NAME}, ${NAME:default}, ${file:PATH} or ${credential:NAME}"),
        ("${ HOST}", "${ HOST} is none of ${NAME}, ${NAME:default}, ${file:PATH} or ${credential:NAME}"),
        ("${file:/nowhere}", "${file:/nowhere} can't be read: No such file or directory"),
        ("${file:}", "${file:} can't be read: No such file or directory"),
        ("${file:/etc/binary}", "${file:/etc/binary} is not UTF-8 text"),
        ("${credential:nope}", "${credential:nope} can't be read: No such file or directory"),
        ("amqp://${HOST", "a ${ without its }; for these two characters themselves, write $${"),
        ("${A${HOST}", "a ${ without its }; for these two characters themselves, write $${"),
        ("${credential:}", "'' is not a credential's name"),
        ("${credential:../key}", "'../key' is not a credential's name"),
    ],
)
def test_what_cannot_be_expanded_is_a_problem_with_its_path_and_stays_as_it_is(text: str, complaint: str) -> None:
    assert expanded({"a": {"b": text}}) == ({"a": {"b": text}}, [Problem("a.b", complaint)])


def test_a_credential_needs_the_directory_that_systemd_names_and_the_way_out_is_said() -> None:
    _, problems = expanded({"key": "${credential:rabbitmq}"}, {})
    assert problems == [
        Problem(
            "key",
            "${credential:rabbitmq} needs CREDENTIALS_DIRECTORY, which systemd sets for a unit's LoadCredential=; "
            "outside of a unit, set it to a directory that holds a file rabbitmq",
        )
    ]


def test_strings_are_expanded_wherever_they_are_and_nothing_else_is_touched() -> None:
    tree = {"a": ["${HOST}", {"b": "${HOST}"}], "${HOST}": 1, "n": 1.5, "t": True, "none": None}
    assert expanded(tree) == ({"a": ["rabbit1", {"b": "rabbit1"}], "${HOST}": 1, "n": 1.5, "t": True, "none": None}, [])


def test_the_tree_that_was_given_is_not_changed() -> None:
    tree = {"a": ["${HOST}"]}
    expanded(tree)
    assert tree == {"a": ["${HOST}"]}


def test_a_problem_in_an_array_names_its_place() -> None:
    _, problems = expanded({"service": {"path": ["/a", "${NOWHERE}"]}})
    assert [problem.path for problem in problems] == ["service.path[1]"]


def test_all_problems_are_collected() -> None:
    _, problems = expanded({"a": "${X}", "b": {"c": "${Y}"}, "d": "${HOST}"})
    assert [problem.path for problem in problems] == ["a", "b.c"]


def test_what_is_put_into_the_brokers_url_is_percent_encoded() -> None:
    tree = {"broker": {"url": "amqp://u:${AT}@h/${credential:rabbitmq}", "password": "${AT}"}}
    assert expanded(tree)[0] == {"broker": {"url": "amqp://u:p%40ss%2Fw%3Ard%3F@h/p%40ss%2Fword", "password": "p@ss/w:rd?"}}


def test_what_is_put_into_the_url_of_a_layer_is_percent_encoded_unless_that_is_a_file() -> None:
    tree = {"layers": {"inbox": {"url": "redis://:${AT}@h", "key": "${AT}"}, "other": {"url": "sqlite:${AT}"}}}
    assert expanded(tree)[0]["layers"] == {
        "inbox": {"url": "redis://:p%40ss%2Fw%3Ard%3F@h", "key": "p@ss/w:rd?"},
        "other": {"url": "sqlite:p@ss/w:rd?"},
    }


def test_a_variable_that_is_no_unicode_is_a_problem_and_no_crash() -> None:
    """The environment holds bytes; Python hands over what is no UTF-8 as lone surrogates (PEP 383)."""
    _, problems = expanded({"broker": {"url": "amqp://u:${RAW}@h"}}, {"RAW": "caf\udce9"})
    assert [problem.path for problem in problems] == ["broker.url"]


def test_an_error_names_a_file_and_never_shows_what_is_in_it() -> None:
    _, problems = expanded({"a": "${file:/etc/key}${NOWHERE}"})
    assert "secret" not in str(problems[0])


@pytest.mark.parametrize(
    ("text", "written", "files"),
    [
        ("plain", "plain", []),
        ("", "", []),
        ("${HOST}", "", []),
        ("${HOST:other}", "other", []),
        ("${HOST:a:b}", "a:b", []),
        ("${file:/etc/key}", "", ["/etc/key"]),
        ("${file:a}${HOST}${file:b}", "", ["a", "b"]),
        ("${file}", "", []),
        ("${credential:rabbitmq}", "", []),
        ("<${file:/etc/key}>", "<>", ["/etc/key"]),
        ("pa$$word", "pa$word", []),
        ("$${file:/etc/key}", "${file:/etc/key}", []),
        ("${", "$", []),
    ],
)
def test_what_is_written_out_and_which_files_are_named(text: str, written: str, files: list[str]) -> None:
    assert (literal(text), files_in(text)) == (written, files)


@PROPERTY
@given(st.text())
def test_text_with_every_dollar_doubled_comes_back_as_it_was(text: str) -> None:
    assert expanded({"a": text.replace("$", "$$")}) == ({"a": text}, [])


@PROPERTY
@given(st.text(st.sampled_from("${}:aA/ file")))
def test_any_text_is_expanded_or_is_a_problem(text: str) -> None:
    value, problems = expanded({"a": text})
    assert len(problems) <= 1
    assert not problems or value == {"a": text}


@PROPERTY
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_value_is_put_in_as_it_is_and_never_expanded_again(value: str) -> None:
    assert expanded({"a": "<${X}>"}, {"X": value, "HOST": "h"}) == ({"a": f"<{value}>"}, [])
