"""Packs a run into files of limited size, to copy it off a temporary machine.

dr-keras pack runs/first packed
cat packed/first.tar.* | tar x -C runs                     # on the other machine

An unfinished run is packed with all that --resume needs, its checkpoint reduced to a third of its size. A finished
run is packed with its weights in half precision, which are enough to search, export and release it; the index and the
exports are left out, as they can be rebuilt from the weights.
"""

import argparse
import os
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dr_keras.backend import import_framework
from dr_keras.cli.parser import command_parser
from dr_keras.errors import InputError, RunError
from dr_keras.runs import Run

PART_BYTES = 15_000_000
PACKED_FILES = (
    "config.json",
    "history.csv",
    "data-report.json",
    "metrics.json",
    "calibration.json",
    "calibration-general.json",
    "classes.json",
    "samples.npy",
    "tensorboard",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this subcommand to `parser`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="where to write the parts, replacing those of the same run"
    )
    parser.add_argument(
        "--part",
        type=int,
        default=PART_BYTES,
        metavar="BYTES",
        help=f"largest size of a part (default: {PART_BYTES:,})",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dr-keras pack` with `arguments`; returns the exit status."""
    parser = command_parser("pack", __doc__)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    for file in pack(Run(options.run), options.folder, options.part):
        print(f"{file}: {file.stat().st_size:,} bytes")
    return 0


def pack(run: Run, folder: Path, part: int = PART_BYTES) -> list[Path]:
    """Packs `run` into the files `NAME.tar.000`, `NAME.tar.001`, ...

    Args:
        run: Finished or not.
        folder: Where to write the files; parts of a run of the same name are replaced.
        part: Largest size of a file, in bytes.

    Returns:
        The files, in order.

    Raises:
        InputError: `part` is below 1.
        RunError: `run` holds neither a network nor a checkpoint, or its optimizer has moments that cannot be left out.
    """
    if part < 1:
        raise InputError(f"--part is {part}; it must be at least 1")
    config, name = run.config(), Path(os.path.abspath(run.path)).name
    import_framework(config.backend)
    from dr_keras.model.half_precision import round_weights
    from dr_keras.model.released import run_network, write_weights
    from dr_keras.training.checkpoint import reduce_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made = Run(Path(place))
        if run.finished:
            network = run_network(run)
            round_weights(network)
            write_weights(made.weights_file, network)
            if run.general_file.is_file():
                run.general_head().rounded().save(made.general_file)
        elif config.optimizer == "adamw":
            raise RunError(f"{run.path} trains with adamw, which cannot resume without its moments; copy all its files")
        else:
            reduce_checkpoint(run.checkpoint_file, made.checkpoint_file)
        archive = made.path / "run.tar"
        with tarfile.open(archive, "w") as tar:
            taken = [run.path / name for name in PACKED_FILES]
            for source in (*taken, made.weights_file, made.general_file, made.checkpoint_file):
                if source.exists():
                    tar.add(source, f"{name}/{source.name}")
        for old in folder.iterdir():
            if old.name.startswith(f"{name}.tar."):
                old.unlink()
        return _split(archive, folder / f"{name}.tar", part)


def _split(archive: Path, name: Path, part: int) -> list[Path]:
    parts: list[Path] = []
    digits = max(3, len(str((archive.stat().st_size - 1) // part)))  # so that a shell lists the parts in order
    with open(archive, "rb") as file:
        while piece := file.read(part):
            parts.append(Path(f"{name}.{len(parts):0{digits}d}"))
            parts[-1].write_bytes(piece)
    return parts
