"""The groups of the index that the server searches: listed, named and corrected."""

from collections.abc import Sequence

from dr_keras.index.groups import Group, groups_of, move_to_group, rename_group
from dr_keras.search_results import Result
from dr_keras.server.changes import change_groups
from dr_keras.server.errors import Problem
from dr_keras.server.live_index import LiveIndex


class LiveGroups:
    """The groups of a live index. Threads may share it; changes come from one at a time.

    Args:
        live_index: The index.
    """

    def __init__(self, live_index: LiveIndex) -> None:
        self._live = live_index
        self._known: tuple[int, list[tuple[Group, list[str]]]] = (-1, [])  # with the index version they were read from

    def _groups(self) -> list[tuple[Group, list[str]]]:
        """The groups with their images; the caller holds the index."""
        self._live.refresh()
        version = self._live.index.version
        if self._known[0] != version:
            self._known = version, groups_of(self._live.index)
        return self._known[1]

    def _results(self, ids: Sequence[str]) -> list[Result]:
        index = self._live.index
        return [self._live.model.result(row) for row in index.records.rows_of(ids).values()]

    def all(self) -> list[tuple[Group, Result]]:
        """Returns the groups, the largest first, each with the image in its middle."""
        with self._live.index.held():
            groups = [group for group, _ in self._groups()]
            return list(zip(groups, self._results([group.center for group in groups]), strict=True))

    def members(self, name: str, k: int) -> list[Result]:
        """Returns up to `k` images of a group, the one in its middle first.

        Raises:
            Problem: 404 if there is no such group.
        """
        with self._live.index.held():
            for group, ids in self._groups():
                if group.name == name:
                    return self._results([group.center, *(id for id in ids if id != group.center)][:k])
        raise Problem(404, "there is no such group")

    def rename(self, name: str, to: str) -> int:
        """Renames a group, or joins it to another; returns how many images it has.

        Raises:
            Problem: 404 if there is no such group, 422 if the new name is impossible, 503 while another process writes,
                507 if the change cannot be written.
        """
        self.members(name, 1)
        return change_groups(self._live.index.place, lambda index: rename_group(index, name, to))

    def move(self, ids: Sequence[str], group: str | None) -> int:
        """Moves images to a group, or out of any; returns how many.

        Raises:
            Problem: 404 if the index has not all of them; and as for `rename`.
        """
        for id in ids:
            self._live.has(id)
        return change_groups(self._live.index.place, lambda index: move_to_group(index, ids, group))
