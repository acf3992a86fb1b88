"""The distance within which neighbors are likely to be right, which `evaluate.py --calibrate` finds."""

from dr_keras.atomic_files import read_json
from dr_keras.errors import RunError
from dr_keras.heads import FITTED, TRAINED
from dr_keras.invocation import command
from dr_keras.runs import Run


def calibrated_distance(run: Run, head: str) -> float:
    """Returns the calibrated distance of a head of a run.

    Args:
        run: The run.
        head: The head.

    Raises:
        RunError: The run is not calibrated for this head.
    """
    file = run.calibration_file(head)
    try:
        return float(read_json(file)["max_distance"])
    except FileNotFoundError:
        of = "" if head == TRAINED else f" for the {head} head"
        how = (
            "give a distance"
            if head == FITTED
            else f"run {command('evaluate')} --run {run.path.name} --calibrate 0.95"
            + ("" if head == TRAINED else f" --head {head}")
            + f", or for an index of your own {command('index')} calibrate"
        )
        raise RunError(f"{run.path} is not calibrated{of}; {how}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} cannot be read: {error}") from error
