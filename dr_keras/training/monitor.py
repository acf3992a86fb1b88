"""Ranks the training images for each monitor image during a run, and shows the nearest ones."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dr_keras.data.catalog import Catalog
from dr_keras.data.held_out import among_themselves
from dr_keras.data.pixel_store import Pixels
from dr_keras.data.splits import MONITOR, SPLIT_NAMES, TRAIN
from dr_keras.evaluation.metrics import KS, evaluate, nearest_others
from dr_keras.evaluation.triplet_metrics import RankedTriplets, ranked_triplets
from dr_keras.image_grid import OTHER, QUERY, SAME, Neighbor, Tile, from_pixels, grid, neighbor_tiles
from dr_keras.index.exact_search import distances as exact_distances
from dr_keras.training.reporters import Board

SHOWN_QUERIES = 16
SHOWN_NEIGHBORS = 8
SHOWN_TRIPLETS = 8
SHOWN_IMAGES = 24
MATRIX_SIDE = 600  # pixels, about, of the matrix of classes
PROJECTED_SIDE, MAX_SPRITE = 64, 8192  # pixels, of a thumbnail and of all of them together in TensorBoard's projector


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
        self._neighbors: dict[int, np.ndarray] = {}  # that were shown, by step
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
        self.board.picture("monitor/class_similarity", _class_similarity(gallery, labels[self.gallery]), step)
        if len(triplets):
            self.board.picture("monitor/hardest_triplets", self._hardest(triplets), step)
            self.board.histogram("monitor/distance_to_positives", triplets.near.ravel(), step)
            self.board.histogram("monitor/distance_to_negatives", triplets.far.ravel(), step)
        places = np.searchsorted(self.queries, self._shown)
        rows = nearest_others(queries[places], gallery, SHOWN_NEIGHBORS, places if self._leave_one_out else None)
        far = exact_distances(queries[places], gallery, rows)
        neighbors = self.gallery[rows]
        before = self._neighbors.get(max((earlier for earlier in self._neighbors if earlier < step), default=-1))
        self.board.picture("monitor/neighbors", self._picture(neighbors, far, before), step)
        self._neighbors[step] = neighbors
        return figures

    def project(self, vectors: np.ndarray, count: int, step: int) -> None:
        """Shows images in TensorBoard's projector, as thumbnails with the class, the split and the id of each.

        Args:
            vectors: (N, D), of all images.
            count: How many images, at most; chosen at random. Some fewer are shown, so that they fill a square:
                tensorboardX leaves the rest of the picture of all thumbnails uninitialized.
            step: The global step.
        """
        catalog = self._catalog
        across = math.isqrt(min(count, len(catalog)))
        rows = np.sort(np.random.default_rng(self._seed).permutation(len(catalog))[: across**2])
        side = min(PROJECTED_SIDE, MAX_SPRITE // across)
        thumbnails = np.stack([np.asarray(from_pixels(self.pixels[row]).resize((side, side))) for row in rows])
        about = [
            (catalog.class_names[catalog.labels[row]], SPLIT_NAMES[catalog.splits[row]], catalog.ids[row])
            for row in rows
        ]
        self.board.embedding("embedding", vectors[rows], thumbnails, about, ("class", "split", "id"), step)

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

    def _hardest(self, triplets: RankedTriplets) -> np.ndarray:
        """The triplets of the monitor images that are ordered most wrongly, one per column."""
        names, labels = self._catalog.class_names, self._catalog.labels
        excess = triplets.near - triplets.far
        worst = np.unravel_index(np.argsort(-excess, axis=None)[:SHOWN_TRIPLETS], excess.shape)
        queries = self.queries[self._answerable[worst[0]]]
        rows = [
            [
                Tile(from_pixels(self.pixels[row]), (names[labels[row]], text), color)
                for row, text in zip(images, texts, strict=True)
            ]
            for images, texts, color in (
                (queries, ["query"] * len(queries), QUERY),
                (self.gallery[triplets.positive[worst]], [f"{d:.3f}" for d in triplets.near[worst]], SAME),
                (self.gallery[triplets.negative[worst]], [f"{d:.3f}" for d in triplets.far[worst]], OTHER),
            )
        ]
        return np.asarray(grid(rows))

    def _picture(self, neighbors: np.ndarray, distances: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        """The queries with their neighbors; a plus marks those that were not among them `before`."""
        names, labels = self._catalog.class_names, self._catalog.labels
        rows = []
        earlier = neighbors if before is None else before
        for query, found, far, last in zip(self._shown, neighbors, distances, earlier, strict=True):
            own = labels[query]
            near = [
                Neighbor(
                    from_pixels(self.pixels[row]),
                    names[labels[row]] if row in last else f"+ {names[labels[row]]}",
                    float(d),
                    bool(labels[row] == own),
                )
                for row, d in zip(found, far, strict=True)
            ]
            rows.append(neighbor_tiles(from_pixels(self.pixels[query]), names[own], near))
        half = -(-len(rows) // 2)  # two queries per line: an image wider than it is high suits a screen
        lines = [[*rows[line], *(rows[line + half] if line + half < len(rows) else ())] for line in range(half)]
        return np.asarray(grid(lines, side=80))


def _class_similarity(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The cosines between the mean vectors of the classes, (S, S, 3) uint8: blue for 0 and below, to yellow for 1."""
    classes, own = np.unique(labels, return_inverse=True)
    means = np.zeros((len(classes), vectors.shape[1]), np.float32)
    np.add.at(means, own, vectors)
    means = means[:: -(-len(classes) // MATRIX_SIDE)]  # of very many classes, some
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    share = np.clip(means @ means.T, 0, 1)[..., None]
    colors = ((1 - share) * (38, 56, 112) + share * (250, 220, 90)).astype(np.uint8)
    each = max(1, MATRIX_SIDE // len(means))
    return colors.repeat(each, axis=0).repeat(each, axis=1)
