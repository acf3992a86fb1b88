"""The language of `--where`: conditions on what an index knows about images, parsed to a tree.

    label = n01443537 AND NOT split = validation
    attributes.year >= 2020 AND (camera.model LIKE 'Pixel%' OR label IN (cat, dog))

    taken >= 2024-06 AND camera.model LIKE 'Pixel%' AND near(48.1, 11.6, 20km)

A field is `id`, `name` (base name), `label`, `class_name`, `split`, `size` (bytes) or `time` (of the last change, in
seconds since 1970 or as a date such as 2026-01-31); anything else is an attribute of the image, with dots for
nested attributes. `taken`, which photos have from EXIF, is compared as far as the value goes: `taken = 2024-06` is all
of that month. A value is a word, a number, or a quoted string. Comparisons: = == != <> < <= > >=, LIKE (% stands for
any text and _ for any character; the case of English letters does not matter), GLOB (* and ?), IN (..., ...), IS NULL,
IS NOT NULL, and near(latitude, longitude, distance), in degrees and m, km or mi; combine them with AND, OR, NOT and
parentheses. An image without an attribute matches no comparison with it, not even !=; it does match a negated (NOT)
comparison. An attribute that no image has, but that is spelled like one that some have, is an error.
"""

import datetime
import re
from dataclasses import dataclass
from typing import Literal, cast

from dr_keras.errors import InputError

MAX_CHARACTERS = 10_000  # SQLite accepts far more, but nobody writes that many
MAX_COMPARISONS = 500  # SQLite's expressions may be nested 1,000 deep
MAX_DEPTH = 50  # of nested parentheses and NOTs

# Text columns compare as text, whatever the value looks like: the class '007' is not the number 7.
TextName = Literal["id", "name", "label", "class_name", "split"]
NumberName = Literal["size", "time"]
TEXT_FIELDS: dict[str, TextName] = {
    "id": "id",
    "name": "name",
    "label": "label",
    "class": "label",
    "class_name": "class_name",
    "split": "split",
}
NUMBER_FIELDS: dict[str, NumberName] = {"size": "size", "time": "time"}
TAKEN, GROUP = "taken", "group"
DATE = re.compile(r"[0-9]{4}(-[0-9]{2}(-[0-9]{2}(T[0-9]{2}(:[0-9]{2}(:[0-9]{2})?)?)?)?)?")
DISTANCE = re.compile(r"(?P<number>[0-9]+\.?[0-9]*|\.[0-9]+) ?(?P<unit>km|m|mi)", re.IGNORECASE)
KM_OF = {"m": 0.001, "km": 1.0, "mi": 1.609344}
Comparison = Literal["=", "!=", "<", "<=", ">", ">="]
COMPARISONS: dict[str, Comparison] = {
    "=": "=",
    "==": "=",
    "!=": "!=",
    "<>": "!=",
    "<": "<",
    "<=": "<=",
    ">": ">",
    ">=": ">=",
}
KEYWORDS = frozenset({"AND", "OR", "NOT", "IN", "IS", "NULL", "LIKE", "GLOB"})

TOKEN = re.compile(
    r"\s*(?:(?P<string>'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\")|(?P<sign><>|[<>=!]=|[<>=(),])|(?P<word>[^\s'\"<>=!(),]+))"
)
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
WHOLE = re.compile(r"[+-]?[0-9]+")
Value = str | int | float


@dataclass(frozen=True)
class TextColumn:
    """What every image has as text."""

    name: TextName


@dataclass(frozen=True)
class NumberColumn:
    """The size of a file in bytes, or the time of its last change in seconds since 1970; unknown of some images."""

    name: NumberName


@dataclass(frozen=True)
class Attribute:
    """An attribute, by the keys that lead to it."""

    keys: tuple[str, ...]


Field = TextColumn | NumberColumn | Attribute


@dataclass(frozen=True)
class And:
    """All of several conditions."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True)
class Or:
    """Any of several conditions."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True)
class Not:
    """Whatever a condition is not true of, comparisons with what is missing included."""

    part: "Node"


@dataclass(frozen=True)
class Compare:
    """A comparison with a value. As everywhere but in `Not`, a missing field matches neither it nor its negation."""

    field: Field
    comparison: Comparison
    value: Value


@dataclass(frozen=True)
class In:
    """Whether a field is one of some values."""

    field: Field
    values: tuple[Value, ...]
    negated: bool = False


@dataclass(frozen=True)
class IsNull:
    """Whether a field is missing."""

    field: Field
    negated: bool = False


@dataclass(frozen=True)
class Match:
    """Whether the text of a field matches a pattern."""

    field: Field
    kind: Literal["LIKE", "GLOB"]
    pattern: str
    negated: bool = False


@dataclass(frozen=True)
class TakenCompare:
    """A comparison with the time a picture was taken, as far as `date` goes."""

    comparison: Comparison
    date: str


@dataclass(frozen=True)
class TakenIn:
    """Whether the time a picture was taken begins with one of some dates."""

    dates: tuple[str, ...]
    negated: bool = False


@dataclass(frozen=True)
class Near:
    """Whether a picture was taken at most `km` from a place in degrees."""

    latitude: float
    longitude: float
    km: float


Node = And | Or | Not | Compare | In | IsNull | Match | TakenCompare | TakenIn | Near


@dataclass(frozen=True)
class Condition:
    """A condition on images.

    Attributes:
        tree: What it says.
        attributes: The attributes that it names.
        of_file: Whether it asks for the size or the time of files.
        text: What it was parsed from, for messages.
    """

    tree: Node
    attributes: tuple[str, ...] = ()
    of_file: bool = False
    text: str = ""


@dataclass(frozen=True)
class _Token:
    kind: str  # 'string', 'sign', 'word' or 'end'
    text: str
    place: int

    @property
    def keyword(self) -> str:
        """The keyword in capitals if this is an unquoted keyword; else an empty string."""
        word = self.text.upper()
        return word if self.kind == "word" and word in KEYWORDS else ""


def parse_where(text: str) -> Condition:
    """Parses a condition in the language described in the module's docstring.

    Args:
        text: The value of `--where`.

    Returns:
        The condition.

    Raises:
        InputError: `text` is empty, too long, or not a condition; the message gives the position.

    Example:
        >>> parse_where("NOT camera.year >= 2020").tree
        Not(part=Compare(field=Attribute(keys=('camera', 'year')), comparison='>=', value=2020))
    """
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"where has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    parser = _Parser(text)
    tree = parser.any_of(0)
    if parser.token.kind != "end":
        raise parser.error("AND, OR or the end")
    return Condition(tree, tuple(parser.attributes), parser.of_file, text)


class _Parser:
    """A recursive-descent parser; each method parses what it is named after."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._next = 0
        self._comparisons = 0
        self.attributes: dict[str, None] = {}  # in their order
        self.of_file = False

    @property
    def token(self) -> _Token:
        return self._tokens[self._next]

    def any_of(self, depth: int) -> Node:
        parts = [self._all_of(depth)]
        while self._took("OR"):
            parts.append(self._all_of(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _all_of(self, depth: int) -> Node:
        parts = [self._one(depth)]
        while self._took("AND"):
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _one(self, depth: int) -> Node:
        if depth >= MAX_DEPTH:
            raise InputError(f"where nests more than {MAX_DEPTH} conditions")
        if self._took("NOT"):
            return Not(self._one(depth + 1))
        if self._took_sign("("):
            inner = self.any_of(depth + 1)
            if not self._took_sign(")"):
                raise self.error("')'")
            return inner
        return self._comparison()

    def _comparison(self) -> Node:
        token = self.token
        if token.kind not in ("word", "string") or token.keyword:
            raise self.error("a field")
        self._next += 1
        name = _unquoted(token)
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            raise InputError(f"where has more than {MAX_COMPARISONS} comparisons; use IN (..., ...) for many values")
        self._check_utf8(token)
        if name.lower() == "near" and self._took_sign("("):
            return self._near()
        if name.removeprefix("attributes.") == TAKEN and (taken := self._taken()):
            return taken
        field = self._field(name)
        group = name.removeprefix("attributes.") == GROUP  # groups have numbers for names
        if self.token.kind == "sign" and self.token.text in COMPARISONS:
            comparison = COMPARISONS[self._take().text]
            if group and comparison in ("=", "!="):
                return In(field, self._either(), comparison == "!=")
            return Compare(field, comparison, self._value_of(field))
        if self._took("IS"):
            negated = self._took("NOT")
            if not self._took("NULL"):
                raise self.error("NULL")
            return IsNull(field, negated)
        negated = self._took("NOT")
        if self.token.keyword in ("LIKE", "GLOB"):
            kind = cast(Literal["LIKE", "GLOB"], self._take().keyword)
            return Match(field, kind, str(self._value(True)), negated)
        if self._took("IN"):
            if not self._took_sign("("):
                raise self.error("'('")
            values: list[Value] = []
            while not values or self._took_sign(","):
                values += self._either() if group else [self._value_of(field)]
            if not self._took_sign(")"):
                raise self.error("',' or ')'")
            return In(field, tuple(values), negated)
        raise self.error("a comparison such as = or LIKE")

    def _field(self, name: str) -> Field:
        if name in TEXT_FIELDS:
            return TextColumn(TEXT_FIELDS[name])
        if name in NUMBER_FIELDS:
            self.of_file = True
            return NumberColumn(NUMBER_FIELDS[name])
        if "\\" in name or "\0" in name:  # SQLite may take it for the beginning of an escape, or for the end
            raise InputError(f"where {self._text!r}: the name of an attribute has no backslashes and no NUL characters")
        name = name.removeprefix("attributes.").replace('"', "")
        self.attributes[name] = None
        return Attribute(tuple(name.split(".")))

    def _value_of(self, field: Field) -> Value:
        """A value for a field."""
        return self._number(field) if isinstance(field, NumberColumn) else self._value(isinstance(field, TextColumn))

    def _either(self) -> tuple[Value, ...]:
        """The value for the name of a group: a number that is not quoted is also looked for as text."""
        token = self.token
        value = self._value(False)
        return (value,) if isinstance(value, str) else (value, token.text)

    def _taken(self) -> TakenCompare | TakenIn | None:
        """The rest of a comparison with the time that a picture was taken; None if it is not one with a date."""
        start, negated = self._next, self._took("NOT")
        if self._took("IN") and self._took_sign("("):
            dates: list[str] = []
            while not dates or self._took_sign(","):
                dates.append(self._date())
            if not self._took_sign(")"):
                raise self.error("',' or ')'")
            self.attributes[TAKEN] = None
            return TakenIn(tuple(dates), negated)
        self._next = start
        if self.token.kind != "sign" or self.token.text not in COMPARISONS:
            return None
        self.attributes[TAKEN] = None
        return TakenCompare(COMPARISONS[self._take().text], self._date())

    def _date(self) -> str:
        """A date or the beginning of one."""
        token = self.token
        date = str(self._value(True)).replace(" ", "T")
        if not DATE.fullmatch(date):
            raise InputError(
                f"where {self._text!r}: a date such as 2024, 2024-06 or 2024-06-30 was expected at character "
                f"{token.place + 1}, not {date!r}"
            )
        return date

    def _near(self) -> Near:
        """The rest of near(latitude, longitude, distance)."""
        latitude = self._degrees("a latitude from -90 to 90", 90)
        longitude = self._degrees("a longitude from -180 to 180", 180)
        token = self.token
        text = str(self._value(True)) if token.kind in ("word", "string") else ""
        if token.kind == "word" and self.token.text.lower() in KM_OF:  # 20 km
            text += self._take().text
        found = DISTANCE.fullmatch(text)
        if found is None:
            raise InputError(
                f"where {self._text!r}: a distance such as 20km or 500m was expected at character {token.place + 1}"
            )
        if not self._took_sign(")"):
            raise self.error("')'")
        km = float(found["number"]) * KM_OF[found["unit"].lower()]
        self.attributes |= {"latitude": None, "longitude": None}
        return Near(latitude, longitude, km)

    def _degrees(self, expected: str, limit: float) -> float:
        token = self.token
        value = self._value(False) if token.kind in ("word", "string") else None
        if isinstance(value, str) or value is None or not -limit <= value <= limit:
            raise InputError(f"where {self._text!r}: {expected} was expected at character {token.place + 1}")
        if not self._took_sign(","):
            raise self.error("','")
        return float(value)

    def _value(self, is_text: bool) -> Value:
        token = self.token
        if token.kind not in ("word", "string") or token.keyword:
            raise self.error("a value")
        self._next += 1
        self._check_utf8(token)
        if token.kind == "string" or is_text:
            return _unquoted(token)
        if token.text.lower() in ("true", "false"):  # SQLite returns JSON's as 1 and 0
            return int(token.text.lower() == "true")
        if NUMBER.fullmatch(token.text):
            value = float(token.text)
            return int(token.text) if WHOLE.fullmatch(token.text) and abs(value) < 2**63 else value
        return token.text

    def _number(self, field: NumberColumn) -> Value:
        token = self.token
        value = self._value(False)
        if isinstance(value, str) and field.name == "time":
            try:
                return datetime.datetime.fromisoformat(value).timestamp()
            except ValueError:
                pass
        if isinstance(value, str):
            wanted = "a number, or a date such as 2026-01-31" if field.name == "time" else "a number of bytes"
            raise InputError(
                f"where {self._text!r}: {wanted}, was expected at character {token.place + 1}, not {value!r}"
            )
        return value

    def _check_utf8(self, token: _Token) -> None:
        if token.text.encode(errors="replace").decode() != token.text:
            raise InputError(f"where {self._text!r}: the text at character {token.place + 1} is not valid UTF-8")

    def _take(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _took(self, keyword: str) -> bool:
        found = self.token.keyword == keyword
        self._next += found
        return found

    def _took_sign(self, sign: str) -> bool:
        found = self.token.kind == "sign" and self.token.text == sign
        self._next += found
        return found

    def error(self, expected: str) -> InputError:
        token = self.token
        found = "its end" if token.kind == "end" else repr(token.text)
        return InputError(f"where {self._text!r}: {expected} was expected at character {token.place + 1}, not {found}")


def _tokens(text: str) -> list[_Token]:
    tokens, place = [], 0
    end = len(text.rstrip())
    while place < end:
        match = TOKEN.match(text, place)
        if match is None:
            rest = text[place:end].lstrip()
            problem = "is not closed" if rest[0] in "'\"" else "is not a comparison"
            raise InputError(f"where {text!r}: {rest[:10]!r} at character {end - len(rest) + 1} {problem}")
        kind = match.lastgroup
        assert kind is not None
        tokens.append(_Token(kind, match[kind], match.start(kind)))
        place = match.end()
    return [*tokens, _Token("end", "", end)]


def _unquoted(token: _Token) -> str:
    if token.kind != "string":
        return token.text
    quote = token.text[0]
    return token.text[1:-1].replace(2 * quote, quote)
