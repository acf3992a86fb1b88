"""Names of files as people write them and as disks keep them: one text may have two forms in Unicode.

An accented letter is one character (NFC, what keyboards make) or a letter and an accent (NFD, what macOS used to
write). They look the same and are different names.
"""

import os
import unicodedata
from collections.abc import Iterable


def same_form(name: str) -> str:
    """A name in the form in which names that look the same are equal."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def forms(name: str) -> list[str]:
    """A name and its other normal forms, itself first."""
    return list(dict.fromkeys((name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))))


def existing(path: str) -> str:
    """A path, or the one in another normal form where only that exists."""
    if path.isascii() or os.path.lexists(path):
        return path
    return next((other for other in forms(path) if os.path.lexists(other)), path)


def told_apart(names: Iterable[str]) -> list[str]:
    """Names for people to choose among: those that would print the same text with their characters spelled out."""
    known = list(dict.fromkeys(names))
    shown = [same_form(name) for name in known]
    return [name if shown.count(text) == 1 else ascii(name) for name, text in zip(known, shown, strict=True)]
