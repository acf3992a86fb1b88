"""The smallest raw photo that libraw reads: a DNG whose sensor saw a single color."""

import struct

import numpy as np


def dng(red: int, green: int, blue: int, width: int = 64, height: int = 48) -> bytes:
    """A DNG of one color, given as the 16-bit sensor values behind an RGGB Bayer filter."""
    seen = np.empty((height, width), "<u2")
    seen[0::2, 0::2], seen[0::2, 1::2], seen[1::2, 0::2], seen[1::2, 1::2] = red, green, green, blue

    def shorts(*values: int) -> tuple[int, int, bytes]:
        return 3, len(values), struct.pack(f"<{len(values)}H", *values)

    def longs(*values: int) -> tuple[int, int, bytes]:
        return 4, len(values), struct.pack(f"<{len(values)}I", *values)

    def text(value: bytes) -> tuple[int, int, bytes]:
        return 2, len(value) + 1, value + b"\0"

    matrix = b"".join(struct.pack("<ii", int(10_000 * value), 10_000) for value in np.eye(3).reshape(-1))
    entries = {
        254: longs(0),  # the first image is the photo itself
        256: longs(width),
        257: longs(height),
        258: shorts(16),
        259: shorts(1),
        262: shorts(32803),  # a color filter array
        271: text(b"Maker"),
        272: text(b"Camera"),
        273: longs(0),  # offset of its strip; set below
        274: shorts(1),
        277: shorts(1),
        278: longs(height),
        279: longs(seen.nbytes),
        33421: shorts(2, 2),
        33422: (1, 4, bytes((0, 1, 1, 2))),
        50706: (1, 4, bytes((1, 4, 0, 0))),
        50708: text(b"Camera"),
        50714: shorts(0),
        50717: longs(65535),
        50721: (10, 9, matrix),
        50728: (5, 3, struct.pack("<6I", *(1,) * 6)),
        50778: shorts(21),
    }
    place = 8 + 2 + 12 * len(entries) + 4
    behind = b""
    offsets = {}
    for tag, (_, _, value) in entries.items():
        if len(value) > 4:
            offsets[tag] = place + len(behind)
            behind += value + bytes(len(value) % 2)
    entries[273] = longs(place + len(behind))
    table = b"".join(
        struct.pack("<HHI", tag, kind, count)
        + (struct.pack("<I", offsets[tag]) if tag in offsets else value.ljust(4, b"\0"))
        for tag, (kind, count, value) in entries.items()
    )
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + behind + seen.tobytes()
