"""Any text as valid UTF-8, which Milvus requires: file names may have other bytes, which Python keeps as surrogates."""

import re

ESCAPE = "\U0010ffff"  # above any text, as such bytes mostly are; Unicode assigns it no character
_INVALID = re.compile(f"[\ud800-\udfff{ESCAPE}]")
_ESCAPED = re.compile(f"{ESCAPE}(0|[89a-f][0-9a-f]{{2}})")


def escaped(text: str) -> str:
    """Returns a text that is valid UTF-8, another one for each text; one that is valid already is its own.

    `escaped(text)` starts with `escaped(start)` if and only if `text` starts with `start`.

    Example:
        >>> escaped("caf\\udce9.jpg") == "caf\\U0010ffffce9.jpg"
        True
    """
    return _INVALID.sub(lambda found: ESCAPE + _code(found[0]), text)


def unescaped(text: str) -> str:
    """Returns the text that `escaped` was given."""
    return _ESCAPED.sub(lambda found: chr(0xD000 + int(found[1], 16)) if found[1] != "0" else ESCAPE, text)


def _code(character: str) -> str:
    return "0" if character == ESCAPE else f"{ord(character) - 0xD000:03x}"
