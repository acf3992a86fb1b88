"""Opens TIFF files; in a module of its own, because Pillow's TIFF reader takes a while to import."""

from typing import IO

from PIL import TiffImagePlugin

from dr_keras.data.images import ORIENTATION, UPRIGHT

_DNG_VERSION, _SUBFILE, _SUB_IMAGES, _PHOTOMETRIC = 50706, 254, 330, 262
_SENSOR = (32803, 34892)  # photometric interpretations of raw sensor data


class UprightTiff(TiffImagePlugin.TiffImageFile):
    """Pillow's TIFF reader, except that the orientation is all it reads after the pixels; it applies that."""

    is_upright = True

    def load_end(self) -> None:
        method = UPRIGHT.get(self.tag_v2.get(ORIENTATION, 1))
        if method is not None:
            self.im = self.im.transpose(method)
            self._size = self.im.size


def is_raw(file: IO[bytes]) -> bool:
    """Whether a TIFF is a raw photo; many of them start with a thumbnail that would be taken for the image."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
    except Exception:  # whatever Pillow raises for a damaged directory; opening the image will report it
        return False
    finally:
        file.seek(0)
    reduced = tags.get(_SUBFILE) == 1 and _SUB_IMAGES in tags
    return _DNG_VERSION in tags or reduced or tags.get(_PHOTOMETRIC) in _SENSOR
