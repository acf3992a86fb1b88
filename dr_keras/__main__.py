"""`python -m dr_keras` is `dr-keras`."""

import sys

from dr_keras.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
