"""Conditions as expressions of Milvus: the images they find are those that SQL finds."""

import json
import operator
import random
import re
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dr_keras.errors import InputError
from dr_keras.index.database import connect
from dr_keras.index.filters import Condition, parse_where
from dr_keras.index.index import Index
from dr_keras.index.milvus.conditions import MAX_JSON_CHARACTERS, MISSING, condition_fields, to_expression
from dr_keras.index.milvus.valid_text import ESCAPE, escaped, unescaped
from dr_keras.index.records import Entry
from dr_keras.index.sql_conditions import to_sql

NAMES = {"cats": "cat, tabby", "Dogs": "Dog", "007": "agent", "[x]": "Éclair"}
TEXT = st.text(st.characters() | st.sampled_from([ESCAPE, "\udce9", "8", "f"]))

# Pools for random images and conditions. Texts that look alike in one way or another find the errors.
NUMBERS = [0, 1, -1, 2, 2020, 2021, 2020.0, 2020.5, -0.0, 0.1, 1e20, 1e-7, 123456.789, -3.25, 2**53, 2**60 + 1]
LARGE = [2**63, -(2**64), 10**30, 10**400]
TEXTS = [
    *(
        "",
        "0",
        "1",
        "2020",
        "2020.0",
        "true",
        "abc",
        "ABC",
        "aBc",
        "Abcd",
        "abcé",
        "É",
        "é",
        "Straße",
        "😀",
        "😀x",
        "\uffee",
    ),
    *(
        "Pixel 7",
        "pixel 7 pro",
        "PIXEL",
        "100%",
        "a_b",
        "a*b",
        "x\ny",
        'quote"s',
        "it's",
        "back\\slash",
        "[untitled]",
        "{",
    ),
    *(
        "2024-06-30T18:05:09",
        "2024-06",
        "2024",
        "2023-12-31T23:59:59",
        "20240630",
        "\x7f",
        "\x1a",
        ESCAPE,
        ESCAPE + "ab",
    ),
]
OTHERS = [None, [], [1, "Two", None], ["a"], {}, {"x": 1}, "z\udcff", "z\ud800", True, False]
KEYS = [
    *("year", "Year", "a", "b", "camera", "model", "group", "size", "odd name", "a.b", "per%cent", "sl/ash", "ti~lde"),
    *('quo"te', "back\\slash", "é", "", "attributes", "brack[0]", "#id"),
]
# SQLite before 3.45 does not find a key that JSON escapes, so no condition names one.
PATHS = [key for key in KEYS if key.isascii() and key not in ('quo"te', "back\\slash")]
LABELS = [*NAMES, "ÉCOLE", "caf\udce9", "a*b", "-"]
DATES = ["2024", "2024-06", "2024-06-30", "2024-06-30T18:05", "2024-06-30 18:05:09", "2023-12", "2025", "1999"]


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("label = cats", '(label == "cats")'),
        ("id != 'a\"b'", '(not (id == "a\\"b"))'),
        ("name IN (a, 'é')", '(name in ["a", "é"])'),
        ("split IS NULL", "(not (row >= 0))"),
        ("size > 10", "(11 <= size <= 9223372036854775807)"),
        ("size <= 2.5", "(-9223372036854775807 <= size <= 2)"),
        ("size = 2.5", "(row < 0)"),
        ("size IS NULL", "(not (-9223372036854775807 <= size <= 9223372036854775807))"),
        ("time < 2", "(-9223372036854775807 <= mtime_ns <= 1999999999)"),
        ("year < 2020", '(conditions["n:year"] < 2020.0)'),
        ("year < x", '((conditions["t:year"] < "x") or (exists conditions["n:year"]))'),
        ("year IN (1, 2.5, x)", '((conditions["n:year"] in [1.0, 2.5]) or (conditions["t:year"] in ["x"]))'),
        ("camera.model GLOB 'P*'", '((conditions["t:camera.model"] >= "P" and conditions["t:camera.model"] < "Q") or '
         '(conditions["x:camera.model"] >= "P" and conditions["x:camera.model"] < "Q"))'),
        ("id LIKE 'A'", '((id == "a") or (conditions["l:#id"] == "a"))'),
        ("'a/b c.d%' IN (1)", '(conditions["n:a%2Fb%20c.d%25"] in [1.0])'),
        ("class_name LIKE '%A%'", '(label in ["007", "[x]", "cats"])'),
        ("label GLOB '[0-9]*'", '(label in ["007"])'),
        ("class_name = none", "(row < 0)"),
        ("taken <= 2024-06", '((conditions["t:taken"] < "2024-07") or (conditions["x:taken"] < "2024-07"))'),
        ("near(0, 0, 5km)", "(row in [3, 5])"),
        ("near(1, 0, 5km)", "(row < 0)"),
        ("a = 1e999", '(conditions["n:a"] == 1.7976931348623157e+308)'),
    ],
)  # fmt: skip
def test_expressions(text, expression):
    assert to_expression(parse_where(text), NAMES, lambda place: [] if place.latitude else {5, 3}) == expression


def test_long_chains_are_parted():
    expression = to_expression(parse_where(" OR ".join(f"a = {n}" for n in range(20))), {}, list)
    first = " or ".join(f'(conditions["n:a"] == {n}.0)' for n in range(8))
    assert expression.startswith(f"(({first}) or ((")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name LIKE '%x%'", "a search in Milvus knows LIKE only with text and a % at its end, not '%x%'"),
        ("camera.model LIKE 'Pixel_7'", "knows LIKE only with text and a % at its end, not 'Pixel_7'"),
        ("label = cats AND id NOT GLOB '[a-c]*'", "knows GLOB only with text and a * at its end, not '[a-c]*'"),
        ("size LIKE '1%'", "a search in Milvus knows no LIKE with size"),
    ],
)
def test_patterns_that_milvus_does_not_know(text, message):
    with pytest.raises(InputError, match=f"^where {re.escape(repr(text))}: .*{re.escape(message)}$"):
        to_expression(parse_where(text), NAMES, list)


def test_fields_of_conditions():
    attributes = {"a.b": {"c": None, "d/": True, "e": -0.0}, "F": [1, "X"], "ü": 10**400, "g": "Ä", "h": {}}
    assert condition_fields(attributes, {"id": "A\udce9Ä", "name": "a"}) == {
        "t:a%2Eb": '{"c":null,"d/":true,"e":-0.0}',
        "n:a%2Eb.d%2F": 1.0,
        "x:a%2Eb.d%2F": "1",
        "n:a%2Eb.e": 0.0,
        "x:a%2Eb.e": "0.0",
        "t:F": '[1,"X"]',
        "l:F": '[1,"x"]',
        "n:%C3%BC": 1.7976931348623157e308,
        "x:%C3%BC": "Inf",
        "l:%C3%BC": "inf",
        "t:g": "Ä",
        "t:h": "{}",
        "l:#id": f"a{ESCAPE}ce9Ä",
    }
    assert len(condition_fields({"a": ["x"] * 1000}, {})["t:a"]) == MAX_JSON_CHARACTERS


@given(st.integers() | st.integers(-(10**6), 10**6).map(lambda n: n / 1000) | st.sampled_from([*NUMBERS, *LARGE]))
def test_numbers_have_the_text_that_they_have_in_sqlite(number):
    with closing(sqlite3.connect(":memory:")) as db:
        ((text,),) = db.execute("SELECT CAST(json_extract(?, '$.a') AS TEXT)", (json.dumps({"a": number}),))
    assert condition_fields({"a": number}, {})["x:a"] == text


@given(TEXT, TEXT)
@example(ESCAPE + "ce9", "\udce9")
def test_any_text_is_escaped(one, other):
    assert unescaped(escaped(one)) == one
    assert escaped(one).encode().decode() == escaped(one)
    assert escaped(one).startswith(escaped(other)) == one.startswith(other)
    assert escaped(one + other).startswith(escaped(one))


@given(st.text())
def test_ordinary_text_is_not_changed_by_escaping(text):
    assert ESCAPE in text or escaped(text) == text


@dataclass
class Images:
    """Random images in an index in a folder."""

    entries: Mapping[int, Entry]  # by row
    db: sqlite3.Connection
    names: Mapping[str, str]

    def found_by_sql(self, condition: Condition) -> set[int]:
        sql, values = to_sql(condition)
        return {row for (row,) in self.db.execute(f"SELECT row FROM images WHERE {sql}", values)}

    def expression(self, condition: Condition) -> str:
        return to_expression(condition, self.names, lambda near: self.found_by_sql(Condition(near)))

    def stored(self) -> Iterator[dict[str, Any]]:
        """The fields of each image in Milvus."""
        for row, entry in self.entries.items():
            columns = {"id": entry.id, "name": entry.name, "label": entry.label, "split": entry.split}
            size, time = (MISSING if number is None else number for number in (entry.size, entry.mtime_ns))
            fields = {"row": row, "size": size, "mtime_ns": time}
            texts = {name: escaped(text) for name, text in columns.items()}
            yield {**fields, **texts, "conditions": condition_fields(entry.attributes, columns)}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Iterator[Images]:
    draw = random.Random(4)
    entries = [random_image(draw, number) for number in range(300)]
    folder = tmp_path_factory.mktemp("conditions") / "index"
    with Index.create(folder, 2, root=folder) as index:
        index.add(entries, np.tile(np.array([1, 0], np.float32), (len(entries), 1)), class_names=NAMES)
        ids = {entry.id: entry for entry in entries}
        by_row = {row: ids[id] for row, id, *_ in index.records.listing()}
        names = index.records.class_names()
    db, _ = connect(folder, write=False)
    with closing(db):
        yield Images(by_row, db, names)


def random_image(draw: random.Random, number: int) -> Entry:
    folder = draw.choice(["a", "A", "Ab", "é", "caf\udce9", "x y", "a_b", "[a]"])
    base = draw.choice(["IMG", "img", "\udcff", "İ", "😀", 'q"', "per%"])
    attributes = {draw.choice(KEYS): random_value(draw) for _ in range(draw.randrange(8))}
    if draw.random() < 0.5:
        dates = [*DATES, *TEXTS, 2024, 20240630, 2024.5, ["2024-06"]]
        attributes["taken"] = draw.choice(dates)
    if draw.random() < 0.5:
        attributes["latitude"] = draw.choice([48.137, 48.2, 52.52, -0.25, "48.1", None, True])
        attributes["longitude"] = draw.choice([11.575, 11.6, 13.405, -78.5, None])
    return Entry(
        f"{folder}/{base}{number}.{draw.choice(['png', 'PNG'])}",
        label=draw.choice(LABELS),
        split=draw.choice(["", "", "train", "monitor", "validation"]),
        size=draw.choice([None, 0, 1, 9, 10, 11, 12345, 2**53 + 1, 2**63 - 1]),
        mtime_ns=draw.choice(
            [None, 0, 1, 10**9 - 1, 10**9, 1_700_000_000_123_456_789, -(10**9), 2**63 - 1, MISSING + 1]
        ),
        attributes=attributes,
    )


def random_value(draw: random.Random, depth: int = 0) -> Any:
    if depth < 3 and draw.random() < 0.25:
        return {draw.choice(KEYS): random_value(draw, depth + 1) for _ in range(draw.randrange(4))}
    pools: list[list[Any]] = [NUMBERS, NUMBERS, LARGE, TEXTS, TEXTS, OTHERS]
    return draw.choice(draw.choice(pools))


class RandomConditions:
    """Writes random conditions that Milvus knows.

    Args:
        draw: The source of randomness.
        images: What they are about.
    """

    def __init__(self, draw: random.Random, images: Images) -> None:
        self._draw = draw
        self._choice = draw.choice
        self._ids = [entry.id for entry in images.entries.values()]

    def condition(self, depth: int = 0) -> str:
        kind = self._draw.random()
        if depth < 4 and kind < 0.45:
            one = self.condition(depth + 1)
            if kind < 0.15:
                return f"NOT ({one})"
            return f"({one} {self._choice(['AND', 'OR'])} {self.condition(depth + 1)})"
        kinds = [self._of_text, self._of_label, self._of_file, self._of_attribute, self._of_attribute, self._of_photo]
        return self._choice(kinds)()

    def _comparison(self) -> str:
        return self._choice(["=", "!=", "<", "<=", ">", ">="])

    def _either(self, word: str) -> str:
        return self._choice(["", "NOT "]) + word

    def _in(self, value: Callable[[], str]) -> str:
        return f"{self._either('IN')} ({', '.join(value() for _ in range(self._choice([1, 2, 5])))})"

    def _null(self) -> str:
        return f"IS {self._either('NULL')}"

    def _pattern(self, text: str) -> str:
        """A comparison with a pattern that is like a text."""
        text = re.split("[%_*?[\ud800-\udfff]", text[: self._choice([1, 2, 4, 100])])[0]
        kind = self._choice(["LIKE", "GLOB"])
        text = self._choice([text, text, text.swapcase() if text.isascii() else text])
        return f"{self._either(kind)} {quoted(text + self._choice(['', '%' if kind == 'LIKE' else '*']))}"

    def _of_text(self) -> str:
        id = re.split("[\ud800-\udfff]", self._choice(self._ids))[0]
        name, text = self._choice(
            [("id", id), ("name", id.rpartition("/")[2]), ("split", self._choice(["train", "", "x"]))]
        )

        def value() -> str:
            return quoted(self._choice([text, text, self._choice(TEXTS)]))

        rest = [
            f"{self._comparison()} {value()}",
            self._in(value),
            self._null(),
            self._pattern(text),
            self._pattern(text),
        ]
        return f"{name} {self._choice(rest)}"

    def _of_label(self) -> str:
        values = [*LABELS, *NAMES.values(), "none"]

        def value() -> str:
            return quoted(self._choice(values).partition("\udce9")[0])

        pattern = self._choice(["%a%", "D_g", "[[]*", "[0-9]*", "*[^a-z]", "É%", "c*s", "CA%", "?*", "%", ""])
        rest = [f"{self._comparison()} {value()}", self._in(value), self._null()]
        rest += [f"{self._either(self._choice(['LIKE', 'GLOB']))} {quoted(pattern)}"]
        return f"{self._choice(['label', 'class', 'class_name'])} {self._choice(rest)}"

    def _of_file(self) -> str:
        name = self._choice(["size", "time"])
        values = [
            "0",
            "1",
            "10",
            "10.5",
            "-1",
            "true",
            str(2**53 + 1),
            str(2**63 - 1),
            "1e30",
            "-1e30",
            "1e999",
            "12345",
        ]
        times = ["0.999999999", "1700000000.123456789", "2023-11-14", "9223372036.854775807", "1e-9", "1.5", "-1.0"]

        def value() -> str:
            return self._choice([*values, *times] if name == "time" else values)

        return f"{name} {self._choice([f'{self._comparison()} {value()}', self._in(value), self._null()])}"

    def _of_attribute(self) -> str:
        keys = [self._choice(PATHS) for _ in range(self._choice([1, 1, 1, 2, 3]))]
        name = ("attributes." if keys == ["size"] else self._choice(["", "attributes."])) + ".".join(keys)

        def value() -> str:
            pools: list[list[Any]] = [NUMBERS, LARGE, TEXTS, TEXTS]
            pool = self._choice(pools)
            return self._choice(["true", "'[\"a\"]'", "'{\"x\":1}'", "1e999", *(written(one) for one in pool)])

        texts = [*TEXTS, *("2020.5", "1.0e+20", "1.0e-07", "9.22337203685478e+18", '["A"]', '[1,"two"', '{"X":')]
        rest = [f"{self._comparison()} {value()}", self._in(value), self._null(), self._pattern(self._choice(texts))]
        return f"{quoted(name)} {self._choice(rest)}"

    def _of_photo(self) -> str:
        def date() -> str:
            return quoted(self._choice(DATES))

        place = self._choice(["48.1, 11.6", "52.5, 13.4", "0, -78"])
        near = f"near({place}, {self._choice(['1m', '20 km', '600km', '10000mi'])})"
        taken = [f"{self._comparison()} {date()}", self._in(date), self._null(), self._pattern("2024-06")]
        return self._choice([near, f"taken {self._choice(taken)}", f"attributes.taken {self._choice(taken)}"])


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def written(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else str(value)


def test_expressions_say_what_the_sql_says(images):
    """By Python's eval: the expressions are Python but for `exists`."""
    stored = list(images.stored())
    conditions = RandomConditions(random.Random(5), images)
    telling = 0
    for _ in range(1500):
        text = conditions.condition()
        condition = parse_where(text)
        expected, expression = images.found_by_sql(condition), images.expression(condition)
        code = compile(re.sub(r'exists (conditions\["[^"]*"\])', r"\1.exists", expression), "expression", "eval")
        found = {
            fields["row"] for fields in stored if eval(code, fields | {"conditions": Stored(fields["conditions"])})
        }
        assert found == expected, (text, expression, [images.entries[row] for row in found ^ expected][:3])
        telling += 0 < len(expected) < len(stored)
    assert telling > 700


class Stored:
    """A field of JSON in an expression, or a value in it."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __getitem__(self, key: str) -> "Stored":
        return Stored(self._value.get(key))

    @property
    def exists(self) -> bool:
        return self._value is not None

    def _compare(self, other: Any, compare: Callable[[Any, Any], bool]) -> bool:
        return type(self._value) is type(other) and compare(self._value, other)

    def __eq__(self, other: object) -> bool:
        return self._compare(other, operator.eq)

    def __lt__(self, other: Any) -> bool:
        return self._compare(other, operator.lt)

    def __le__(self, other: Any) -> bool:
        return self._compare(other, operator.le)

    def __gt__(self, other: Any) -> bool:
        return self._compare(other, operator.gt)

    def __ge__(self, other: Any) -> bool:
        return self._compare(other, operator.ge)


@pytest.mark.milvus
def test_milvus_finds_what_sql_finds(images, milvus_address):
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(f"http://{milvus_address.rpartition('://')[2].partition('/')[0]}")
    name = f"cond_{uuid.uuid4().hex}"
    schema = client.create_schema(auto_id=False)
    for field, kind in ("row", DataType.INT64), ("size", DataType.INT64), ("mtime_ns", DataType.INT64):
        schema.add_field(field, kind, is_primary=field == "row")
    for field in ("id", "name", "label", "split"):
        schema.add_field(field, DataType.VARCHAR, max_length=65535)
    schema.add_field("conditions", DataType.JSON)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
    parameters = client.prepare_index_params()
    parameters.add_index("vector", index_type="FLAT", metric_type="L2")
    client.create_collection(name, schema=schema, index_params=parameters, consistency_level="Strong")
    try:
        client.insert(name, [fields | {"vector": [1.0, 0.0]} for fields in images.stored()])
        client.load_collection(name)

        def found(expression: str, consistency: str = "Eventually") -> set[int]:
            fields = client.query(name, filter=expression, output_fields=["row"], consistency_level=consistency)
            return {one["row"] for one in fields}

        conditions = RandomConditions(random.Random(6), images)
        texts = [
            "size IN (0, 9223372036854775807) OR NOT time < 0",
            " OR ".join(f"NOT a != {n}" for n in range(500)),
            "NOT (" * 24 + "label = cats" + ")" * 24,
            *(conditions.condition() for _ in range(300)),
        ]
        for number, text in enumerate(texts):
            if number in (0, 150):
                if number:
                    client.flush(name)  # the others are about a segment that is sealed
                assert len(found("row >= 0", "Strong")) == len(images.entries)  # this takes 0.2 s
            condition = parse_where(text)
            expected, expression = images.found_by_sql(condition), images.expression(condition)
            assert found(expression) == expected, (text, expression)
    finally:
        client.drop_collection(name)
        client.close()
