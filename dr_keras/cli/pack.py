"""Packs a run for the way home from a machine that will be gone, in files of a limited size.

    python -m dr_keras.cli.pack runs/first packed
    cat packed/first.tar.* | tar x -C runs                     # at home

Of an unfinished run that is what `train.py --resume` needs, with a checkpoint a third as large (see
`dr_keras.training.checkpoint.reduce_checkpoint`). Of a finished run it is the weights in half precision, by which it
can be searched with, exported and released, without the index and the exports, which are made of them again.
"""

import argparse
import sys
import tarfile
import tempfile
from pathlib import Path

from dr_keras.backend import import_framework
from dr_keras.errors import InputError, RunError
from dr_keras.runs import Run

PART = 15_000_000  # bytes
TAKEN = (
    "config.json",
    "history.csv",
    "data-report.json",
    "metrics.json",
    "calibration.json",
    "samples.npy",
    "tensorboard",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("folder", type=Path, help="where the parts are written; parts of the same run are replaced")
    parser.add_argument("--part", type=int, default=PART, help=f"bytes of a part, at most (default: {PART:,})")
    options = parser.parse_args()
    try:
        for file in pack(Run(options.run), options.folder, options.part):
            print(f"{file}: {file.stat().st_size:,} bytes")
    except InputError as error:
        print(f"pack: {error}", file=sys.stderr)
        return 2
    return 0


def pack(run: Run, folder: Path, part: int = PART) -> list[Path]:
    """Writes `run` to files `NAME.tar.000`, `NAME.tar.001`, ... of at most `part` bytes; returns them.

    Raises:
        RunError: there is neither a network nor a checkpoint in `run`, or it trained with an optimizer whose moments
            cannot be left out.
    """
    config = run.config()
    import_framework(config.backend)
    from dr_keras.model.released import run_network, write_weights
    from dr_keras.training.checkpoint import reduce_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made = Run(Path(place))
        if run.finished:
            write_weights(made.weights_file, run_network(run))
        elif config.optimizer == "adamw":
            raise RunError(f"{run.path} trains with adamw, whose steps go astray without its moments; copy all of it")
        else:
            reduce_checkpoint(run.checkpoint_file, made.checkpoint_file)
        archive = made.path / "run.tar"
        with tarfile.open(archive, "w") as tar:
            taken = [run.path / name for name in TAKEN]
            for source in (*taken, made.weights_file, made.checkpoint_file):
                if source.exists():
                    tar.add(source, f"{run.path.name}/{source.name}")
        for old in folder.iterdir():
            if old.name.startswith(f"{run.path.name}.tar."):
                old.unlink()
        return _split(archive, folder / f"{run.path.name}.tar", part)


def _split(archive: Path, name: Path, part: int) -> list[Path]:
    parts: list[Path] = []
    with open(archive, "rb") as file:
        while piece := file.read(part):
            parts.append(Path(f"{name}.{len(parts):03d}"))
            parts[-1].write_bytes(piece)
    return parts


if __name__ == "__main__":
    sys.exit(main())
