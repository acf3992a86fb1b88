"""Recognizes images by their first bytes: one rule for training, indexes, duplicates, galleries, and uploads.

`sniff` distinguishes three kinds of content: formats that are decoded, images that need an optional decoder or are not
supported (raw photos, drawings), and everything else, which does not count as an image.
"""

import os
import re
from dataclasses import dataclass

HEAD_BYTES = 1024  # that are examined; the root element of an SVG file may come after a license
PHOTOS = "pip install 'dr_keras[photos]'"  # the decoders for camera and phone formats
UPDATE = "pip install --upgrade pillow"


@dataclass(frozen=True)
class Format:
    """An image format.

    Attributes:
        name: The name in Pillow, or a similar one if Pillow has none.
        ending: The suffix of its files.
        media_type: The media type in HTTP.
        remedy: What to do if it cannot be read; empty for formats that Pillow reads.
    """

    name: str
    ending: str
    media_type: str
    remedy: str = ""


_INSTALL = f"to read it, {PHOTOS}"
_CONVERT = "save it as PNG or JPEG"

FORMATS = {
    one.name: one
    for one in (
        Format("JPEG", ".jpg", "image/jpeg"),
        Format("PNG", ".png", "image/png"),
        Format("WEBP", ".webp", "image/webp"),
        Format("GIF", ".gif", "image/gif"),
        Format("BMP", ".bmp", "image/bmp"),
        Format("TIFF", ".tiff", "image/tiff"),
        Format("AVIF", ".avif", "image/avif"),
        Format("JPEG2000", ".jp2", "image/jp2"),
        Format("PPM", ".ppm", "image/x-portable-anymap"),
        Format("TGA", ".tga", "image/x-tga"),
        Format("ICO", ".ico", "image/vnd.microsoft.icon"),
        Format("ICNS", ".icns", "image/icns"),
        Format("PSD", ".psd", "image/vnd.adobe.photoshop"),
        Format("QOI", ".qoi", "image/qoi"),
        Format("DDS", ".dds", "image/vnd-ms.dds"),
        Format("PCX", ".pcx", "image/vnd.zbrush.pcx"),
        Format("SGI", ".sgi", "image/sgi"),
        Format("HEIF", ".heic", "image/heic", _INSTALL),
        Format("RAW", ".raw", "image/x-raw", _INSTALL),
        Format("JXL", ".jxl", "image/jxl", _INSTALL),
        Format("SVG", ".svg", "image/svg+xml", _CONVERT),
        Format("EPS", ".eps", "application/postscript", _CONVERT),
        Format("EXR", ".exr", "image/x-exr", _CONVERT),
        Format("HDR", ".hdr", "image/vnd.radiance", _CONVERT),
        Format("XCF", ".xcf", "image/x-xcf", _CONVERT),
        Format("WMF", ".wmf", "image/wmf", _CONVERT),
        Format("EMF", ".emf", "image/emf", _CONVERT),
        Format("DICOM", ".dcm", "application/dicom", _CONVERT),
        Format("DJVU", ".djvu", "image/vnd.djvu", _CONVERT),
        Format("JPEG XR", ".jxr", "image/jxr", _CONVERT),
        Format("BPG", ".bpg", "image/bpg", _CONVERT),
        Format("FLIF", ".flif", "image/flif", _CONVERT),
    )
}

_RAW = ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mrw .nef .nrw .orf .pef .raf .raw .rw2 .srw .x3f"
_OTHER = (
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .dib .gif .tif .tiff .avif .avifs .heic .heif .hif .jp2 .j2k .jpf .jpx .j2c "
    ".ppm .pgm .pbm .pnm .pfm .tga .qoi .jxl .svg .exr .hdr .xcf .dds .jxr .bpg .flif"
)
_RAW_ENDINGS = frozenset(_RAW.split())
# A file with one of these suffixes claims to be an image: it is not opened to check, and is reported if it is not one.
ENDINGS = _RAW_ENDINGS | frozenset(_OTHER.split())

_MAGIC = (  # offset, bytes, format
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (0, b"FUJIFILMCCD-RAW", "RAW"),
    (0, b"IIRO", "RAW"),
    (0, b"IIRS", "RAW"),
    (0, b"MMOR", "RAW"),
    (0, b"IIU\0", "RAW"),
    (0, b"FOVb", "RAW"),
    (0, b"\0MRM", "RAW"),
    (6, b"HEAPCCDR", "RAW"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
    (0, b"\xff\x0a", "JXL"),
    (0, b"8BPS", "PSD"),
    (0, b"qoif", "QOI"),
    (0, b"DDS ", "DDS"),
    (0, b"icns", "ICNS"),
    (0, b"\x76\x2f\x31\x01", "EXR"),
    (0, b"#?RADIANCE", "HDR"),
    (0, b"#?RGBE", "HDR"),
    (0, b"gimp xcf", "XCF"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"%!PS-Adobe", "EPS"),
    (0, b"AT&TFORM", "DJVU"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"FLIF", "FLIF"),
    (40, b" EMF", "EMF"),
    (128, b"DICM", "DICOM"),
)
# Brands of the ISO base media file format, ISO/IEC 14496-12, without those of videos.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"heif"), "HEIF"),
    b"crx ": "RAW",
}
_GENERIC_BRANDS = (b"mif1", b"mif2", b"msf1", b"miaf")  # images whose codec is given only by their other brands
_SPACE = rb"(?:\s+|#[^\n]*\n)+"
_PNM = re.compile(rb"P[1-6]" + _SPACE + rb"\d+" + _SPACE + rb"\d+|P[fF]\s+\d+\s+\d+\s+-?[\d.]+")
_SVG = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<(?:\?xml|!--|!DOCTYPE\s+svg)(?:(?!<html).)*?)?<svg[\s>]", re.DOTALL | re.IGNORECASE
)
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # length of the header after the file header, by version


def sniff(head: bytes, size: int, path: str | os.PathLike[str] | None = None) -> Format | None:
    """Recognizes the format of an image.

    Args:
        head: The first `HEAD_BYTES` bytes, or all of them if there are fewer.
        size: The total length in bytes.
        path: The file, if there is one. Many raw formats are TIFF inside, and only their suffixes tell them apart.

    Returns:
        The format, or None if the content is not an image.

    Example:
        >>> sniff(b"GIF89a", 1000).media_type
        'image/gif'
    """
    name = _name_of(head, size)
    if name == "TIFF" and (head[8:10] == b"CR" or (path is not None and _ending(path) in _RAW_ENDINGS)):
        name = "RAW"
    return FORMATS[name] if name else None


def needs_decoder(reason: str) -> bool:
    """Returns whether the reason for a failure of `images.decode` is a missing decoder."""
    return PHOTOS in reason or UPDATE in reason


def says_picture(path: str | os.PathLike[str]) -> bool:
    """Returns whether a file name has the suffix of an image."""
    return _ending(path) in ENDINGS


def _ending(path: str | os.PathLike[str]) -> str:
    return os.path.splitext(os.fspath(path))[1].lower()


def _name_of(head: bytes, size: int) -> str | None:
    for place, magic, name in _MAGIC:
        if head.startswith(magic, place):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _by_brands(head)
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[:1] == b"P" and _PNM.match(head):
        return "PPM"
    if head[:1] == b"\n" and head[1:2] in (b"\0", b"\2", b"\3", b"\4", b"\5") and head[2:3] == b"\1":
        return "PCX" if head[3:4] in (b"\1", b"\2", b"\4", b"\x08") else None
    if head[:2] == b"\x01\xda" and head[2:3] in (b"\0", b"\1") and head[3:4] in (b"\1", b"\2"):
        return "SGI"
    if head[:4] == b"\0\0\1\0" and len(head) >= 22 and head[4:6] != b"\0\0" and head[9] == 0:
        return "ICO"
    if _SVG.match(head):
        return "SVG"
    return "TGA" if _is_tga(head, size) else None


def _by_brands(head: bytes) -> str | None:
    box = head[8 : max(16, min(int.from_bytes(head[:4], "big"), len(head)))]
    brands = [box[:4], *(box[start : start + 4] for start in range(8, len(box), 4))]  # the version is in between
    known = next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)
    return known or ("HEIF" if any(brand in _GENERIC_BRANDS for brand in brands) else None)


def _is_tga(head: bytes, size: int) -> bool:
    """Whether the fields of a header are consistent with a TGA file, which has no signature."""
    if len(head) < 18:
        return False
    id_bytes, has_map, kind = head[0], head[1], head[2]
    map_count, map_bits = int.from_bytes(head[5:7], "little"), head[7]
    width, height, bits = int.from_bytes(head[12:14], "little"), int.from_bytes(head[14:16], "little"), head[16]
    depths = {1: (8,), 2: (15, 16, 24, 32), 3: (8, 16)}.get(kind & ~8, ())  # bit 3: run-length encoded
    if kind & ~11 or bits not in depths or not width or not height or head[17] & 0xC0:
        return False
    if has_map > 1 or (has_map and map_bits not in (15, 16, 24, 32)) or (not has_map and any(head[3:8])):
        return False
    if (kind & ~8 == 1) != bool(has_map):
        return False
    pixels = width * height * ((bits + 7) // 8)
    least = 18 + id_bytes + map_count * ((map_bits + 7) // 8)
    return size >= least + (width * height // 128 if kind & 8 else pixels)
