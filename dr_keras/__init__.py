"""dr_keras learns image similarity by deep ranking and searches with it.

    from dr_keras import Config, load, train

    model = train(Config(data="my-folders", run="first", epochs=5))   # or load("runs/first")
    model.search(["a-picture.jpg"], k=30)

Importing the package imports neither TensorFlow nor Keras; training does. Once this package and Keras are
both imported, Keras knows the layers: `keras.models.load_model("runs/first/embedding.keras")`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dr_keras.layer_registration import register_layers
from dr_keras.version import __version__

__all__ = ["Config", "Entry", "Index", "Model", "__version__", "load", "train"]

if TYPE_CHECKING:
    from dr_keras.config import Config
    from dr_keras.index.index import Index
    from dr_keras.index.records import Entry
    from dr_keras.loading import load
    from dr_keras.search_model import Model
    from dr_keras.training.train import train

_HOME = {
    "Config": "config",
    "Entry": "index.records",
    "Index": "index.index",
    "Model": "search_model",
    "load": "loading",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"dr_keras.{_HOME[name]}"), name)
    raise AttributeError(f"module 'dr_keras' has no attribute {name!r}")


register_layers()
