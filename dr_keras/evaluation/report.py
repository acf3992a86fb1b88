"""One self-contained HTML page about an evaluation: figures, curves, classes, and the pictures behind them."""

import base64
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dr_keras.atomic_files import new_file
from dr_keras.data.images import decode
from dr_keras.data.thumbnails import square_thumbnail
from dr_keras.errors import ImageError, InputError, RunError
from dr_keras.evaluation.charts import Curve, bars, line_chart
from dr_keras.evaluation.metrics import KS, nearest_others
from dr_keras.evaluation.ranked_images import RankedImages
from dr_keras.evaluation.triplet_metrics import ranked_triplets
from dr_keras.image_grid import TILE_PAPER, open_or_missing
from dr_keras.index.exact_search import distances
from dr_keras.search_model import Model
from dr_keras.why_picture import lit

SHOWN = 30  # neighbors that precision and recall are plotted for
NEIGHBORS = 7  # in a row of pictures
QUERIES = 5  # best ones, and as many worst ones
PAIRS = 8  # confused pairs of classes
SIDE = 96  # pixels of a picture
BINS = 40  # of the histograms
STYLE = Path(__file__).parent / "report.css"


@dataclass(frozen=True)
class _Ranked:
    """The nearest images of each query.

    Attributes:
        queries: (Q,) rows of the queries in the evaluation's images.
        rows: (Q, K) rows of their neighbors, nearest first.
        far: (Q, K) distances.
        right: (Q, K) whether a neighbor is of the query's class.
    """

    queries: np.ndarray
    rows: np.ndarray
    far: np.ndarray
    right: np.ndarray


def write_report(model: Model, images: RankedImages, head: str, result: dict[str, Any], file: Path) -> None:
    """Writes the report of an evaluation.

    Args:
        model: The run.
        images: The images that were ranked, with their vectors by `head`.
        head: TRAINED or GENERAL.
        result: The figures of `dr_keras.evaluation.evaluate.evaluate_run`.
        file: The HTML file to write.

    Raises:
        InputError: The file cannot be written.
    """
    ranked = _rank(images)
    page = _Report(model, images, head, result, ranked)
    try:
        with new_file(file) as temporary:
            temporary.write_text(page.html(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"the report {file} cannot be written: {error.strerror or error}") from error


def check_report(file: Path) -> None:
    """Checks that a report can be written.

    Args:
        file: The file.

    Raises:
        InputError: Its folder is not one, or cannot be written to.
    """
    folder = file.absolute().parent
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise InputError(f"the report {file} cannot be written: {folder} is not a folder that can be written to")


def _rank(images: RankedImages) -> _Ranked:
    queries, gallery = np.flatnonzero(images.held), np.flatnonzero(images.gallery)
    # Like the figures, without queries that have no right answer.
    counts = np.bincount(images.labels[gallery], minlength=len(images.classes))
    queries = queries[counts[images.labels[queries]] > images.among_themselves]
    own = np.searchsorted(gallery, queries) if images.among_themselves else None
    vectors = np.asarray(images.vectors[gallery])
    places = nearest_others(images.vectors[queries], vectors, SHOWN, own)
    far = distances(images.vectors[queries], vectors, places)
    rows = gallery[places]
    return _Ranked(queries, rows, far, images.labels[rows] == images.labels[queries][:, None])


class _Report:
    """The parts of the page, each as HTML."""

    def __init__(self, model: Model, images: RankedImages, head: str, result: dict[str, Any], ranked: _Ranked) -> None:
        self._model, self._images, self._head, self._result, self._ranked = model, images, head, result, ranked
        self._pictures: dict[int, str] = {}

    def html(self) -> str:
        """The whole page."""
        name = escape(self._model.run.path.name)
        result = self._result
        parts = [
            f"<h1>{name}</h1>",
            f"<p>{result['queries']:,} queries against {result['gallery']:,} images, by the {self._head} head.</p>",
            _section("Figures", self._figures()),
            _section("Curves", self._curves()),
            _section("Mistaken for each other", self._confusions()),
            _section("Worst queries", self._rows(self._order(1)[:QUERIES])),
            _section("Best queries", self._rows(self._order(-1)[:QUERIES])),
            _section("Classes", self._classes()),
        ]
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name}</title>\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
            + "\n".join(parts)
            + "\n</body>\n</html>\n"
        )

    def _figures(self) -> str:
        rankers = {"this run": self._result, **self._result.get("search_options", {})}
        rankers |= self._result.get("baselines", {})
        names = [name for name in self._result["intervals"] if self._result.get(name) is not None]
        head = "".join(f"<th scope=col>{escape(name)}</th>" for name in rankers)
        rows = []
        for name in names:
            cells = "".join(_cell(found, name) for found in rankers.values())
            rows.append(f"<tr><th scope=row>{escape(name.replace('_', ' '))}</th>{cells}</tr>")
        note = "<p class=note>95 % bootstrap intervals over the queries.</p>"
        return f"<div class=wide><table><tr><th></th>{head}</tr>{''.join(rows)}</table></div>{note}"

    def _curves(self) -> str:
        right, far = self._ranked.right, self._ranked.far
        ranks = np.arange(1, right.shape[1] + 1)
        precision = (np.cumsum(right, axis=1) / ranks).mean(axis=0)
        recall = np.maximum.accumulate(right, axis=1).mean(axis=0)
        order = np.argsort(far, axis=None)
        share = np.cumsum(right.ravel()[order]) / np.arange(1, right.size + 1)
        points = np.linspace(0, right.size - 1, 200).astype(int)
        charts = [
            line_chart(
                "The first k neighbors",
                "k",
                [Curve("precision@k", ranks, precision), Curve("recall@k", ranks, recall)],
            ),
            line_chart(
                f"Neighbors within a distance, of the {right.shape[1]} nearest",
                "distance",
                [Curve("precision", far.ravel()[order][points], share[points])],
            ),
        ]
        triplets = self._triplets()
        if triplets is not None:
            charts.append(triplets)
        return f"<div class=charts>{''.join(charts)}</div>"

    def _triplets(self) -> str | None:
        """Distances of random pairs of one class and of two; None if the gallery has one class."""
        images, queries = self._images, self._ranked.queries
        gallery = np.flatnonzero(images.gallery)
        known = np.isin(images.labels[queries], images.labels[gallery])
        if images.among_themselves:  # a query is not its own neighbor
            known &= np.bincount(images.labels[gallery])[images.labels[queries]] > 1
        rows = queries[known]
        if not len(rows):
            return None
        own = np.searchsorted(gallery, rows) if images.among_themselves else None
        vectors = np.asarray(images.vectors[gallery])
        found = ranked_triplets(
            images.vectors[rows], images.labels[rows], vectors, images.labels[gallery], seed=0, own=own
        )
        if not len(found):
            return None
        edges = np.linspace(0, max(float(found.near.max()), float(found.far.max()), 1e-6), BINS + 1)
        curves = []
        for name, values in (("same class", found.near), ("other classes", found.far)):
            heights = np.histogram(values, edges)[0] / values.size
            curves.append(Curve(name, (edges[1:] + edges[:-1]) / 2, heights))
        return line_chart("Distances of random pairs", "distance", curves, percent=True)

    def _order(self, direction: int) -> np.ndarray:
        """The queries by precision, from the worst (1) or the best (-1); of equal ones, by the nearest neighbor."""
        return np.lexsort((self._ranked.far[:, 0], direction * self._ranked.right.mean(axis=1)))

    def _rows(self, queries: Iterable[int]) -> str:
        return "".join(self._query_row(int(query)) for query in queries)

    def _query_row(self, query: int) -> str:
        ranked = self._ranked
        row, rows = int(ranked.queries[query]), ranked.rows[query][:NEIGHBORS]
        tiles = [self._tile(row, self._name(row), "query")]
        for place, neighbor in enumerate(rows.tolist()):
            right = bool(ranked.right[query, place])
            text = f"{ranked.far[query, place]:.3f} {'✓' if right else '✗'}"
            tiles.append(self._tile(neighbor, self._name(neighbor), "same" if right else "other", text))
        why = self._why(row, int(rows[0]))
        precision = ranked.right[query].mean()
        return (
            f"<h3>{escape(self._name(row))}, precision {precision:.2f}</h3><div class=tiles>{''.join(tiles)}{why}</div>"
        )

    def _why(self, query: int, neighbor: int) -> str:
        """The query and its first neighbor, bright where they are alike."""
        config = self._model.config
        try:
            one, other = (
                decode(self._images.paths[row], config.image_size, config.resize) for row in (query, neighbor)
            )
            found = self._model.explain_pixels(one, other, self._head)
        except (ImageError, RunError):
            return ""
        shown = []
        for row, values in ((query, found.query_map), (neighbor, found.neighbor_map)):
            picture = decode(self._images.paths[row], 2 * SIDE, config.resize)
            shown.append(_tile_html(_encoded(Image.fromarray(lit(picture, values))), "", "why", "where alike"))
        return "<span class=gap></span>" + "".join(shown)

    def _confusions(self) -> str:
        """For each confused pair of classes, the query that is nearest to an image of the other class."""
        images, ranked = self._images, self._ranked
        confusion = np.zeros((len(images.classes), len(images.classes)))
        np.add.at(confusion, (images.labels[ranked.queries][:, None], images.labels[ranked.rows]), 1)
        confusion /= np.maximum(confusion.sum(axis=1, keepdims=True), 1)
        np.fill_diagonal(confusion, 0)
        parts = []
        for flat in np.argsort(-confusion, axis=None, kind="stable")[:PAIRS].tolist():
            of, to = divmod(flat, len(images.classes))
            hit = (images.labels[ranked.queries] == of)[:, None] & (images.labels[ranked.rows] == to)
            if not hit.any():
                continue
            query, place = np.unravel_index(np.where(hit, ranked.far, np.inf).argmin(), hit.shape)
            row, neighbor = int(ranked.queries[query]), int(ranked.rows[query, place])
            tiles = self._tile(row, images.class_names[of], "query")
            tiles += self._tile(neighbor, images.class_names[to], "other", f"{ranked.far[query, place]:.3f}")
            caption = f"<figcaption>{confusion[of, to]:.1%} of the neighbors</figcaption>"
            parts.append(f"<figure><div class=tiles>{tiles}</div>{caption}</figure>")
        return f"<div class=pairs>{''.join(parts)}</div>" if parts else "<p>No class is mistaken for another.</p>"

    def _classes(self) -> str:
        counts = np.bincount(self._images.labels[self._ranked.queries], minlength=len(self._images.classes))
        number = {label: place for place, label in enumerate(self._images.classes)}
        rows = [
            f"<tr><th scope=row>{escape(row['class_name'])}</th><td>{counts[number[row['class']]]:,}</td>"
            f"<td>{row['precision@30']:.3f}</td><td>{bars(row['precision@30'])}</td></tr>"
            for row in self._result["classes"]
        ]
        titles = ("class", "queries", f"precision@{max(KS)}", "")
        head = "<tr>" + "".join(f"<th scope=col>{title}</th>" for title in titles) + "</tr>"
        return f"<table class=classes>{head}{''.join(rows)}</table>"

    def _name(self, row: int) -> str:
        return self._images.class_names[self._images.labels[row]]

    def _tile(self, row: int, name: str, kind: str, text: str = "") -> str:
        if row not in self._pictures:
            picture = open_or_missing(Path(self._images.paths[row]), 2 * SIDE)
            self._pictures[row] = _encoded(square_thumbnail(picture, 2 * SIDE, TILE_PAPER))
        return _tile_html(self._pictures[row], name, kind, text or kind)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _cell(found: dict[str, Any], name: str) -> str:
    value = found.get(name)
    if value is None:
        return "<td>-</td>"
    low, high = found["intervals"][name]
    if isinstance(value, int):
        return f"<td>{value:,}<small>{low:,.0f} to {high:,.0f}</small></td>"
    return f"<td>{value:.4f}<small>{low:.4f} to {high:.4f}</small></td>"


def _tile_html(picture: str, name: str, kind: str, text: str) -> str:
    alt = escape(f"{name} {text}".strip(), quote=True)
    return (
        f'<figure class="tile {kind}"><img src="{picture}" alt="{alt}" width={SIDE} height={SIDE}>'
        f"<figcaption>{escape(name)}<small>{escape(text)}</small></figcaption></figure>"
    )


def _encoded(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
