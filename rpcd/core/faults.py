"""What pydantic finds wrong with a body, as places and reasons that hold no value of it.

pydantic's own places hold keys that the sender has chosen, and names of a union's branches; its reasons may hold values, and
so may those of the user's validators. What is said here is taken from the type alone: names that it declares, sentences
that are written here, and in them only limits that stand in its schema.
"""

import decimal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rpcd.core.errors import BadMessage, BadValue

MOST = 20
"""Faults that are told of one body; the rest is counted."""

_LONGEST = 200
"""Characters of one place, and of one reason."""

_NOT_VALID = "not valid"
_HIDDEN = "[...]"

_SENTENCES = {
    "missing": "Field required",
    "extra_forbidden": "Extra inputs are not permitted",
    "unexpected_keyword_argument": "Extra inputs are not permitted",
    "unexpected_positional_argument": "Extra inputs are not permitted",
    "missing_argument": "Field required",
    "missing_keyword_only_argument": "Field required",
    "missing_positional_only_argument": "Field required",
    "json_invalid": "Input should be a string of valid JSON",
    "json_type": "Input should be a string of valid JSON",
    "recursion_loop": "Input is nested too deeply",
    "recursion_depth_exceeded": "Input is nested too deeply",
    "none_required": "Input should be null",
    "greater_than": "Input should be greater than {gt}",
    "greater_than_equal": "Input should be greater than or equal to {ge}",
    "less_than": "Input should be less than {lt}",
    "less_than_equal": "Input should be less than or equal to {le}",
    "multiple_of": "Input should be a multiple of {multiple_of}",
    "finite_number": "Input should be a finite number",
    "too_short": "Length should be at least {min_length}",
    "too_long": "Length should be at most {max_length}",
    "string_type": "Input should be a valid string",
    "string_too_short": "Length should be at least {min_length}",
    "string_too_long": "Length should be at most {max_length}",
    "string_pattern_mismatch": "String should match pattern '{pattern}'",
    "string_not_ascii": "String should contain only ASCII characters",
    "enum": "Input should be {expected}",
    "literal_error": "Input should be {expected}",
    "union_tag_invalid": "Tag should be one of {expected_tags}",
    "union_tag_not_found": "Tag {discriminator} required",
    "bool_type": "Input should be a valid boolean",
    "bool_parsing": "Input should be a valid boolean",
    "int_type": "Input should be a valid integer",
    "int_parsing": "Input should be a valid integer",
    "int_parsing_size": "Input should be a valid integer of fewer digits",
    "int_from_float": "Input should be a valid integer, got a number with a fractional part",
    "float_type": "Input should be a valid number",
    "float_parsing": "Input should be a valid number",
    "decimal_type": "Input should be a valid decimal",
    "decimal_parsing": "Input should be a valid decimal",
    "decimal_max_digits": "Input should have at most {max_digits} digits",
    "decimal_max_places": "Input should have at most {decimal_places} decimal places",
    "decimal_whole_digits": "Input should have fewer digits before the decimal point",
    "bytes_type": "Input should be a valid string of bytes",
    "bytes_too_short": "Length should be at least {min_length}",
    "bytes_too_long": "Length should be at most {max_length}",
    "bytes_invalid_encoding": "Input should be a valid string of bytes",
    "date_type": "Input should be a valid date",
    "date_parsing": "Input should be a valid date in the format YYYY-MM-DD",
    "date_from_datetime_parsing": "Input should be a valid date",
    "date_from_datetime_inexact": "Input should be a date without a time",
    "date_past": "Input should be in the past",
    "date_future": "Input should be in the future",
    "time_type": "Input should be a valid time",
    "time_parsing": "Input should be a valid time",
    "datetime_type": "Input should be a valid datetime",
    "datetime_parsing": "Input should be a valid datetime",
    "datetime_from_date_parsing": "Input should be a valid datetime",
    "datetime_past": "Input should be in the past",
    "datetime_future": "Input should be in the future",
    "timezone_naive": "Input should not have a time zone",
    "timezone_aware": "Input should have a time zone",
    "time_delta_type": "Input should be a valid duration",
    "time_delta_parsing": "Input should be a valid duration",
    "uuid_type": "Input should be a valid UUID",
    "uuid_parsing": "Input should be a valid UUID",
    "uuid_version": "Input should be a UUID of version {expected_version}",
    "url_type": "Input should be a valid URL",
    "url_parsing": "Input should be a valid URL",
    "url_syntax_violation": "Input should be a valid URL",
    "url_too_long": "Length should be at most {max_length}",
    "url_scheme": "Scheme of the URL should be {expected_schemes}",
    **dict.fromkeys(("model_type", "model_attributes_type", "dataclass_type", "dict_type"), "Input should be an object"),
    **dict.fromkeys(("mapping_type", "ordered_dict_type", "frozen_dict_type"), "Input should be an object"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), "Input should be a valid array"),
    **dict.fromkeys(("iterable_type", "deque_type"), "Input should be a valid array"),
    "arguments_type": "Input should be an array or an object",
    "named_tuple_type": "Input should be an array or an object",
}
"""Types of pydantic's faults, and what is said of them; of all others only that something is not valid."""

_LIMITS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern", "max_digits", "decimal_places")
_SEQUENCES = ("list", "tuple", "set", "frozenset", "generator")
_UNWANTED = ("extra_forbidden", "unexpected_keyword_argument")


class Shape:
    """The core schema of a type, asked where in it a fault is and what may be said of it; built once at start."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Learn the definitions and the limits of a schema."""
        self._root = schema
        self._definitions: dict[str, Mapping[str, Any]] = {}
        self._limits: dict[str, set[Any]] = {}
        for node in _nodes(schema, set()):
            if "ref" in node:
                self._definitions[node["ref"]] = node
            for name, value in _limits(node):
                self._limits.setdefault(name, set()).update((value, str(value)))

    def bad_message(self, errors: Sequence[Mapping[str, Any]]) -> BadMessage:
        """Return what is raised for pydantic's errors, of which there is one at least."""
        found: dict[tuple[str, str], None] = {}
        more = 0
        for each in errors:
            if len(found) == MOST:
                more += 1
            else:
                found[self.place(each)[:_LONGEST], self.reason(each)[:_LONGEST]] = None
        faults = list(found)
        return BadMessage(*faults[0], faults, more)

    def reason(self, error: Mapping[str, Any]) -> str:
        """Return what is wrong: a sentence with limits of the schema in it, or words that are meant to be sent on."""
        context = error.get("ctx", {})
        if isinstance(context.get("error"), BadValue):
            return str(context["error"])
        shown = {name: _written(value) for name, value in context.items() if self._is_limit(name, value)}
        try:
            return _SENTENCES[error["type"]].format_map(shown)
        except KeyError:
            return _NOT_VALID

    def _is_limit(self, name: str, value: Any) -> bool:
        return isinstance(value, str | int | float | decimal.Decimal) and value in self._limits.get(name, ())

    def place(self, error: Mapping[str, Any]) -> str:
        """Return where a fault is: `body.items[2].sku`; a key that the type does not declare is left out."""
        path = error["loc"]
        if error["type"] in _UNWANTED or path[-1:] == ("[key]",):
            path = path[:-1]
        said, nodes = "body", self._opened([self._root])
        for part in path:
            step, inner = _entered(nodes, part)
            said, nodes = said + step, self._opened(inner)
        return said

    def _opened(self, schemas: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return what schemas come to, without what only wraps them; a place knows nothing of wrappings."""
        found: list[Mapping[str, Any]] = []
        left, seen = list(schemas), set()
        while left:
            node = left.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            kind = node["type"]
            if kind == "definition-ref":
                left += [self._definitions[node["schema_ref"]]] if node["schema_ref"] in self._definitions else []
            elif kind in _WRAPPINGS:
                left += _WRAPPINGS[kind](node)
            elif isinstance(node.get("schema"), dict) and kind != "alias":
                left.append(node["schema"])
            else:
                found.append(node)
        return found


_WRAPPINGS: dict[str, Callable[[Mapping[str, Any]], list[Mapping[str, Any]]]] = {
    "chain": lambda node: list(node["steps"]),
    "lax-or-strict": lambda node: [node["lax_schema"], node["strict_schema"]],
    "json-or-python": lambda node: [node["json_schema"]],
    "call": lambda node: [node["arguments_schema"]],
}


def _entered(nodes: Sequence[Mapping[str, Any]], part: str | int) -> tuple[str, list[Mapping[str, Any]]]:
    """Go one step down; return how the step is written, and what is found there."""
    declared = [found for node in nodes for found in _field(node, part)]
    if declared:
        return (f"[{part}]" if isinstance(part, int) else f".{part}"), declared
    items = [each for node in nodes if node["type"] in _SEQUENCES for each in _items(node)]
    if isinstance(part, int) and any(node["type"] in _SEQUENCES for node in nodes):
        return f"[{part}]", items
    branches = [each for node in nodes if node["type"] in ("union", "tagged-union") for each in _branches(node)]
    if branches:
        return "", branches
    return _HIDDEN, [node["values_schema"] for node in nodes if "values_schema" in node]


def _field(node: Mapping[str, Any], part: str | int) -> Iterator[Mapping[str, Any]]:
    """Yield the schema of the field that a step leads to, or what is left of the path of its alias."""
    if node["type"] == "alias":
        paths, schema = [node["path"]], node["schema"]
        yield from _along(paths, schema, part)
        return
    fields = node.get("fields", node.get("arguments_schema", ()))
    if isinstance(fields, Mapping):
        fields = [{"name": name, **field} for name, field in fields.items()]
    for index, field in enumerate(fields):
        if isinstance(field, Mapping):
            yield from _along(_spellings(field), field["schema"], part)
            if part == index and node["type"] in ("named-tuple", "arguments"):
                yield field["schema"]


def _spellings(field: Mapping[str, Any]) -> list[Any]:
    """Return the paths by which a field may come: its name, and its aliases, of which each may be a path of its own."""
    alias = field.get("validation_alias", field.get("alias", []))
    if isinstance(alias, str):
        return [[field["name"]], [alias]]
    paths = alias if all(isinstance(each, list) for each in alias) else [alias]
    return [[field["name"]], *paths]


def _along(paths: Sequence[Sequence[str | int]], schema: Mapping[str, Any], part: str | int) -> Iterator[Mapping[str, Any]]:
    for first, *rest in paths:
        if first == part and type(first) is type(part):
            yield {"type": "alias", "path": rest, "schema": schema} if rest else schema


def _items(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    items = node.get("items_schema", [])
    return list(items) if isinstance(items, list | tuple) else [items]


def _branches(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices = node["choices"]
    found = choices.values() if isinstance(choices, Mapping) else choices
    return [each[0] if isinstance(each, tuple) else each for each in found if not isinstance(each, str)]


# Limits -------------------------------------------------------------------------------------------


def _nodes(value: Any, seen: set[int]) -> Iterator[Mapping[str, Any]]:
    """Go through a schema and all schemas in it."""
    if not isinstance(value, dict | list | tuple) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        if isinstance(value.get("type"), str):
            yield value
        value = [each for name, each in value.items() if name not in ("metadata", "serialization", "config", "default")]
    for each in value:
        yield from _nodes(each, seen)


def _limits(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what a schema says in its own words, by the names that pydantic's faults have for it."""
    for name in _LIMITS:
        if (limit := node.get(name)) is not None:
            yield name, getattr(limit, "pattern", limit) if name == "pattern" else limit
            if hasattr(limit, "isoformat"):
                yield name, limit.isoformat()
    kind = node["type"]
    if kind == "literal":
        yield "expected", _listed(node["expected"])
    elif kind == "enum":
        yield "expected", _listed([member.value for member in node["members"]])
    elif kind == "tagged-union":
        yield "expected_tags", ", ".join(map(repr, node["choices"]))
        if isinstance(node["discriminator"], str):
            yield "discriminator", repr(node["discriminator"])
    elif "allowed_schemes" in node:
        yield "expected_schemes", _listed(node["allowed_schemes"])
    elif kind == "uuid" and "version" in node:
        yield "expected_version", node["version"]


def _listed(values: Sequence[Any]) -> str:
    *others, last = [repr(getattr(value, "value", value)) for value in values]
    return f"{', '.join(others)} or {last}" if others else last


def _written(value: Any) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)
