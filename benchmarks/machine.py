"""How benchmarks describe the machine, format measurements, and pass them to bench_all.py."""

import json
import os
import platform
import statistics
from collections.abc import Sequence

# An installed package has its compiled modules beside it; commands that are timed from a checkout should find them too.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

FIGURES = "DR_KERAS_FIGURES"  # the environment variable that names the file for `record`


def machine() -> str:
    """One line: processor, cores, memory, Python."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or an Arm processor: the plain name will do
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}"


def spread(values: Sequence[float], unit: str, digits: int = 3) -> str:
    """Median, range and count."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"median {middle} {unit} ({low} to {high}, n = {len(values)})"


def record(
    name: str, values: Sequence[float], unit: str, *, ratio: float | None = None, to: str = "", goal: str = ""
) -> None:
    """Passes a figure on to bench_all.py, if that has started the benchmark.

    Args:
        name: What was measured; once per benchmark.
        values: Of all rounds.
        unit: Of the values.
        ratio: To what the figure is compared with in the same run; a ratio differs less between machines than values.
        to: What that is.
        goal: What the ratio should be, or the value if there is no ratio, such as "<= 0.5".
    """
    if file := os.environ.get(FIGURES):
        figure = {"name": name, "median": statistics.median(values), "low": min(values), "high": max(values)}
        figure |= {"n": len(values), "unit": unit, "ratio": ratio, "to": to, "goal": goal}
        with open(file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(figure) + "\n")
