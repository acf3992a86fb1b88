"""The --where language against plain Python conditions on the same images."""

import json
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dr_keras.errors import InputError
from dr_keras.index.filters import MAX_CHARACTERS, MAX_DEPTH, parse_where
from dr_keras.index.sql_conditions import to_sql

IMAGES = [
    ("cats/a.jpg", "a.jpg", "cats", "train", 10, 1_000_000_000, {"year": 2020, "camera": {"model": "Pixel 7"}}),
    ("cats/b.jpg", "b.jpg", "cats", "monitor", 20, 2_000_000_000, {"year": 2021, "good": True}),
    ("dogs/c.png", "c.png", "dogs", "validation", 30, 3_000_000_000, {"year": "2021", "odd name": 1.5}),
    ("007/d.png", "d.png", "007", "", None, None, {"note": 'it\'s "so"', "none": None}),
]


@pytest.fixture(scope="module")
def database():
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.executescript(
        "CREATE TABLE images (id TEXT, name TEXT, label TEXT, split TEXT, size INTEGER, mtime_ns INTEGER, "
        "attributes TEXT); CREATE TABLE classes (label TEXT, name TEXT)"
    )
    rows = [(*image[:-1], json.dumps(image[-1])) for image in IMAGES]
    connection.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    names = [("cats", "cat, tabby"), ("dogs", "dog"), ("007", "agent")]
    connection.executemany("INSERT INTO classes VALUES (?, ?)", names)
    return connection


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("label = cats", "ab"),
        ("class == 'cats'", "ab"),
        ("label != cats", "cd"),
        ("label = 007", "d"),
        ("label = 7", ""),
        ('class_name = "cat, tabby"', "ab"),
        ("name LIKE '%.PNG'", "cd"),
        ("id GLOB cats/*", "ab"),
        ("id not glob 'cats/*'", "cd"),
        ("size > 10 and size <= 30", "bc"),
        ("size IS NULL", "d"),
        ("size IS NOT NULL", "abc"),
        ("time >= 2", "bc"),
        ("year = 2021", "b"),
        ("year = '2021'", "c"),
        ("year IN (2020, '2021')", "ac"),
        ("attributes.year=2020", "a"),
        ("camera.model = 'Pixel 7'", "a"),
        ("good = true", "b"),
        ("'odd name' = 1.5", "c"),
        ("note = 'it''s \"so\"'", "d"),
        ("none IS NULL", "abcd"),
        ("NOT year = 2021", "acd"),
        ("NOT NOT year = 2021", "b"),
        ("label = dogs OR label = cats AND split = train", "ac"),
        ("(label = dogs OR label = cats) AND split = train", "a"),
        ("label NOT IN (cats, dogs)", "d"),
        ("split = ''", "d"),
        ("note = nan", ""),
        ("label = \"x' OR '1' = '1\"", ""),
        ("label = 'x; DROP TABLE images'", ""),
        ('"x\') OR 1 = 1 --" = 1', ""),
        ('"a"".b" = 1', ""),
        ("size < 99999999999999999999999", "abc"),
        ("time < '1970-01-01T00:00:01.5+00:00'", "a"),
        ("time >= 2020-01-01", ""),
    ],
)
def test_conditions_find_what_they_say(database, text, expected):
    sql, values = to_sql(parse_where(text))
    rows = database.execute(f"SELECT name FROM images WHERE {sql} ORDER BY name", values)
    assert "".join(name[0] for (name,) in rows) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a field was expected at character 1, not its end"),
        ("   ", "a field was expected"),
        ("label", "a comparison such as = or LIKE was expected at character 6"),
        ("label =", "a value was expected at character 8, not its end"),
        ("label = cats dogs", "AND, OR or the end was expected at character 14, not 'dogs'"),
        ("label = AND", "a value was expected"),
        ("(label = cats", "'\\)' was expected"),
        ("label IN cats", "'\\(' was expected"),
        ("label IN (cats", "',' or '\\)' was expected"),
        ("label IN ()", "a value was expected"),
        ("label IS cats", "NULL was expected"),
        ("label = 'cats", "at character 9 is not closed"),
        ("label ! cats", "at character 7 is not a comparison"),
        ("label = cats; DROP TABLE images", "AND, OR or the end was expected"),
        ("label = \udcff", "not valid UTF-8"),
        ("\udcff = 1", "not valid UTF-8"),
        ("size < 10MB", "a number of bytes, was expected at character 8, not '10MB'"),
        ("size IN (1, x)", "a number of bytes"),
        ("time < yesterday", "a number, or a date such as 2026-01-31, was expected"),
        (" OR ".join(["a = 1"] * 501), "more than 500 comparisons"),
        ("NOT " * (MAX_DEPTH + 1) + "label = cats", "nests more than"),
        ("label = " + "x" * MAX_CHARACTERS, "at most 10,000"),
    ],
)
def test_invalid_conditions_are_explained(text, message):
    with pytest.raises(InputError, match=message):
        parse_where(text)


@given(st.text())
def test_any_string_in_quotes_is_a_value_and_nothing_else(database, text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    if len(text) >= 1000:
        return
    sql, values = to_sql(parse_where("name = '" + text.replace("'", "''") + "'"))
    assert (sql, values) == ("name = ?", (text,))
    assert database.execute(f"SELECT count(*) FROM images WHERE {sql}", values).fetchone() == (0,)


@given(st.text(alphabet="abl=<>!'\"(), ANDORTINSLKE.7", max_size=40))
def test_any_text_is_a_condition_that_sqlite_takes_or_an_input_error(database, text):
    try:
        sql, values = to_sql(parse_where(text))
    except InputError:
        return
    database.execute(f"SELECT count(*) FROM images WHERE {sql}", values).fetchone()
