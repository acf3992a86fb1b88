"""What a picture's file says of it: its size, and from EXIF when, where and with what it was taken."""

import datetime
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what a search by name need not import
    from PIL import Image

# The attributes that an index gets from files, unless it is told not to.
FACTS = ("width", "height", "taken", "camera", "lens", "latitude", "longitude")
FIELDS = ("width", "height", "taken", "camera.make", "camera.model", "lens", "latitude", "longitude")

MAX_TEXT = 100  # characters of a camera's name: more is no name
DIGITS = 6  # of degrees: a tenth of a meter
EARTH_KM = 6371.0088  # mean radius

_MAKE, _MODEL, _ORIENTATION, _EXIF, _GPS = 0x10F, 0x110, 0x112, 0x8769, 0x8825
_TAKEN, _DIGITIZED, _LENS = 0x9003, 0x9004, 0xA434
_LATITUDE, _LONGITUDE = (1, 2, "N", "S", 90), (3, 4, "E", "W", 180)  # reference, value, sides, limit


def facts_of(image: "Image.Image", size: tuple[int, int]) -> dict[str, Any]:
    """Returns what an opened picture says of itself; nothing if it was developed from a raw photo.

    Args:
        image: The picture.
        size: Its width and height as stored. Where the pixels matter, load them first: to look for metadata, Pillow may
            load them itself.

    Returns:
        Its `width` and `height` as it is shown, in pixels; and as far as its EXIF data say so: `taken`, the local time
        as 2026-01-31T12:00:00; `camera`, with `make` and `model`; `lens`; `latitude` and `longitude` in degrees. What
        is damaged or impossible is left out.
    """
    if image.format is None:
        return {}
    width, height = size
    facts: dict[str, Any] = {"width": width, "height": height}
    try:
        exif = image.getexif()
        if not exif:
            return facts
        details = exif.get_ifd(_EXIF)
        place = exif.get_ifd(_GPS)
    except Exception:  # whatever Pillow raises for damaged metadata
        return facts
    if (
        exif.get(_ORIENTATION) in (5, 6, 7, 8) and image.format != "TIFF"
    ):  # whose size is already that of the turned one
        facts |= {"width": height, "height": width}
    camera = {"make": _text(exif.get(_MAKE)), "model": _text(exif.get(_MODEL))}
    known = {
        "taken": _time(details.get(_TAKEN)) or _time(details.get(_DIGITIZED)),
        "camera": {name: value for name, value in camera.items() if value},
        "lens": _text(details.get(_LENS)),
    }
    facts |= {name: value for name, value in known.items() if value}
    latitude, longitude = _degrees(place, *_LATITUDE), _degrees(place, *_LONGITUDE)
    if latitude is not None and longitude is not None and (latitude or longitude):  # many say 0, 0 for nowhere
        facts |= {"latitude": latitude, "longitude": longitude}
    return facts


def merged(facts: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Joins attributes; where both have one, that in `given` counts, and nested ones are joined.

    Example:
        >>> merged({"camera": {"make": "Canon"}, "width": 40}, {"camera": {"owner": "me"}, "width": 1})
        {'camera': {'make': 'Canon', 'owner': 'me'}, 'width': 1}
    """
    joined = dict(facts)
    for name, value in given.items():
        old = joined.get(name)
        joined[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return joined


def without_facts(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns attributes without those that an earlier version of the file may have given.

    Example:
        >>> without_facts({"camera": {"make": "Canon", "owner": "me"}, "width": 40, "year": 2020})
        {'camera': {'owner': 'me'}, 'year': 2020}
    """
    kept = {name: value for name, value in attributes.items() if name not in FIELDS}
    if isinstance(camera := kept.get("camera"), Mapping):
        kept["camera"] = {name: value for name, value in camera.items() if f"camera.{name}" not in FIELDS}
        if not kept["camera"]:
            del kept["camera"]
    return kept


def distance_km(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """Returns the distance of two places on the Earth in km, along a great circle (haversine formula).

    Args:
        latitude, longitude, other_latitude, other_longitude: In degrees.

    Example:
        >>> round(distance_km(48.137, 11.575, 52.52, 13.405))  # Munich and Berlin
        504
    """
    one, two = math.radians(latitude), math.radians(other_latitude)
    across = math.radians(other_longitude - longitude)
    half = math.sin((two - one) / 2) ** 2 + math.cos(one) * math.cos(two) * math.sin(across / 2) ** 2
    return 2 * EARTH_KM * math.asin(min(1.0, math.sqrt(half)))


def _text(value: object) -> str | None:
    """A camera's name without the padding that some write; None if it is none."""
    if not isinstance(value, str):
        return None
    text = " ".join(value.partition("\0")[0].split())
    return text if text and text.isprintable() and len(text) <= MAX_TEXT else None


def _time(value: object) -> str | None:
    """2026:01:31 12:00:00 -> 2026-01-31T12:00:00; None if it is no time."""
    if not isinstance(value, str):
        return None
    try:
        return datetime.datetime.strptime(value.partition("\0")[0].strip(), "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:
        return None


def _degrees(
    place: dict[int, Any], reference: int, value: int, positive: str, negative: str, limit: float
) -> float | None:
    """Degrees, minutes and seconds as degrees; None if they are none."""
    try:
        degrees, minutes, seconds = (float(part) for part in place[value])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    total = degrees + minutes / 60 + seconds / 3600
    if not 0 <= total <= limit:
        return None
    side = place.get(reference)
    side = (side.decode("ascii", "replace") if isinstance(side, bytes) else str(side)).strip("\0 ").upper()
    if side not in (positive, negative):
        return None
    return round(-total if side == negative else total, DIGITS)
