"""The search engine of an index: chosen, built, kept up to date and repaired."""

from abc import ABC, abstractmethod
from typing import Any


class IndexEngine(ABC):
    """The engine of an open index, available as `Index.engine`."""

    @abstractmethod
    def build(self, engine: str = "auto") -> str:
        """Builds the search engine: the exact one, which needs no file, or an approximate one.

        Args:
            engine: 'flat', 'hnsw' or 'ivfpq'; 'auto' chooses by the number of images. The choice is saved.

        Returns:
            The engine's name.

        Raises:
            InputError: There is no such engine, or there are too few images for it.
            RunError: It cannot be written.
        """

    @abstractmethod
    def update(self, engine: str | None = None) -> None:
        """Builds an engine if a different one is needed by now, or if the index has outgrown its current one.

        Args:
            engine: The choice, as in `build`; by default the saved one.
        """

    @abstractmethod
    def repair(self) -> None:
        """Rebuilds the engine if its file is damaged."""

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """Its name, how it was chosen, whether it is exact, how many rows it holds, and its recall."""
