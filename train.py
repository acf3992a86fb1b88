#!/usr/bin/env python3
"""Trains an embedding on folders of images and leaves a run folder for retrieve.py and evaluate.py.

python train.py --epochs 30
python train.py --data my-folders --run first --epochs 5
python train.py --export-only --run first
"""

import argparse
import sys

from dr_keras.config import add_flags, parse
from dr_keras.errors import InputError
from dr_keras.framework import import_framework


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run of the same name")
    parser.add_argument("--export-only", action="store_true", help="export a finished run again and train nothing")
    try:
        config, actions = parse(parser)
        if actions.export_only:
            from dr_keras.export import export_in_child
            from dr_keras.files import read_json, write_json
            from dr_keras.runs import open_run

            run = open_run(config.run)
            checks = export_in_child(run)
            known = read_json(run.metrics_file) if run.finished else {}
            write_json(run.metrics_file, known | {"export": checks})
            for name, difference in checks.items():
                print(f"{name}: differs from the network by at most {difference:.1e}")
        else:
            import_framework()
            from dr_keras.training.fit import run_training

            run_training(config, overwrite=actions.overwrite)
    except InputError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted; the run is not finished", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
