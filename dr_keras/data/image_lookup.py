"""Finds images of a data set by the names that tables use: ids, paths, or file names."""

import os
from pathlib import Path

from dr_keras.data.catalog import Catalog
from dr_keras.data.image_ids import image_id
from dr_keras.errors import InputError
from dr_keras.filenames import existing


class ImageLookup:
    """Finds the images of a catalog by name.

    Args:
        catalog: The catalog.
        base: The folder that relative paths may start from, besides the root of the catalog.
    """

    def __init__(self, catalog: Catalog, base: Path) -> None:
        self._root, self._base = catalog.root, base.resolve()
        self._row_of_id = {id: row for row, id in enumerate(catalog.ids)}
        self._rows_of_name: dict[str, list[int]] = {}
        for row, id in enumerate(catalog.ids):
            self._rows_of_name.setdefault(id.rpartition("/")[2], []).append(row)

    def row(self, name: str, where: str) -> int:
        """Returns the row of an image.

        Args:
            name: Its id, its path, or its file name if that is unique.
            where: The place of the name, for messages.

        Raises:
            InputError: No image has this name, or several have.
        """
        path = existing(os.path.normpath(self._base / os.path.expanduser(name)))
        for id in (name, image_id(path, self._root), image_id(os.path.realpath(path), self._root)):
            if id in self._row_of_id:
                return self._row_of_id[id]
        rows = self._rows_of_name.get(name, [])
        if len(rows) > 1:
            raise InputError(f"{where}: {len(rows)} images are named {name!r}; give the path of one")
        if not rows:
            raise InputError(f"{where}: no image of the data set is named {name!r}")
        return rows[0]
