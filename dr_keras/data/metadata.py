"""Removes the metadata from encoded images whose pixels are intact but whose metadata is damaged."""

import struct
from collections.abc import Iterator
from typing import IO

MAX_BYTES = 256 * 2**20  # larger files are not examined
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_WEBP_DROPPED = (b"EXIF", b"XMP ", b"ICCP")
_ADOBE, _COMMENT, _SCAN = 0xEE, 0xFE, 0xDA  # markers; Adobe's says how colors are encoded
_ADOBE_BYTES = 14  # minimum length of Adobe's segment, including the length field
_ORIENTATION = 0x112  # the EXIF tag
_ALONE = (0x01, *range(0xD0, 0xDA))  # markers without a length field


def without(file: IO[bytes], format: str) -> bytes | None:
    """Returns an encoded image reduced to what its pixels need.

    Args:
        file: A JPEG, PNG or WebP file.
        format: Its name in `dr_keras.data.formats`.

    Returns:
        The bytes, or None if there is nothing to remove or the file has another format.
    """
    take = {"JPEG": _jpeg_parts, "PNG": _png_parts, "WEBP": _webp_parts}.get(format)
    file.seek(0)
    data = file.read(MAX_BYTES + 1) if take else b""
    if take is None or len(data) > MAX_BYTES:
        return None
    kept = b"".join(take(data))
    if format == "WEBP":
        kept = b"RIFF" + struct.pack("<I", len(kept) + 4) + b"WEBP" + kept
    return kept if kept != data else None


def orientation(exif: object) -> int:
    """Returns the orientation, 1 to 8, from EXIF data whose other entries may be damaged; 1 if there is none."""
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
        if marker == 0xFF or marker in _ALONE:  # a fill byte, or a marker without a length field
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
