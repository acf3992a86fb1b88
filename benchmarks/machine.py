"""How benchmarks describe the machine and format measurements."""

import os
import platform
import statistics
from collections.abc import Sequence


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
