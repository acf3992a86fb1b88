"""Progress bars on standard error, so that standard output holds results only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def stderr() -> Console:
    """Standard error, with names of files left as they are: no markup, no lines broken in the middle of a path."""
    return Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


@contextmanager
def bar(text: str, total: int, console: Console) -> Iterator[Callable[[int], None]]:
    """A progress bar that goes when it is done: `with bar("reading images", 100, console) as advance: advance(1)`.

    Where there is no terminal, only what is being done is said, on a line.
    """
    if not console.is_terminal:
        console.print(text, highlight=False)
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=total)
        yield lambda count: progress.advance(task, count)
