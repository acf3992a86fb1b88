"""What an index knows about its images' files, so that a sync reads only those that are new or have changed."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping

from dr_keras.index.records import Stamp


class ImageFiles(ABC):
    """The stamps of an index's images, and the files that could not be read; available as `Index.image_files`."""

    @abstractmethod
    def stamps(self, ids: Collection[str] | None = None) -> dict[str, Stamp]:
        """The stamps of the images among `ids` that are in the index, by id; of all images by default."""

    @abstractmethod
    def ids_by_stamp(self, stamps: Collection[tuple[int, int]]) -> dict[tuple[int, int], list[str]]:
        """The ids of the images whose files had one of these sizes in bytes and modification times, by both."""

    @abstractmethod
    def ids_by_hash(self, hashes: Collection[bytes]) -> dict[bytes, list[str]]:
        """The ids of the images whose files have one of these contents, by SHA-256; in one pass over all images."""

    @abstractmethod
    def forget_stamps(self, ids: Collection[str]) -> None:
        """Makes images look as if their files had changed, so that they are embedded again.

        Raises:
            InputError: An id is not in the index or is given twice.
        """

    @abstractmethod
    def change_root(self, root: str, stamps: Mapping[str, Stamp]) -> None:
        """Changes the folder that ids are relative to.

        Args:
            root: Its absolute path.
            stamps: By id, the new stamps of the images whose stamps differ there.
        """

    @abstractmethod
    def skipped(self) -> dict[str, tuple[int | None, int | None, str]]:
        """The files that could not be read, by id: size, mtime_ns and the reason, as passed to `skip`."""

    @abstractmethod
    def skip(self, files: Mapping[str, tuple[int | None, int | None, str]]) -> None:
        """Records files that could not be read, so that they are not tried again until they change.

        Args:
            files: Size, mtime_ns and the reason, by id.
        """

    @abstractmethod
    def unskip(self, ids: Iterable[str]) -> None:
        """Forgets that these files could not be read, so that they are tried again."""
