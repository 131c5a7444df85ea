"""YAML as strict as TOML: what one reader takes for a number and another for text is refused, with the way out.

PyYAML is the extra `yaml`; only a config whose name ends with .yaml or .yml needs it.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from rpcd.core.errors import Problem

MOST_VALUES = 100_000
"""How many values a config may have once its aliases are written out."""

MOST_LEVELS = 100
"""How deep they may be nested."""

_TAG = "tag:yaml.org,2002:"
_TEXT, _MERGE = f"{_TAG}str", f"{_TAG}merge"
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")
_DOUBTFUL = "!doubtful"

_TRUTH = ("true", "false")
_TRUTH_OF_OLD = ("yes", "no", "y", "n", "on", "off")
_NOTHING = ("", "~", "null")

_NUMBER = "write a plain decimal number, or put it in quotes if it is text"
_TAGGED = "remove the word that begins with !, or put it in quotes if it is text"


class YamlError(Exception):
    """The text is no YAML, or not YAML that has one meaning; `problems` are named by their path and line."""

    def __init__(self, *problems: Problem) -> None:
        """Collect what is wrong; no path means that it is the file as a whole."""
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also notices what YAML 1.1 and 1.2 do not agree about."""


_Loader.add_implicit_resolver(
    _DOUBTFUL,
    re.compile(r"^(?:[yYnN]|[-+]?0o?[0-9_]+|[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+)$"),
    list("yYnN-+.0123456789"),
)


def parse(text: str) -> dict[str, Any]:
    """Return the one document of a YAML text, a table; raise YamlError."""
    try:
        loader = _Loader(text)
        root = loader.get_node() if loader.check_node() else None
        if root is not None and loader.check_node():
            line = loader.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise YamlError(Problem(f"line {line}", "a second document begins", "a config is one document: remove the ---"))
        if root is None or root.tag == f"{_TAG}null":
            return {}
        check = _Check(loader)
        problems = list(check.problems(root))
        if problems:
            raise YamlError(*problems)
        return dict(loader.construct_document(root))
    except yaml.YAMLError as error:
        raise YamlError(Problem("", f"is not valid YAML: {_said(error)}")) from None
    except (ValueError, OverflowError):  # "\\UFFFFFFFF", and the number of a version that nobody can read
        raise YamlError(Problem("", "is not valid YAML: it names a character or a version that there can't be")) from None
    except RecursionError:
        raise YamlError(Problem("", "is not valid YAML: it is nested too deeply")) from None


def _said(error: yaml.YAMLError) -> str:
    """Say what PyYAML found and where, without any of the text: it may be a secret."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return "it holds a character that YAML does not allow"
    what = re.sub(r"(['\"])(?!<)..+\1", "...", error.problem or error.context or "something is wrong")
    if what == "second occurrence":
        what = "an anchor of that name stands further up already"
    mark = error.problem_mark or error.context_mark
    hint = "; put text that begins with * in quotes" if "undefined alias" in what else ""
    return what + (f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else "") + hint


def _problem(node: Node, path: str, what: str, remedy: str = "") -> Problem:
    line = f"line {node.start_mark.line + 1}"
    return Problem(f"{path} ({line})" if path else line, what, remedy)


class _Check:
    """Goes through the nodes of one document before they become values."""

    def __init__(self, loader: _Loader) -> None:
        self._loader = loader
        self._sizes: dict[int, tuple[int, int]] = {}  # values and levels of each node, its aliases written out
        self._open: set[int] = set()

    def problems(self, root: Node) -> Iterator[Problem]:
        """Yield everything that is refused; what is aliased is told once, where it is written."""
        if not isinstance(root, MappingNode):
            yield Problem(f"line {root.start_mark.line + 1}", "expected a table of sections", "begin with `broker:`, say")
            return
        found = list(self._node(root, ""))
        yield from found
        if found:
            return
        values, levels = self._sizes[id(root)]
        if values > MOST_VALUES:
            yield Problem("", f"has more than {MOST_VALUES} values once its aliases are written out", "use fewer aliases")
        if levels > MOST_LEVELS:
            yield Problem("", f"is nested deeper than {MOST_LEVELS} levels")

    def _node(self, node: Node, path: str) -> Iterator[Problem]:
        if id(node) in self._open:
            yield _problem(node, path, "an alias stands within what it stands for", "write out what is meant")
        if id(node) in self._open or id(node) in self._sizes:
            return
        self._open.add(id(node))
        if isinstance(node, MappingNode):
            yield from self._mapping(node, path)
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            if node.tag != f"{_TAG}seq":
                yield _problem(node, path, "an array can't have a tag", "remove the word that begins with !")
            for index, item in enumerate(node.value):
                yield from self._node(item, f"{path}[{index}]")
            parts = node.value
        else:
            yield from self._scalar(node, path)
            parts = []
        self._open.remove(id(node))
        sizes = [self._sizes.get(id(part), (1, 1)) for part in parts]
        self._sizes[id(node)] = (1 + sum(each[0] for each in sizes), 1 + max((each[1] for each in sizes), default=0))

    def _mapping(self, node: MappingNode, path: str) -> Iterator[Problem]:
        if node.tag != f"{_TAG}map":
            yield _problem(node, path, "a table can't have a tag", "remove the word that begins with !")
        first: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                merged = value.value if isinstance(value, SequenceNode) else [value]
                if not all(isinstance(each, MappingNode) for each in merged):
                    yield _problem(value, f"{path}.<<".lstrip("."), "expected a table, or an array of tables")
            elif not isinstance(key, ScalarNode) or key.tag != _TEXT:
                yield _problem(key, path, "a key is no text", "put the key in quotes")
                continue
            elif wrong := list(self._scalar(key, path)):
                yield from wrong
                continue
            inside = f"{path}.{key.value}".lstrip(".")
            if key.value in first:
                yield _problem(key, inside, f"stands on line {first[key.value]} already", "keep one of them")
            first.setdefault(key.value, key.start_mark.line + 1)
            yield from self._node(value, inside)

    def _scalar(self, node: Node, path: str) -> Iterator[Problem]:
        """Check one value; its text is shown only where it can be no secret."""
        kind = node.tag.removeprefix(_TAG)
        if node.tag == _TEXT:
            if any("\ud800" <= character <= "\udfff" for character in node.value):
                yield _problem(node, path, "holds half a character", "write \\U and eight digits instead of two \\u")
        elif node.value.lower() in _TRUTH_OF_OLD and (kind == "bool" or node.tag == _DOUBTFUL):
            what = f"{node.value} is a boolean to some and text to others"
            yield _problem(node, path, what, "write true, false, or quotes")
        elif node.tag == _DOUBTFUL or (node.tag in _NUMBERS and self._doubtful(node)):
            yield _problem(node, path, "is a number that not everybody reads alike", _NUMBER)
        elif kind == "timestamp":
            yield _problem(node, path, "is a date to some and text to others", "put it in quotes")
        elif not (node.tag in _NUMBERS or _plain(kind, node.value)):
            yield _problem(node, path, "has a tag that a config can't have", _TAGGED)

    def _doubtful(self, node: Node) -> bool:
        """Tell whether a number is of base 60, 8 or 2, or none at all."""
        if ":" in node.value or re.match(r"[-+]?0[0-9_b]", node.value):
            return True
        try:
            self._loader.construct_object(node)
        except (ValueError, IndexError):  # !!int "", or more digits than Python reads
            return True
        return False


def _plain(kind: str, value: str) -> bool:
    """Tell whether a boolean or a null is written as everybody writes it, whatever tag stands before it."""
    return (kind == "bool" and value.lower() in _TRUTH) or (kind == "null" and value.lower() in _NOTHING)
