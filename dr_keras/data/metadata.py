"""Takes the metadata out of an encoded picture, for those whose pixels are whole and whose metadata are not."""

import struct
from collections.abc import Iterator
from typing import IO

MOST_BYTES = 256 * 2**20  # of a file that is looked at
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_WEBP_DROPPED = (b"EXIF", b"XMP ", b"ICCP")
_ADOBE, _COMMENT, _SCAN = 0xEE, 0xFE, 0xDA  # markers; Adobe's says how the colors are coded
_ADOBE_BYTES = 14  # of its segment, the length included
_ORIENTATION = 0x112  # the tag of EXIF
_ALONE = (0x01, *range(0xD0, 0xDA))  # markers without a length


def without(file: IO[bytes], format: str) -> bytes | None:
    """The picture with nothing but what its pixels need.

    Args:
        file: JPEG, PNG or WebP.
        format: which of them, as in `dr_keras.data.formats`.

    Returns:
        The other bytes, or None where there is nothing to take away, or for another format.
    """
    take = {"JPEG": _jpeg_parts, "PNG": _png_parts, "WEBP": _webp_parts}.get(format)
    file.seek(0)
    data = file.read(MOST_BYTES + 1) if take else b""
    if take is None or len(data) > MOST_BYTES:
        return None
    kept = b"".join(take(data))
    if format == "WEBP":
        kept = b"RIFF" + struct.pack("<I", len(kept) + 4) + b"WEBP" + kept
    return kept if kept != data else None


def orientation(exif: object) -> int:
    """The orientation of EXIF whose other entries may be damaged: 1 to 8, and 1 where there is none."""
    data = exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else b""
    order = {b"II": "little", b"MM": "big"}.get(data[:2])
    if order is None:
        return 1

    def number(place: int, length: int) -> int:
        return int.from_bytes(data[place : place + length], order)  # type: ignore[arg-type]

    start = number(4, 4)
    for entry in range(start + 2, start + 2 + 12 * number(start, 2), 12):
        if number(entry, 2) == _ORIENTATION:
            return number(entry + 8, 2)
    return 1


def _png_parts(data: bytes) -> Iterator[bytes]:
    yield data[:8]
    place = 8
    while place + 8 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] in _PNG_KEPT:
            yield data[place:end]
        place = end


def _webp_parts(data: bytes) -> Iterator[bytes]:
    place = 12
    while place + 8 <= len(data):
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        end = place + 8 + length + length % 2
        if data[place : place + 4] not in _WEBP_DROPPED:
            yield data[place:end]
        place = end


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    yield data[:2]
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF or marker in _ALONE:  # a fill byte, or a marker that stands alone
            place += 1 if marker == 0xFF else 2
            continue
        if marker == _SCAN:
            break
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        says_colors = marker == _ADOBE and end - place >= _ADOBE_BYTES
        if says_colors or not (0xE0 <= marker <= 0xEF or marker == _COMMENT):
            yield data[place:end]
        place = end
    yield data[place:]
