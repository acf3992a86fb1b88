"""Conditions as boolean expressions of Milvus, true of the images that SQL finds, and what is stored for them.

An expression compares a value of JSON with one type only, so the JSON field `conditions` of an image is flat:

    n:PATH  a number; 1 and 0 for true and false
    x:PATH  the same number as text, as SQLite writes it
    t:PATH  a text; of a list or an object, the beginning of its JSON
    l:PATH  the text of x or t in lower case, if it has capitals; also l:#id, l:#name, l:#label and l:#split

A path is the keys that lead to an attribute, percent-encoded and joined by dots. What is null has no entry. The other
fields are `row`, which is not negative, `id`, `name`, `label`, `split`, `size` and `mtime_ns`. All text is `escaped`.

Where SQL says NULL an expression says false, so any may be negated.
"""

import json
import math
import sqlite3
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from string import ascii_lowercase, ascii_uppercase
from typing import Any, assert_never
from urllib.parse import quote

from dr_keras.errors import InputError
from dr_keras.index.database import as_text
from dr_keras.index.filters import (
    TAKEN,
    And,
    Attribute,
    Compare,
    Comparison,
    Condition,
    Field,
    In,
    IsNull,
    Match,
    Near,
    Node,
    Not,
    NumberColumn,
    Or,
    TakenCompare,
    TakenIn,
    TextColumn,
    Value,
)
from dr_keras.index.milvus.valid_text import escaped
from dr_keras.index.sql_conditions import to_sql

MISSING = -(2**63)  # a size or mtime_ns that is not known; Milvus cannot parse this number
FIRST, END = MISSING + 1, 2**63  # the range of those that are known
ALWAYS, NEVER = "(row >= 0)", "(row < 0)"  # Milvus takes no constants
MAX_JSON_CHARACTERS = 1000  # of a list or an object
CHAIN = 8  # terms in one pair of parentheses: parsing a chain takes time quadratic in its length
LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)  # LIKE ignores the case of these letters only


def condition_fields(attributes: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Returns the field `conditions` of an image.

    Args:
        attributes: The attributes of the image: anything that JSON can hold.
        columns: Its id, name, label and split, by these names.

    Example:
        >>> condition_fields({"year": 2021, "camera": {"model": "Pixel"}}, {"id": "a.JPG", "split": ""})
        {'n:year': 2021.0, 'x:year': '2021', 't:camera': '{"model":"Pixel"}', 'l:camera': '{"model":"pixel"}',
         't:camera.model': 'Pixel', 'l:camera.model': 'pixel', 'l:#id': 'a.jpg'}
    """
    fields: dict[str, Any] = {}
    for keys, value in _tree((), json.loads(json.dumps(dict(attributes)))):
        path = _path(keys)
        if isinstance(value, int | float):
            fields[f"n:{path}"] = _float(value)
            fields |= _texts("x", path, _number_text(value))
        elif isinstance(value, str):
            fields |= _texts("t", path, value)
        elif value is not None:
            fields |= _texts("t", path, json.dumps(value, separators=(",", ":"))[:MAX_JSON_CHARACTERS])
    for name, text in columns.items():
        fields |= _lowered(f"#{name}", text)
    return fields


def to_expression(condition: Condition, class_names: Mapping[str, str], near: Callable[[Near], Collection[int]]) -> str:
    """Returns a condition as an expression.

    Args:
        condition: What `parse_where` returned.
        class_names: The name of each label that an image has.
        near: Returns the rows of the images that were taken near a place.

    Raises:
        InputError: It has a pattern that Milvus cannot look for.

    Example:
        >>> from dr_keras.index.filters import parse_where
        >>> to_expression(parse_where("split = '' AND NOT year >= 2020"), {}, lambda place: [])
        '((split == "") and (not ((conditions["n:year"] >= 2020.0) or (exists conditions["t:year"]))))'
    """
    return _Writer(condition.text, class_names, near).expression(condition.tree)


class _Writer:
    """Writes expressions; like those of the functions below, each is in parentheses."""

    def __init__(self, text: str, class_names: Mapping[str, str], near: Callable[[Near], Collection[int]]) -> None:
        self._text = text
        self._class_names = class_names
        self._near = near

    def expression(self, node: Node) -> str:
        match node:
            case And(parts):
                return _all(self.expression(part) for part in parts)
            case Or(parts):
                return _any(self.expression(part) for part in parts)
            case Not(part):
                return _not(self.expression(part))
            case Near():
                rows = ", ".join(str(row) for row in sorted(self._near(node)))
                return f"(row in [{rows}])" if rows else NEVER
            case TakenCompare(comparison, date):
                taken = Attribute((TAKEN,))
                return _other(taken, _taken("=", date)) if comparison == "!=" else _taken(comparison, date)
            case TakenIn(dates, negated):
                found = _any(_taken("=", date) for date in dates)
                return _other(Attribute((TAKEN,)), found) if negated else found
            case Compare() | In() | IsNull() | Match():
                return self._of_field(node)
        assert_never(node)

    def _of_field(self, node: Compare | In | IsNull | Match) -> str:
        field = node.field
        if field == TextColumn("class_name") or (field == TextColumn("label") and isinstance(node, Match)):
            return one_of("label", self._labels(node))
        match node:
            case Compare(_, comparison, value):
                return _other(field, _is(field, "=", value)) if comparison == "!=" else _is(field, comparison, value)
            case In(_, values, negated):
                found = _is_one_of(field, values)
                return _other(field, found) if negated else found
            case IsNull(_, negated):
                return present(field) if negated else _not(present(field))
            case Match(_, kind, pattern, negated):
                found = self._matches(field, kind, pattern)
                return _other(field, found) if negated else found
        assert_never(node)

    def _labels(self, node: Compare | In | IsNull | Match) -> list[str]:
        """The labels of which a condition on them, or on their names, is true: SQL knows all patterns."""
        sql, values = to_sql(Condition(node))
        with closing(sqlite3.connect(":memory:")) as db:
            db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
            db.execute("CREATE TABLE classes (label TEXT PRIMARY KEY, name TEXT)")
            db.execute("CREATE VIEW images AS SELECT label FROM classes")
            classes = ((as_text(label), as_text(name)) for label, name in self._class_names.items())
            db.executemany("INSERT INTO classes VALUES (CAST(? AS TEXT), CAST(? AS TEXT))", classes)
            return [label for (label,) in db.execute(f"SELECT label FROM images WHERE {sql} ORDER BY label", values)]

    def _matches(self, field: Field, kind: str, pattern: str) -> str:
        if isinstance(field, NumberColumn):
            raise InputError(f"where {self._text!r}: a search in Milvus knows no {kind} with {field.name}")
        wildcard, signs = ("%", "%_") if kind == "LIKE" else ("*", "*?[")
        start = pattern.removesuffix(wildcard)
        if any(sign in start for sign in signs):
            raise InputError(
                f"where {self._text!r}: a search in Milvus knows {kind} only with text and a {wildcard} at its end, "
                f"not {pattern!r}"
            )
        if not start and pattern:
            return present(field)
        if isinstance(field, TextColumn):
            texts, lowered = [str(field.name)], f'conditions["l:#{field.name}"]'
        else:
            texts, lowered = [_key("t", field), _key("x", field)], _key("l", field)
        if kind == "LIKE":
            start, texts = start.translate(LOWER), [*texts, lowered]
        return _any(starts(text, start) if pattern.endswith(wildcard) else _term(text, "=", start) for text in texts)


def _is(field: Field, comparison: Comparison, value: Value) -> str:
    """A comparison other than !=."""
    match field:
        case TextColumn(name):
            return _term(name, comparison, value)
        case NumberColumn():
            low, high = _range(field, value)
            ranges = {"=": (low, high), "<": (FIRST, low), "<=": (FIRST, high), ">": (high, END), ">=": (low, END)}
            return _between(field, *ranges[comparison])
        case Attribute():  # numbers are less than any text
            same, other, sign = ("t", "n", "<") if isinstance(value, str) else ("n", "t", ">")
            found = _term(_key(same, field), comparison, value)
            return _any([found, _exists(_key(other, field))]) if sign in comparison else found
    assert_never(field)


def _is_one_of(field: Field, values: Collection[Value]) -> str:
    match field:
        case TextColumn(name):
            return one_of(name, values)
        case NumberColumn():
            return _any(_is(field, "=", value) for value in values)
        case Attribute():
            numbers = [value for value in values if not isinstance(value, str)]
            texts = [value for value in values if isinstance(value, str)]
            return _any([one_of(_key("n", field), numbers), one_of(_key("t", field), texts)])
    assert_never(field)


def present(field: Field) -> str:
    match field:
        case TextColumn():
            return ALWAYS
        case NumberColumn():
            return _between(field, FIRST, END)
        case Attribute():
            return _any([_exists(_key("n", field)), _exists(_key("t", field))])
    assert_never(field)


def _other(field: Field, found: str) -> str:
    """The images that have the field, without those that were found by it."""
    return _not(found) if isinstance(field, TextColumn) else _all([present(field), _not(found)])


def _taken(comparison: Comparison, date: str) -> str:
    """A comparison, other than !=, with the time a picture was taken, as far as the date goes."""
    taken = Attribute((TAKEN,))
    texts = [_key("t", taken), _key("x", taken)]
    if comparison == "=":
        return _any(starts(text, date) for text in texts)
    limit = _quoted(_after(date) if comparison in ("<=", ">") else date)
    return _any(f"({text} {'<' if '<' in comparison else '>='} {limit})" for text in texts)


def _range(field: NumberColumn, value: Value) -> tuple[int, int]:
    """The first of the numbers stored for a field that is at least `value`, and the first that is more."""
    assert not isinstance(value, str)

    def number(stored: int) -> float:
        return stored / 1e9 if field.name == "time" else stored

    return _first(lambda stored: number(stored) >= value), _first(lambda stored: number(stored) > value)


def _first(holds: Callable[[int], bool]) -> int:
    """The first number in range from which on something holds."""
    low, high = FIRST, END
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _between(field: NumberColumn, first: int, end: int) -> str:
    column = "mtime_ns" if field.name == "time" else field.name
    return f"({first} <= {column} <= {end - 1})" if first < end else NEVER


def _term(name: str, comparison: Comparison, value: Value) -> str:
    return f"({name} {'==' if comparison == '=' else comparison} {_literal(value)})"


def one_of(name: str, values: Collection[Value]) -> str:
    return f"({name} in [{', '.join(map(_literal, values))}])" if values else NEVER


def starts(name: str, start: str) -> str:
    start = escaped(start)
    after = _after(start)
    return f"({name} >= {_quoted(start)}" + (f" and {name} < {_quoted(after)})" if after else ")")


def _exists(name: str) -> str:
    return f"(exists {name})"


def _not(expression: str) -> str:
    return f"(not {expression})"


def _all(expressions: Iterable[str]) -> str:
    return _joined("and", list(expressions))


def _any(expressions: Iterable[str]) -> str:
    return _joined("or", [one for one in expressions if one != NEVER] or [NEVER])


def _joined(word: str, parts: list[str]) -> str:
    while len(parts) > 1:
        chains = (parts[start : start + CHAIN] for start in range(0, len(parts), CHAIN))
        parts = [f"({f' {word} '.join(chain)})" if len(chain) > 1 else chain[0] for chain in chains]
    return parts[0]


def _literal(value: Value) -> str:
    return _quoted(escaped(value)) if isinstance(value, str) else repr(_float(value))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _after(start: str) -> str:
    """The least text above all that begin with `start`; empty if there is none."""
    start = start.rstrip(chr(sys.maxunicode))
    return start[:-1] + chr(0xE000 if start[-1] == "\ud7ff" else ord(start[-1]) + 1) if start else ""


def _key(kind: str, attribute: Attribute) -> str:
    return f'conditions["{kind}:{_path(attribute.keys)}"]'


def _path(keys: Iterable[str]) -> str:
    return ".".join(quote(key, safe="", errors="surrogatepass").replace(".", "%2E") for key in keys)


def _tree(keys: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The attributes in an attribute, with the keys that lead to each."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*keys, key), inner
            yield from _tree((*keys, key), inner)


def _texts(kind: str, path: str, text: str) -> dict[str, str]:
    return {f"{kind}:{path}": escaped(text), **_lowered(path, text)}


def _lowered(path: str, text: str) -> dict[str, str]:
    lowered = text.translate(LOWER)
    return {f"l:{path}": escaped(lowered)} if lowered != text else {}


def _float(value: float) -> float:
    """The number, without infinities, which JSON lacks, and negative zero."""
    return min(max(_real(value), -sys.float_info.max), sys.float_info.max) + 0.0


def _number_text(value: float) -> str:
    """The text of a number in SQLite."""
    if isinstance(value, int) and MISSING <= value < END:
        return str(int(value))
    number = _real(value)
    if math.isinf(number):
        return "Inf" if number > 0 else "-Inf"
    digits, exponent, power = f"{number + 0.0:.15g}".partition("e")
    return digits + ("" if "." in digits else ".0") + exponent + power


def _real(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # SQLite takes so large an integer for infinity
        return math.inf if value > 0 else -math.inf
