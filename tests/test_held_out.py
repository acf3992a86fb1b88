"""Classes of two pictures: whole classes are monitored and held out, and ranked among themselves."""

import json

import numpy as np
import pytest
from conftest import script, write_folders
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_keras.data import held_out
from dr_keras.data.catalog import load_catalog
from dr_keras.data.pixel_store import load_pixels
from dr_keras.data.splits import MONITOR, TRAIN, VALIDATION
from dr_keras.evaluation.evaluate import CALIBRATION_K, SearchOptions, _calibrate, _ranked, _with_options
from dr_keras.evaluation.metrics import evaluate, nearest_others
from dr_keras.evaluation.query_expansion import average_gallery, average_without, expand_queries, unit_length
from dr_keras.evaluation.ranked_images import RankedImages
from dr_keras.evaluation.triplet_metrics import moved_gallery, ranked_triplets
from dr_keras.index.index import Index
from dr_keras.runs import Run


def split(sizes, monitor=0.01, validation=0.1, seed=0, monitored=frozenset()):
    train = {f"c{n:05}": [f"c{n:05}/{i}" for i in range(size)] for n, size in enumerate(sizes)}
    return held_out.split(train, monitored, {MONITOR: monitor, VALIDATION: validation}, seed)


def whole(splits, number):
    """The classes in a split; each must be in it with all its images."""
    found = {name for name, own in splits.items() if (own == number).any()}
    assert all((splits[name] == number).all() for name in found)
    return found


def test_five_thousand_classes_of_two():
    splits = split([2] * 5000)
    assert len(whole(splits, MONITOR)) == 50
    assert len(whole(splits, VALIDATION)) == 500
    assert len(whole(splits, TRAIN)) == 4450


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=60),
    st.sampled_from([0.0, 0.01, 0.3, 0.9]),
    st.sampled_from([0.0, 0.1, 0.5, 0.95]),
    st.integers(0, 3),
)
def test_whole_classes_leave_half_of_the_pairs(sizes, monitor, validation, seed):
    splits = split(sizes, monitor, validation, seed)
    pairs = {name for name, own in splits.items() if len(own) > 1}
    one_share = bool(monitor) != bool(validation)  # then classes of three are large enough
    if len(pairs) < 10 or not (monitor or validation) or (one_share and max(sizes) > 2):
        assert all((own == TRAIN).sum() >= min(2, len(own)) for own in splits.values())  # like any other dataset
        return
    watched, held = whole(splits, MONITOR), whole(splits, VALIDATION)
    assert watched | held <= pairs
    assert len(watched) >= (2 if monitor else 0)
    assert len(held) >= (2 if validation else 0)
    assert len(pairs - watched - held) >= max(2, len(pairs) / 2)


def test_a_class_mostly_keeps_its_split_when_another_comes():
    before, after = split([2] * 200), split([2] * 201)
    moved = sum((before[name] != after[name]).any() for name in before)
    assert moved <= 2
    other = split([2] * 200, seed=1)
    assert whole(other, VALIDATION) != whole(before, VALIDATION)
    assert whole(split([2] * 200, monitor=0.2), VALIDATION) == whole(before, VALIDATION)


def test_classes_that_can_be_split_are_split_as_ever():
    splits = split([100, 100], 0.05, 0.2)
    assert [np.bincount(own, minlength=3).tolist() for own in splits.values()] == [[76, 4, 20]] * 2
    splits = split([10, *[2] * 40])  # one such class is enough
    assert all((own == TRAIN).all() for name, own in splits.items() if name != "c00000")


def test_splits_given_by_the_dataset_are_kept():
    given_images = {"c00000/0", "c00001/1"}
    splits = split([2] * 40, monitored=given_images)
    assert splits["c00000"].tolist() == [MONITOR, TRAIN]
    assert splits["c00001"].tolist() == [TRAIN, MONITOR]
    assert len(whole({name: own for name, own in splits.items() if name > "c00001"}, VALIDATION)) == 4


def counts(splits):
    return list(splits), np.stack([np.bincount(own, minlength=3) for own in splits.values()])


def test_notes_say_what_was_done_and_are_short():
    notes = held_out.notes(*counts(split([1] * 1000 + [2] * 500)))
    assert len(notes) == 2
    assert "whole classes are set aside: 5 for monitor and 50 for validation" in notes[0]
    assert notes[1].endswith("c00000, c00001, c00002, c00003, c00004 and 995 more")
    notes = held_out.notes(*counts(split([2] * 9)))
    assert [note.partition(":")[0] for note in notes] == [
        "there are no monitor images, so --early-stopping has no effect",
        "no image is held out, so dr-keras evaluate has no queries",
    ]
    assert "there must be 10 with two images" in notes[0]
    assert not held_out.notes(*counts(split([100, 100], 0.05, 0.2)))


# Each metric against a plain loop that removes the query from the gallery.


def people(seed=0, classes=12, length=6):
    """Unit vectors (24, D) and labels: pairs, one class of three, one with a single image."""
    random = np.random.default_rng(seed)
    labels = np.sort(np.concatenate([np.arange(classes - 1), np.arange(classes), [0]]))
    centers = random.standard_normal((classes, length))
    return unit_length(centers[labels] + 0.8 * random.standard_normal((len(labels), length))), labels


def one_at_a_time(queries, gallery_of, labels):
    """The definitions, one query at a time; `gallery_of(i)` is the gallery of query i, including the query."""
    rows = []
    for i, query in enumerate(queries):
        others = np.delete(gallery_of(i), i, axis=0)
        its = np.delete(labels, i)
        order = np.argsort(np.linalg.norm(others - query, axis=1), kind="stable")
        right = its[order] == labels[i]
        relevant = int((its == labels[i]).sum())
        if not relevant:
            continue
        row = {f"precision@{k}": right[:k].mean() for k in (1, 10, 30)}
        row |= {f"recall@{k}": float(right[:k].any()) for k in (1, 10, 30)}
        row["map@r"] = sum(right[: place + 1].mean() for place in range(relevant) if right[place]) / relevant
        rows.append(row)
    return {name: np.mean([row[name] for row in rows]) for name in rows[0]} | {"queries": len(rows)}


@pytest.mark.parametrize("seed", range(3))
def test_leaving_one_out_equals_the_plain_loop(seed):
    vectors, labels = people(seed)
    vectors[3] = vectors[4]  # a copy of a query must not be mistaken for it
    figures = evaluate(vectors, labels, vectors, labels, class_count=12, leave_one_out=True).figures
    for name, expected in one_at_a_time(vectors, lambda _: vectors, labels).items():
        assert figures[name] == pytest.approx(expected), name
    assert figures["queries_without_positive"] == 1
    assert figures["gallery"] == len(labels) - 1
    assert figures["leave_one_out"] is True


def test_the_triplets_of_leaving_one_out_never_hold_the_query_itself():
    vectors, labels = people()
    own = np.flatnonzero(np.bincount(labels)[labels] > 1)
    triplets = ranked_triplets(vectors[own], labels[own], vectors, labels, seed=1, own=own)
    near, far = triplets.near, triplets.far
    for row, query in enumerate(own):
        distances = np.linalg.norm(vectors - vectors[query], axis=1)
        same = labels == labels[query]
        positives, negatives = distances[same & (np.arange(len(labels)) != query)], distances[~same]
        assert all(np.isclose(positives, d, atol=1e-6).any() for d in near[row])
        assert all(np.isclose(negatives, d, atol=1e-6).any() for d in far[row])
        assert len(set(near[row].round(5))) == len(positives)  # ten draws from at most two
    figures = evaluate(vectors, labels, vectors, labels, class_count=12, seed=1, leave_one_out=True).figures
    assert figures["similarity_precision"] == pytest.approx((near < far).mean())


def few_shot_images(seed=0):
    """Twelve held-out classes, two monitored ones, and training images."""
    vectors, labels = people(seed)
    random = np.random.default_rng(seed)
    more = unit_length(random.standard_normal((20, 6)))
    more_labels = np.repeat(np.arange(12, 17), 4)
    everything = np.concatenate([more, vectors])
    return RankedImages(
        vectors=everything,
        labels=np.concatenate([more_labels, labels]),
        monitor=np.arange(len(everything)) < 8,
        held=np.arange(len(everything)) >= 20,
        apart=np.zeros(len(everything), bool),
        classes=tuple(map(str, range(17))),
        class_names=tuple(map(str, range(17))),
        paths=[],
    )


class _Mirror:
    """A model with different vectors for mirror images."""

    def vectors(self, pixels, _head):
        return unit_length(np.random.default_rng(5).standard_normal((len(pixels), 6)))


@pytest.mark.parametrize("seed", range(2))
def test_search_options_leave_the_query_out_of_everything(seed):
    images = few_shot_images(seed)
    assert images.among_themselves
    options = SearchOptions(flip_average=True, query_expansion=3, gallery_average=2)
    pixels = np.zeros((len(images.vectors), 4, 4, 3), np.uint8)
    flipped = unit_length(images.vectors + _Mirror().vectors(pixels, "trained"))[images.held]
    vectors, labels = images.vectors[images.held], images.labels[images.held]

    def averaged(of):
        """The gallery of query i, averaged without it; row i is never used."""

        def gallery(i):
            kept = average_gallery(np.delete(of, i, axis=0), 2)
            return np.insert(kept, i, 0, axis=0)

        return gallery

    def expanded(of, gallery_of):
        rows = range(len(of))
        return np.stack([expand_queries(of[[i]], np.delete(gallery_of(i), i, axis=0), 3)[0] for i in rows])

    expected = {
        "flip average": (flipped, lambda _: flipped),
        "gallery average 2": (vectors, averaged(vectors)),
        "query expansion 3": (expanded(vectors, lambda _: vectors), lambda _: vectors),
        "together": (expanded(flipped, averaged(flipped)), averaged(flipped)),
    }
    found = {name: rest for name, *rest in _with_options(_Mirror(), images, pixels, options, "trained", _Quiet())}
    assert found.keys() == expected.keys()
    for name, (queries, gallery, moved) in found.items():
        figures = _ranked(images, queries, gallery, 0, moved).figures
        for figure, value in one_at_a_time(*expected[name], labels).items():
            assert figures[figure] == pytest.approx(value), (name, figure)
        if moved:
            triplets = ranked_triplets(queries[:2], labels[:2], gallery, labels, seed=0, own=np.arange(2), moved=moved)
            there = averaged(vectors if name != "together" else flipped)(0)
            distances = np.linalg.norm(there - queries[0], axis=1)
            assert all(np.isclose(distances[1:], d, atol=1e-5).any() for d in (*triplets.near[0], *triplets.far[0]))


class _Quiet:
    def print(self, *_args, **_options): ...


def test_a_gallery_averaged_without_one_equals_the_plain_loop():
    vectors, _ = people(3)
    whole_gallery, moved = average_gallery(vectors, 4), average_without(vectors, 4)
    for row in range(len(vectors)):
        there = np.delete(moved_gallery(whole_gallery, row, moved), row, axis=0)
        np.testing.assert_allclose(there, average_gallery(np.delete(vectors, row, axis=0), 4), atol=1e-5)
    assert average_without(vectors[:3], 30)(0)[1].shape == (2, 6)  # more neighbors than images


def test_calibration_on_whole_classes_equals_the_plain_loop():
    images = few_shot_images()
    found = _calibrate(images, 0.3)

    def neighbors(chosen):
        vectors, labels = images.vectors[chosen], images.labels[chosen]
        pairs = []
        for i, vector in enumerate(vectors):
            far = np.linalg.norm(np.delete(vectors, i, axis=0) - vector, axis=1)
            right = np.delete(labels, i) == labels[i]
            order = np.argsort(far, kind="stable")[:CALIBRATION_K]
            pairs += list(zip(far[order], right[order], strict=True))
        return np.array(pairs)

    watched, held = neighbors(images.monitor), neighbors(images.held)
    within = watched[:, 0] <= found["max_distance"] + 1e-6
    assert found["precision"] == pytest.approx(watched[within, 1].mean())
    assert found["precision"] >= 0.3
    within = held[:, 0] <= found["max_distance"] + 1e-6
    assert found["held_out"]["precision"] == pytest.approx(held[within, 1].sum() / max(within.sum(), 1))


def test_neighbors_without_the_query_itself():
    gallery = np.array([[0.0], [0.0], [1.0], [5.0]], np.float32)
    rows = nearest_others(gallery, gallery, 2, np.arange(4))
    assert [sorted(row) for row in rows[:3].tolist()] == [[1, 2], [0, 2], [0, 1]]
    assert rows[3, 0] == 2
    assert rows[3, 1] in (0, 1)


@pytest.mark.nightly
@pytest.mark.usefixtures("export_here", "eagerly")
def test_few_shot_data_end_to_end(tmp_path):
    """Trained, monitored, stopped early, evaluated; the metrics match those of the index's own vectors."""
    data = write_folders(tmp_path / "data", each=2, classes=("bars", "disc", "plain", "rings"))
    for number in range(20):
        write_folders(data / "more", each=2, seed=number, classes=("disc",))
        (data / "more" / "disc").rename(data / f"person{number:02}")
    (data / "more").rmdir()
    _, _, report = load_pixels(load_catalog(data, monitor=0.1, validation=0.2, seed=0), 16)
    assert report["splits"] == {"train": 34, "monitor": 4, "validation": 10}
    result = script(
        tmp_path,
        "train.py",
        *("--data", data, "--run", "few", "--image-size", 16, "--backbone", "resnet10", "--width", 4),
        *("--embedding-dim", 8, "--epochs", 9, "--pretrain-epochs", 0, "--steps-per-epoch", 1, "--batch-size", 8),
        *("--shift", 1, "--monitor", 0.1, "--validation", 0.2, "--early-stopping", 1, "--learning-rate", 1e-9),
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("whole classes are set aside: 2 for monitor and 5 for validation") == 1
    assert "monitor map@r" in result.stderr
    run = Run(tmp_path / "runs" / "few")
    assert json.loads(run.metrics_file.read_text())["steps"] < 9  # nothing improves at such a learning rate
    evaluated = script(tmp_path, "evaluate.py", "--run", "few", "--json", "--query-expansion", 1)
    assert evaluated.returncode == 0, evaluated.stderr
    figures = json.loads(evaluated.stdout)
    with Index.open(run.index) as index:
        entries = [(row, label) for row, _, label, split in index.records.listing() if split == "validation"]
        vectors = np.array(index.vectors)[[row for row, _ in entries]]
    labels = np.unique([label for _, label in entries], return_inverse=True)[1]
    for ranked in (figures, figures["baselines"]["pixels"], figures["search_options"]["query expansion 1"]):
        assert ranked["queries"] == 10
        assert ranked["gallery"] == 9
    for name, expected in one_at_a_time(vectors, lambda _: vectors, labels).items():
        assert figures[name] == pytest.approx(expected), name
