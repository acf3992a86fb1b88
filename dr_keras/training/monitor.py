"""Ranks the training images for each monitor image during a run, and shows the nearest ones."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dr_keras.data.catalog import Catalog
from dr_keras.data.held_out import among_themselves
from dr_keras.data.pixel_store import Pixels
from dr_keras.data.splits import MONITOR, TRAIN
from dr_keras.evaluation.metrics import KS, evaluate, nearest_others
from dr_keras.evaluation.triplet_metrics import ranked_triplets
from dr_keras.image_grid import OTHER, QUERY, SAME, Neighbor, Tile, from_pixels, grid, neighbor_tiles
from dr_keras.index.exact_search import distances as exact_distances
from dr_keras.training.reporters import Board

SHOWN_QUERIES = 16
SHOWN_NEIGHBORS = 8
SHOWN_TRIPLETS = 8
SHOWN_IMAGES = 24


class Monitor:
    """Measures precision@k of the monitor images against the training images, and shows the same 16 queries each time.

    If whole classes are held out for monitoring (`dr_keras.data.held_out`), their images are ranked against each other.

    Args:
        catalog: The usable images.
        pixels: Their pixels, (N, H, W, 3) uint8, in the order of the catalog.
        board: The TensorBoard writer.
        seed: Chooses the 16 queries, and the triplets of the distance histograms.
    """

    def __init__(self, catalog: Catalog, pixels: Pixels, board: Board, seed: int) -> None:
        self._catalog, self.pixels, self.board, self._seed = catalog, pixels, board, seed
        self.queries, self.gallery = catalog.rows(MONITOR), catalog.rows(TRAIN)
        self._leave_one_out = among_themselves(catalog.labels, self.queries, self.gallery)
        if self._leave_one_out:
            self.gallery = self.queries
        same = np.bincount(catalog.labels[self.gallery], minlength=len(catalog.classes))[catalog.labels[self.queries]]
        self._answerable = np.flatnonzero(same > self._leave_one_out)  # whose class has another image in the gallery
        self._shown = np.random.default_rng(seed).permutation(self.queries)[:SHOWN_QUERIES]

    @property
    def figure(self) -> str:
        """The metric to maximize. Whole classes may be so small that all their images are among the 30 nearest."""
        return "map@r" if self._leave_one_out else "precision@30"

    def look(self, vectors_of: Callable[[np.ndarray], np.ndarray], step: int) -> dict[str, float]:
        """Ranks the monitor images, writes the figures to TensorBoard, and returns them.

        Args:
            vectors_of: Maps catalog rows (n,) to their embeddings (n, D).
            step: The global step that the figures belong to.

        Returns:
            The figures by name; empty if there are no monitor images.
        """
        if not len(self._answerable):
            return {}
        labels = self._catalog.labels
        queries = vectors_of(self.queries)
        gallery = queries if self._leave_one_out else vectors_of(self.gallery)
        figures = evaluate(
            queries,
            labels[self.queries],
            gallery,
            labels[self.gallery],
            class_count=len(self._catalog.classes),
            seed=self._seed,
            leave_one_out=self._leave_one_out,
        ).figures
        chosen = (*(f"precision@{k}" for k in KS), "map@r", "similarity_precision")
        known = (name for name in chosen if figures[name] is not None)
        shown = {name.replace("@", "_at_"): figures[name] for name in known}  # TensorBoard does not accept "@"
        self.board.scalars("monitor", shown, step)
        triplets = ranked_triplets(
            queries[self._answerable],
            labels[self.queries[self._answerable]],
            gallery,
            labels[self.gallery],
            seed=self._seed,
            own=self._answerable if self._leave_one_out else None,
        )
        if len(triplets):
            self.board.histogram("monitor/distance_to_positives", triplets.near.ravel(), step)
            self.board.histogram("monitor/distance_to_negatives", triplets.far.ravel(), step)
        places = np.searchsorted(self.queries, self._shown)
        rows = nearest_others(queries[places], gallery, SHOWN_NEIGHBORS, places if self._leave_one_out else None)
        far = exact_distances(queries[places], gallery, rows)
        self.board.picture("monitor/neighbors", self._picture(self.gallery[rows], far), step)
        return figures

    def show_batch(self, batch: dict[str, Any], step: int) -> None:
        """Shows the first triplets or images of a batch in TensorBoard, as the network sees them.

        Args:
            batch: The named inputs of the model.
            step: The global step.
        """
        batch = {name: np.asarray(values) for name, values in batch.items()}  # they may be on the device
        if "image" in batch:
            self._show_images(batch, step)
        else:
            self._show_triplets(batch, step)

    def _show_images(self, batch: dict[str, np.ndarray], step: int) -> None:
        names = self._catalog.class_names
        tiles = []
        for image, label, other, share in zip(*(batch[name][:SHOWN_IMAGES] for name in batch), strict=True):
            mixed_in = f"{1 - share:.0%} {names[other]}" if share < 1 else ""
            tiles.append(Tile(from_pixels(image), (names[label], mixed_in), QUERY))
        rows = [tiles[start : start + SHOWN_TRIPLETS] for start in range(0, len(tiles), SHOWN_TRIPLETS)]
        self.board.picture("data/images", grid(rows), step)

    def _show_triplets(self, batch: dict[str, np.ndarray], step: int) -> None:
        names = self._catalog.class_names
        colors = {"query": QUERY, "positive": SAME, "negative": OTHER}
        rows = [
            [
                Tile(from_pixels(image), (names[own if branch != "negative" else other], branch), color)
                for image, (own, other) in zip(batch[branch][:SHOWN_TRIPLETS], batch["classes"], strict=False)
            ]
            for branch, color in colors.items()
        ]  # one triplet per column
        self.board.picture("data/triplets", grid(rows), step)

    def _picture(self, neighbors: np.ndarray, distances: np.ndarray) -> np.ndarray:
        names, labels = self._catalog.class_names, self._catalog.labels
        rows = []
        for query, found, far in zip(self._shown, neighbors, distances, strict=True):
            own = labels[query]
            near = [
                Neighbor(from_pixels(self.pixels[row]), names[labels[row]], float(d), bool(labels[row] == own))
                for row, d in zip(found, far, strict=True)
            ]
            rows.append(neighbor_tiles(from_pixels(self.pixels[query]), names[own], near))
        half = -(-len(rows) // 2)  # two queries per line: an image wider than it is high suits a screen
        lines = [[*rows[line], *(rows[line + half] if line + half < len(rows) else ())] for line in range(half)]
        return np.asarray(grid(lines, side=80))
