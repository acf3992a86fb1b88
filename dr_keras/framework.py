"""Loads the framework, when something needs it and not before."""

import os
import sys
import tempfile


def import_framework(backend: str | None = None) -> None:
    """Imports Keras with its backend, without the lines that TensorFlow's C++ code prints while it is loaded.

    Args:
        backend: which one, where KERAS_BACKEND does not say otherwise.

    TF_CPP_MIN_LOG_LEVEL takes no effect on those. If the import fails they are printed after all.
    """
    if backend:
        os.environ.setdefault("KERAS_BACKEND", backend)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reports a missing GPU as an error
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            import keras  # noqa: F401
        except BaseException:
            hidden.seek(0)
            os.write(shown, hidden.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)
