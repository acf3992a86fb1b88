"""Expressions that an index in Milvus needs besides the conditions that people write."""

from collections.abc import Iterator, Mapping
from typing import Any

from dr_keras.index.filters import Attribute, Near
from dr_keras.index.milvus.conditions import present
from dr_keras.index.sql_conditions import KM_OF_DEGREE


def has_attribute(name: str) -> str:
    """True of images that have an attribute, whose name has dots where it is nested."""
    return present(Attribute(tuple(name.split("."))))


def box(near: Near) -> str:
    """True of images taken between two latitudes; it leaves few that are not near."""
    reach = near.km / KM_OF_DEGREE
    return (
        f'conditions["n:latitude"] >= {near.latitude - reach!r} and conditions["n:latitude"] <= '
        f'{near.latitude + reach!r} and (exists conditions["n:longitude"])'
    )


def attribute_names(attributes: Mapping[str, Any]) -> Iterator[str]:
    """The names of attributes that have a value, with dots where they are nested."""
    for name, value in attributes.items():
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in attribute_names(value))
        elif value is not None:
            yield str(name)
