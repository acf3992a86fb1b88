"""`python -m dr_keras.export RUN_FOLDER`: the child process of `export_in_child`; prints the differences as JSON."""

import json
import sys
from pathlib import Path

from dr_keras.errors import InputError
from dr_keras.export import NO_TENSORFLOW
from dr_keras.runs import Run

if __name__ == "__main__":
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        sys.exit(NO_TENSORFLOW)
    from dr_keras.export.write import export

    try:
        print(json.dumps(export(Run(Path(sys.argv[1])))))
    except InputError as error:
        sys.exit(str(error))
