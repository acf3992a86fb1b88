"""Makes `python -m dr_keras` the same as `dr-keras`."""

import sys

from dr_keras.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
