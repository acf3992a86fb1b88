"""CSV files with named columns: manifests, pairs with their relevance, judgments of triplets."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dr_keras.errors import InputError


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        where: The file and the line, for messages.
        values: By column, the text without space around it; empty where the line has none.
    """

    where: str
    values: dict[str, str]

    def number(self, column: str, default: float) -> float:
        """Returns the number in a column.

        Args:
            column: The column.
            default: The number if it is empty or not in the table.

        Raises:
            InputError: It is not a number.
        """
        text = self.values.get(column, "")
        try:
            return float(text) if text else default
        except ValueError:
            raise InputError(f"{self.where}: {column} is {text!r}; expected a number") from None


def read_table(file: Path, *required: str) -> Iterator[Line]:
    """Reads the lines of a CSV file in UTF-8 whose first line names the columns, in upper or lower case.

    Args:
        file: The file.
        required: Columns that it must have.

    Raises:
        InputError: The file cannot be read, or a required column is missing.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream, skipinitialspace=True, strict=True)
            columns = [name.strip().lower() for name in rows.fieldnames or ()]
            if not set(required) <= set(columns):
                raise InputError(
                    f"{file} has the columns {', '.join(columns) or '(none)'}; expected {', '.join(required)}"
                )
            rows.fieldnames = columns
            for row in rows:
                values = {name: (row.get(name) or "").strip() for name in columns}
                yield Line(f"{file}, line {rows.line_num}", values)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as a CSV file in UTF-8: {error}") from error
