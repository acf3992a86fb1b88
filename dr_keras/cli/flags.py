"""The flags of train.py, generated from the fields of `Config`."""

import argparse
import types
import typing
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from dr_keras.config import Config
from dr_keras.options import flag
from dr_keras.presets import PRESETS, with_preset


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--preset` and one flag for each field of `Config` to a parser; `parse` reads them.

    Args:
        parser: The parser to add the flags to.
    """
    hints = typing.get_type_hints(Config)
    for item in fields(Config):
        kind = hints[item.name]
        if isinstance(kind, types.UnionType):  # `int | None`
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        text = item.metadata["help"] + ("" if item.default is None else f" (default: {item.default})")
        options: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": kind, "choices": item.metadata["choices"], "metavar": item.metadata["metavar"]}
        parser.add_argument(flag(item.name), **options)
    parser.add_argument(
        "--preset", choices=PRESETS, default="default", help="a named set of defaults, which other flags override"
    )


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> tuple[dict[str, Any], argparse.Namespace]:
    """Parses a command line with a parser that `add_flags` prepared.

    Args:
        parser: The parser.
        arguments: The command line; by default, that of the process.

    Returns:
        The settings, including those of the preset, and all other arguments.
    """
    given = vars(parser.parse_args(arguments))
    names = {item.name for item in fields(Config)}
    settings = with_preset(given.pop("preset"), {name: value for name, value in given.items() if name in names})
    return settings, argparse.Namespace(**{name: value for name, value in given.items() if name not in names})
