"""dr_keras learns image similarity by deep ranking and searches with it.

    from dr_keras import Config, load, train

    model = train(Config(data="my-folders", run="first", epochs=5))   # or load("runs/first")
    model.search(["a-picture.jpg"], k=30)

Importing the package imports neither TensorFlow nor Keras; training does. Once both are imported, Keras knows
the layers: `keras.models.load_model("runs/first/embedding.keras")`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dr_keras.registration import register_layers

__version__ = "0.1.0"
__all__ = ["Config", "Entry", "Index", "Model", "load", "train"]

if TYPE_CHECKING:
    from dr_keras.config import Config
    from dr_keras.library import Model, load, train
    from dr_keras.retrieval.index import Entry, Index

_HOME = {
    "Config": "config",
    "Entry": "retrieval.index",
    "Index": "retrieval.index",
    "Model": "library",
    "load": "library",
    "train": "library",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"dr_keras.{_HOME[name]}"), name)
    raise AttributeError(f"module 'dr_keras' has no attribute {name!r}")


register_layers()
