"""The names of the runtimes that embed images, and how many threads they use."""

import os

RUNTIMES = ("auto", "litert", "openvino", "openvino_bfloat16", "saved_model", "keras")

_processes = 1  # that share the cores


def share_cores(processes: int) -> None:
    """Makes this process one of several that compute at the same time: `threads` returns its share from now on."""
    global _processes
    _processes = processes


def threads() -> int:
    """Returns how many threads to compute with: one for each core, or for each core of this process's share."""
    return max(1, (os.cpu_count() or 1) // _processes)
