"""The seed, which several parts of the settings share."""

from typing import Any

from dr_keras.options import option


def seed_option() -> Any:
    """Returns the field `seed` of a part of the settings."""
    return option(0, "seeds the splits, the triplets, the augmentation and the weights", metavar="N")
