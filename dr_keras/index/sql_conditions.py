"""A condition as SQL with bound parameters.

No part of its text ever becomes SQL: fields come from a fixed table; attribute names and values are bound.
"""

from typing import assert_never

from dr_keras.index.filters import (
    TAKEN,
    And,
    Attribute,
    Compare,
    Condition,
    Field,
    In,
    IsNull,
    Match,
    Near,
    Node,
    Not,
    Or,
    TakenCompare,
    TakenIn,
    Value,
)

COLUMNS = {
    "id": "id",
    "name": "name",
    "label": "label",
    "class_name": "(SELECT classes.name FROM classes WHERE classes.label = images.label)",
    "split": "split",
    "size": "size",
    "time": "(mtime_ns / 1e9)",
}
TAKEN_TEXT = f"json_extract(attributes, '$.{TAKEN}')"
LATITUDE, LONGITUDE = "json_extract(attributes, '$.latitude')", "json_extract(attributes, '$.longitude')"
KM_OF_DEGREE = 110.5  # of latitude, at least


def to_sql(condition: Condition) -> tuple[str, tuple[Value, ...]]:
    """Returns an SQL expression over the table `images`, and the values of its placeholders.

    Example:
        >>> from dr_keras.index.filters import parse_where
        >>> to_sql(parse_where("label = cats AND year >= 2020"))
        ('(label = ? AND json_extract(attributes, ?) >= ?)', ('cats', '$."year"', 2020))
    """
    values: list[Value] = []
    return _sql(condition.tree, values), tuple(values)


def _sql(node: Node, values: list[Value]) -> str:
    """The expression; appends to `values`."""
    match node:
        case And(parts):
            return "(" + " AND ".join(_sql(part, values) for part in parts) + ")"
        case Or(parts):
            return "(" + " OR ".join(_sql(part, values) for part in parts) + ")"
        case Not(part):
            # Not SQL's own NOT: there, a comparison with a missing attribute is NULL, and so is its negation.
            return f"(({_sql(part, values)}) IS NOT 1)"
        case Compare(field, comparison, value):
            sql = _field(field, values)
            values.append(value)
            return f"{sql} {comparison} ?"
        case In(field, any_of, negated):
            sql = _field(field, values)
            values += any_of
            return f"{sql} {_not(negated)}IN ({', '.join('?' * len(any_of))})"
        case IsNull(field, negated):
            return f"{_field(field, values)} IS {_not(negated)}NULL"
        case Match(field, kind, pattern, negated):
            sql = _field(field, values)
            values.append(pattern)
            return f"{sql} {_not(negated)}{kind} ?"
        case TakenCompare(comparison, date):
            values.append(date)
            return f"substr({TAKEN_TEXT}, 1, {len(date)}) {comparison} ?"
        case TakenIn(dates, negated):
            values += dates
            inside = "(" + " OR ".join(f"substr({TAKEN_TEXT}, 1, {len(date)}) = ?" for date in dates) + ")"
            return f"({TAKEN_TEXT} NOT NULL AND NOT {inside})" if negated else inside
        case Near(latitude, longitude, km):
            degrees = km / KM_OF_DEGREE
            values += [latitude - degrees, latitude + degrees, latitude, longitude, km]
            # The first comparison is fast, and leaves few for the second.
            return f"({LATITUDE} BETWEEN ? AND ? AND distance_km({LATITUDE}, {LONGITUDE}, ?, ?) <= ?)"
    assert_never(node)


def _field(field: Field, values: list[Value]) -> str:
    if isinstance(field, Attribute):
        values.append("$" + "".join(f'."{key}"' for key in field.keys))
        return "json_extract(attributes, ?)"
    return COLUMNS[field.name]


def _not(negated: bool) -> str:
    return "NOT " if negated else ""
