"""File names as people type them and as disks store them: the same text can have two forms in Unicode.

An accented letter is either one character (NFC, which keyboards produce) or a letter followed by an accent (NFD, which
macOS used to write). The two look the same but are different file names.
"""

import os
import unicodedata
from collections.abc import Iterable


def same_form(name: str) -> str:
    """Returns a name in NFC, in which names that look the same are equal."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def forms(name: str) -> list[str]:
    """Returns a name followed by its other normal forms."""
    return list(dict.fromkeys((name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))))


def existing(path: str) -> str:
    """Returns the path, or its other normal form if only that one exists."""
    if path.isascii() or os.path.lexists(path):
        return path
    return next((other for other in forms(path) if os.path.lexists(other)), path)


def told_apart(names: Iterable[str]) -> list[str]:
    """Returns the distinct names for display, with non-ASCII characters escaped in those that look the same."""
    known = list(dict.fromkeys(names))
    shown = [same_form(name) for name in known]
    return [name if shown.count(text) == 1 else ascii(name) for name, text in zip(known, shown, strict=True)]
