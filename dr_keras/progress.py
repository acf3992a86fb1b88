"""Progress bars on standard error, so that standard output holds nothing but results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def stderr() -> "Console":
    """Returns a console on standard error that prints file names verbatim: no markup, and no line breaks in a path."""
    from rich.console import Console  # a search by name need not import it

    return Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


@contextmanager
def bar(text: str, total: int, console: "Console") -> Iterator[Callable[[int], None]]:
    """Shows a progress bar that disappears when its block ends.

    Without a terminal, `text` is printed once instead.

    Args:
        text: What is being done.
        total: The count at which the work is complete.
        console: Where the bar is shown.

    Yields:
        A function to call with the count done since its last call.

    Example:
        >>> from rich.console import Console
        >>> with bar("reading images", 2, Console(quiet=True)) as advance:
        ...     advance(1)
        ...     advance(1)
    """
    if not console.is_terminal:
        console.print(text, highlight=False)
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=total)
        yield lambda count: progress.advance(task, count)
