"""Numbers that know what they rest on, and the inputs of the model of large indexes: docs/scale.json."""

import json
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MEASURED_DIM = 256  # of the vectors of all measurements
FLOAT_BYTES = 4
ABSENT = "unmeasured"


@dataclass(frozen=True)
class Amount:
    """A number, and the names of the unmeasured inputs that it rests on."""

    value: float
    guesses: frozenset[str] = frozenset()

    def _with(self, other: "Amount | float", compute: Callable[[float, float], float]) -> "Amount":
        other = amount(other)
        return Amount(compute(self.value, other.value), self.guesses | other.guesses)

    def __add__(self, other: "Amount | float") -> "Amount":
        return self._with(other, operator.add)

    def __sub__(self, other: "Amount | float") -> "Amount":
        return self._with(other, operator.sub)

    def __mul__(self, other: "Amount | float") -> "Amount":
        return self._with(other, operator.mul)

    def __truediv__(self, other: "Amount | float") -> "Amount":
        return self._with(other, operator.truediv)

    def __rtruediv__(self, other: float) -> "Amount":
        return amount(other) / self

    __radd__, __rmul__ = __add__, __mul__

    def ceil(self) -> "Amount":
        return Amount(math.ceil(self.value), self.guesses)

    def text(self, show: Callable[[float], str]) -> str:
        """The number as `show` writes it, with a star if it rests on anything unmeasured."""
        return show(self.value) + "*" * bool(self.guesses)


def amount(value: Amount | float) -> Amount:
    return value if isinstance(value, Amount) else Amount(value)


def largest(*amounts: Amount | float) -> Amount:
    """The largest; it rests on whatever any of them rests on, as another one might be the largest."""
    known = [amount(one) for one in amounts]
    return Amount(max(one.value for one in known), frozenset().union(*(one.guesses for one in known)))


@dataclass(frozen=True)
class Input:
    """A number that was measured, is assumed, or is missing.

    Attributes:
        value: The number; None if it is missing.
        unit: Of what.
        source: "measured: ", "assumed: " or "unmeasured: ", and where it is from, or how it could be measured.
        measured: Whether it was measured.
    """

    value: float | None
    unit: str
    source: str
    measured: bool


class Inputs:
    """All inputs.

    Args:
        known: The inputs, by name.

    Raises:
        ValueError: An input contradicts itself.
    """

    def __init__(self, known: dict[str, Input]) -> None:
        self.known = known
        for name, one in known.items():
            kind = "measured" if one.measured else ABSENT if one.value is None else "assumed"
            if not one.source.startswith(f"{kind}: ") or (one.measured and one.value is None):
                raise ValueError(f"{name} is {kind}, but its value is {one.value} and its source {one.source!r}")
            if one.value is not None and not 0 < one.value < math.inf:
                raise ValueError(f"{name} is {one.value}, which is not positive")

    @classmethod
    def read(cls, file: Path) -> "Inputs":
        """Reads a JSON file: by name, {value, unit, source, measured}."""
        return cls({name: Input(**about) for name, about in json.loads(file.read_text(encoding="utf-8")).items()})

    def get(self, name: str) -> Amount | None:
        """An input; None if it is missing."""
        one = self.known.get(name)
        if one is None or one.value is None:
            return None
        return Amount(one.value, frozenset() if one.measured else frozenset([name]))

    def __getitem__(self, name: str) -> Amount:
        found = self.get(name)
        assert found is not None, f"{name} has no formula to take its place"
        return found

    def at_most_rows(self, name: str) -> tuple[float, Amount] | None:
        """What was measured with most images, and how many they were: the last of NAME_1e5 to NAME_1e8."""
        found = {10.0**power: self.get(f"{name}_1e{power}") for power in (8, 7, 6, 5)}
        return next(((rows, value) for rows, value in found.items() if value is not None), None)

    def recall(self, name: str, images: float) -> Amount | None:
        """The recall that was measured with most images, which stands for that of more."""
        measured = self.at_most_rows(name)
        if measured is None:
            return None
        rows, found = measured
        return found if images <= rows else found * Amount(1.0, frozenset([f"{name}_1e{math.log10(rows) + 1:.0f}"]))

    def bandwidth(self) -> Amount:
        """Bytes a second at which one query reads vectors."""
        rows, ms = self.at_most_rows("exact_ms") or (1e6, self["exact_ms_1e6"])
        return rows * MEASURED_DIM * FLOAT_BYTES * 1000 / ms

    def operations(self) -> Amount:
        """Multiplications and additions a second of many queries together."""
        return 2 * MEASURED_DIM * 1e6 * 1000 * 1000 / self["exact_1000_ms_1e6"]
