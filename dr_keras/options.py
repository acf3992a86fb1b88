"""The fields of the settings: their help texts, their flags, and checks of their values."""

from collections.abc import Iterable
from dataclasses import field
from typing import Any

from dr_keras.errors import InputError


def option(default: Any, text: str, *, choices: tuple[str, ...] | None = None, metavar: str | None = None) -> Any:
    """Returns a field of a settings dataclass, with its flag described in its metadata.

    Args:
        default: The default value.
        text: The help text of the flag.
        choices: The allowed values; None if they are not a fixed list.
        metavar: The placeholder for the value in the help.
    """
    return field(default=default, metadata={"help": text, "choices": choices, "metavar": metavar})


def flag(name: str) -> str:
    """Returns the flag of a field: `--image-size` for `image_size`."""
    return "--" + name.replace("_", "-")


def flags(names: Iterable[str]) -> str:
    """Returns the flags of fields, for a message: `--image-size, --seed`."""
    return ", ".join(map(flag, names))


def check_choice(part: object, **choices: tuple[str, ...]) -> None:
    """Raises `InputError` if a field does not have one of its allowed values."""
    for name, known in choices.items():
        if getattr(part, name) not in known:
            raise InputError(f"{flag(name)} is {getattr(part, name)!r}; choose one of {', '.join(known)}")


def check_at_least(part: object, **least: int) -> None:
    """Raises `InputError` if a field is below its bound; None is accepted."""
    for name, bound in least.items():
        value = getattr(part, name)
        if value is not None and not value >= bound:  # nor NaN
            raise InputError(f"{flag(name)} is {value}; it must be at least {bound}")


def check_positive(part: object, *names: str) -> None:
    """Raises `InputError` if a field is not positive and finite."""
    for name in names:
        if not 0 < getattr(part, name) < float("inf"):
            raise InputError(f"{flag(name)} is {getattr(part, name)}; it must be a positive number")


def check_share(part: object, *names: str) -> None:
    """Raises `InputError` if a field is not in [0, 1)."""
    for name in names:
        if not 0 <= getattr(part, name) < 1:
            raise InputError(f"{flag(name)} is {getattr(part, name)}; it must be a share from 0 up to 1")
