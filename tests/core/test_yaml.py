import contextlib
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcd.yaml import MOST_LEVELS, MOST_VALUES, YamlError, parse

PROPERTY = settings(max_examples=60, deadline=None)

SECRET = "hunter2hunter2"


def said(text: str) -> list[str]:
    """Return what is wrong with a text."""
    with pytest.raises(YamlError) as caught:
        parse(text)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("---\n", {}),
        ("a: 1\n...\n", {"a": 1}),
        ("%YAML 1.2\n---\na: 1\n", {"a": 1}),
        ('{"a": [1, 2.5, true, null, "x"]}', {"a": [1, 2.5, True, None, "x"]}),
        ("a: [0, -1, +2, 0x10, 1_000, 0.5, -0.5, 1.0e+3]", {"a": [0, -1, 2, 16, 1000, 0.5, -0.5, 1000.0]}),
        ("a: [true, True, FALSE]", {"a": [True, True, False]}),
        ("a: [on the way, yesterday, n1, 1.2.3, 1-2]", {"a": ["on the way", "yesterday", "n1", "1.2.3", "1-2"]}),
        ("""a: ["on", 'no', "010", "1:30", "2020-01-01", "1e3"]""", {"a": ["on", "no", "010", "1:30", "2020-01-01", "1e3"]}),
        ('a: ["\\u00fc\\U0001F600", ü😀]', {"a": ["ü😀", "ü😀"]}),
        ("a: !!str 5\nb: !!int 5\n", {"a": "5", "b": 5}),
        ("a: |\n  one\n  two\n", {"a": "one\ntwo\n"}),
        ("a: ~\nb:\n", {"a": None, "b": None}),
        ("a: &x {k: 1}\nb: *x\nc: [*x, *x]\n", {"a": {"k": 1}, "b": {"k": 1}, "c": [{"k": 1}, {"k": 1}]}),
        ("a: &x {k: 1, l: 1}\nb:\n  <<: *x\n  k: 2\n", {"a": {"k": 1, "l": 1}, "b": {"k": 2, "l": 1}}),
        ("a: &x {k: 1}\nb: &y {l: 2}\nc:\n  <<: [*x, *y]\n", {"a": {"k": 1}, "b": {"l": 2}, "c": {"k": 1, "l": 2}}),
        (
            "a: &x {k: 1}\nb: &y {<<: *x, l: 2}\nc: {<<: *y, k: 3}\nd: *y\n",
            {"a": {"k": 1}, "b": {"k": 1, "l": 2}, "c": {"k": 3, "l": 2}, "d": {"k": 1, "l": 2}},
        ),
        ('"<<": 1\n"010": 2\n"on": 3\n', {"<<": 1, "010": 2, "on": 3}),
    ],
    ids=repr,
)  # fmt: skip
def test_what_has_one_meaning_is_read(text: str, values: dict[str, Any]) -> None:
    assert parse(text) == values


def test_numbers_that_no_decimal_can_write_are_read_and_left_to_the_settings() -> None:
    found = parse("a: [.inf, -.inf, .nan]")["a"]
    assert found[:2] == [math.inf, -math.inf]
    assert math.isnan(found[2])


BOOLEAN = "is a boolean to some and text to others; write true, false, or quotes"
NUMBER = "is a number that not everybody reads alike; write a plain decimal number, or put it in quotes if it is text"
TAG = "has a tag that a config can't have; remove the word that begins with !, or put it in quotes if it is text"
KEY = "a key is no text; put the key in quotes"


@pytest.mark.parametrize("value", ["on", "off", "yes", "no", "On", "NO", "y", "n", "Y", "N"])
def test_booleans_of_old_are_refused(value: str) -> None:
    assert said(f"broker:\n  heartbeat: {value}\n") == [f"broker.heartbeat (line 2): {value} {BOOLEAN}"]


@pytest.mark.parametrize(
    "value",
    [
        *("010", "-010", "08", "00", "0_7", "0b11", "0o17", "00.5"),
        *("1:30", "190:20:30.15", "1e3", "1.5e3", ".5e3", "-1E-3", "9" * 5000),
        *("!!int ''", "!!int 1:30", "!!float x"),
    ],
)
def test_numbers_that_are_read_in_two_ways_are_refused_and_not_shown(value: str) -> None:
    """They may be somebody's password without quotes."""
    assert said(f"a: [1, {value}]") == [f"a[1] (line 1): {NUMBER}"]


@pytest.mark.parametrize("value", ["2020-01-02", "2020-01-02 03:04:05", "2020-01-02T03:04:05Z"])
def test_dates_are_refused(value: str) -> None:
    assert said(f"a: {value}") == ["a (line 1): is a date to some and text to others; put it in quotes"]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("a: !!binary aGk=", [f"a (line 1): {TAG}"]),
        ("a: !!bool x", [f"a (line 1): {TAG}"]),
        ("a: !!null x", [f"a (line 1): {TAG}"]),
        ("a: !!python/object/apply:os.system [x]",
            ["a (line 1): an array can't have a tag; remove the word that begins with !"]),
        ("a: !!python/name:os.system x", [f"a (line 1): {TAG}"]),
        ("a: !!set {x}", ["a (line 1): a table can't have a tag; remove the word that begins with !"]),
        ("a: !!omap [x: 1]", ["a (line 1): an array can't have a tag; remove the word that begins with !"]),
        ("a: !mine x", [f"a (line 1): {TAG}"]),
        ("a: =", [f"a (line 1): {TAG}"]),
        ("a:\n  1: x\n  true: y\n  ~: z\n", [f"a (line {line}): {KEY}" for line in (2, 3, 4)]),
        ("on: x\n[b]: y\n{c: 1}: z\n", [f"line {line}: {KEY}" for line in (1, 2, 3)]),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", ["a.b (line 4): stands on line 2 already; keep one of them"]),
        ("a: &x {k: 1}\nb:\n  <<: *x\n  <<: *x\n", ["b.<< (line 4): stands on line 3 already; keep one of them"]),
        ("a:\n  <<: 5\n", ["a.<< (line 2): expected a table, or an array of tables"]),
        ("a:\n  <<: [{b: 1}, c]\n", ["a.<< (line 2): expected a table, or an array of tables"]),
        ('a: "\\ud83d\\ude00"', ["a (line 1): holds half a character; write \\U and eight digits instead of two \\u"]),
        ('"\\ud83d": on', ["line 1: holds half a character; write \\U and eight digits instead of two \\u"]),
        ("a: 1\n---\nb: 1\n", ["line 2: a second document begins; a config is one document: remove the ---"]),
        ("- 1\n", ["line 1: expected a table of sections; begin with `broker:`, say"]),
        ("text\n", ["line 1: expected a table of sections; begin with `broker:`, say"]),
        ("a: &x\n  b: *x\n",
            ["a.b (line 1): an alias stands within what it stands for; write out what is meant"]),
        ("a: &x [1, [*x]]\n",
            ["a[1][0] (line 1): an alias stands within what it stands for; write out what is meant"]),
        ("a: &x {<<: *x}\n",
            ["a.<< (line 1): an alias stands within what it stands for; write out what is meant"]),
        ("a: on\nb: 010\nc: {d: 1:30}\n",
            [f"a (line 1): on {BOOLEAN}", f"b (line 2): {NUMBER}", f"c.d (line 3): {NUMBER}"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_has_no_one_meaning_is_refused_all_at_once_with_its_place(text: str, problems: list[str]) -> None:
    assert said(text) == problems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('a: "x', "is not valid YAML: found unexpected end of stream (line 1, column 6)"),
        ("a: 'x' 'y'", "is not valid YAML: expected <block end>, but found '<scalar>' (line 1, column 8)"),
        ("a:\n\t- b", "is not valid YAML: found character ... that cannot start any token (line 2, column 1)"),
        ("a: \x00", "is not valid YAML: it holds a character that YAML does not allow"),
        ("a: &x 1\nb: &x 2", "is not valid YAML: an anchor of that name stands further up already (line 2, column 4)"),
        ('a: "\\UFFFFFFFF"', "is not valid YAML: it names a character or a version that there can't be"),
        ('a: "\\U00110000"', "is not valid YAML: it names a character or a version that there can't be"),
        (f"%YAML 1.{'9' * 5000}\n---\na: 1", "is not valid YAML: it names a character or a version that there can't be"),
        ("a: " + "[" * 5000, "is not valid YAML: it is nested too deeply"),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_yaml_is_said_with_its_line(text: str, problem: str) -> None:
    (found,) = said(text)
    assert found.removeprefix(": ") == problem


@pytest.mark.parametrize(
    "form", ["*{}", "!{} x", "!!{} x", "&{} *{}", '"{}', "@{}", "%{}", "`{}", "[{}", "{{{}: on: {}", "'{}' x"]
)
def test_no_problem_shows_a_secret(form: str) -> None:
    problems = said(f"broker:\n  password: {form.format(SECRET, SECRET)}\n")
    assert SECRET not in "\n".join(problems)


def test_aliases_that_blow_up_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (problem,) = said("\n".join(lines))
    assert problem == f": has more than {MOST_VALUES} values once its aliases are written out; use fewer aliases"


def test_merges_that_blow_up_are_refused() -> None:
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 9)]
    assert len(said("\n".join(lines))) == 1


def test_aliases_that_pile_up_are_refused() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, MOST_LEVELS + 1)]
    assert said("\n".join(lines)) == [f": is nested deeper than {MOST_LEVELS} levels"]


@PROPERTY
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\x85\u2028\u2029"), max_size=20))
def test_any_text_after_a_colon_is_read_or_refused(value: str) -> None:
    with contextlib.suppress(YamlError):
        assert list(parse(f"a: {value}")) == ["a"]


@PROPERTY
@given(st.text("[]{}&*!a:,-? \n<'\"01", max_size=30))
def test_any_structure_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(YamlError):
        assert isinstance(parse(text), dict)
