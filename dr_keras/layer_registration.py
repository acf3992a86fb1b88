"""Registers the layers of dr_keras with Keras as soon as both are imported, so that Keras can load `embedding.keras`.

Keras finds the classes of another package only once they are registered, and the modules that register them import
Keras. They are imported at once if Keras is already loaded, otherwise right after it is imported, so that
`import dr_keras` alone imports no framework.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_layers() -> None:
    """Registers the layers now, or right after Keras is imported."""
    if "keras" in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterKeras) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterKeras())


def _register() -> None:
    importlib.import_module("dr_keras.model")


class _AfterKeras:
    """Finds Keras as the other finders do, registers the layers once it is loaded, and then removes itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "keras":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target))), None)
        if spec and spec.loader:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                _register()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
