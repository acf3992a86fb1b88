"""scikit-learn's 1,797 handwritten digits as class folders: real images without a download."""

from pathlib import Path

import numpy as np
from PIL import Image

from dr_keras.atomic_files import cache_folder, new_folder
from dr_keras.errors import MissingPackage
from dr_keras.extras import how_to_install

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def folder() -> Path:
    """Returns the cached folder of the digits: 8 x 8 grayscale PNG files, one folder per digit.

    Raises:
        InputError: Scikit-learn, which contains the digits, is not installed.
    """
    root = cache_folder() / "digits"
    if root.is_dir():
        return root
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingPackage(f"--data digits needs scikit-learn: {how_to_install('sklearn')}") from None
    data = load_digits()
    with new_folder(root, replace=False) as temporary:
        for name in NAMES:
            (temporary / name).mkdir()
        pixels = (data.images * (255 / 16)).round().astype(np.uint8)  # (1797, 8, 8), from 0..16
        for row, (image, label) in enumerate(zip(pixels, data.target, strict=True)):
            Image.fromarray(image).save(temporary / NAMES[label] / f"digit_{row:04d}.png")
    return root
