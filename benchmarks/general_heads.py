#!/usr/bin/env python3
"""Which vectors find images of classes that were not trained on? Ranks by several heads of one network.

    python benchmarks/unseen_classes.py --data tiny-imagenet-200 --run unseen --preset tiny-imagenet-cpu --epochs 5
    python benchmarks/general_heads.py --data tiny-imagenet-200 --run unseen

Each head is fitted on up to 16,384 images of the classes that `unseen_classes.py` trains on, and judged on the 50 that
it holds out: 50 images of each are queries, ranked against the rest. Heads were chosen by the first, third, ... of
these classes (column A); the others are column B.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import machine

from dr_keras.backend import import_framework
from dr_keras.data.decoding import decode_files
from dr_keras.data.folders import all_pictures
from dr_keras.heads import FIT_IMAGES, fit_general_head
from dr_keras.index.exact_search import nearest
from dr_keras.runs import open_run

QUERIES = 50  # of each class
SHRINKAGES = (0.03, 0.1, 0.3)
EMBEDDING, CONVNET, LOW = "embedding", "convnet_normalised", "low_resolution_normalised"
STAGE_3, STAGE_4 = "stage3_block2_relu", "stage4_block1_relu"
OUTPUTS = (EMBEDDING, CONVNET, LOW, STAGE_3, STAGE_4)

Vectors = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders, or one with them in train/")
    parser.add_argument("--hold-out", type=int, default=50)
    parser.add_argument("--run", default="unseen-classes", help="run of unseen_classes.py, of a resnet18")
    options = parser.parse_args()
    train = options.data / "train" if (options.data / "train").is_dir() else options.data
    classes = sorted(folder for folder in train.resolve().iterdir() if folder.is_dir())
    held = classes[:: max(2, len(classes) // options.hold_out)][: options.hold_out]
    random = np.random.default_rng(0)
    files = all_pictures([folder for folder in classes if folder not in held])[0]
    chosen = [files[row] for row in np.sort(random.permutation(len(files))[:FIT_IMAGES])]
    searched = [all_pictures([folder])[0] for folder in held]
    labels = np.repeat(np.arange(len(held)), [len(of) for of in searched])
    fit = embedded(options.run, chosen)
    vectors = embedded(options.run, [file for of in searched for file in of])
    names = {folder.name: number for number, folder in enumerate(classes)}
    own = np.array([next(names[part] for part in Path(file).parts if part in names) for file in chosen])
    queries = np.concatenate([random.permutation(np.flatnonzero(labels == label))[:QUERIES] for label in set(labels)])
    is_query = np.isin(np.arange(len(labels)), queries)

    print(
        f"{machine()}; {len(chosen):,} images to fit on; {is_query.sum():,} queries, {(~is_query).sum():,} searched\n"
    )
    print("| searched by | numbers | precision@30 | precision@1 | A | B |\n|---|---|---|---|---|---|")
    for name, found in arms(fit, vectors, own):
        cells = [figures(found, labels, is_query, part) for part in (None, 0, 1)]
        row = [name, f"{found.shape[1]:,}", *(f"{value:.4f}" for value in (*cells[0], cells[1][0], cells[2][0]))]
        print("| " + " | ".join(row) + " |", flush=True)


def embedded(run: str, files: list[str]) -> Vectors:
    """The outputs of some layers for each file, pooled and of unit length."""
    import_framework()
    import keras

    from dr_keras.embedders import embed_with_network
    from dr_keras.model.released import run_network

    found = open_run(run)
    network, config = run_network(found), found.config()
    pixels, failures = decode_files(files, config.image_size, config.resize)
    if failures:
        raise SystemExit(f"{len(failures)} images cannot be read")
    layers = [network.get_layer(name).output for name in OUTPUTS]
    pooled = [x if len(x.shape) == 2 else keras.ops.mean(x, axis=(1, 2)) for x in layers]
    together = embed_with_network(keras.Model(network.input, keras.ops.concatenate(pooled, axis=-1)), pixels)
    ends = np.cumsum([x.shape[-1] for x in pooled])[:-1]
    return {name: unit(part) for name, part in zip(OUTPUTS, np.split(together, ends, axis=1), strict=True)}


def arms(fit: Vectors, vectors: Vectors, own: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Each head with its name, applied to `vectors`; `own` are the classes of the images in `fit`."""
    made = [("embedding", vectors[EMBEDDING]), ("features of the ConvNet path", vectors[CONVNET])]
    both = {CONVNET: 1.0, LOW: 1.0}
    made.append(("both paths", joined(vectors, both)))
    for title, parts in (
        ("both paths", both),
        ("both paths, low resolution halved", {CONVNET: 1.0, LOW: 0.5}),
        ("last two blocks", {STAGE_4: 1.0, CONVNET: 1.0}),
        ("last three stages' blocks", {STAGE_3: 1.0, STAGE_4: 1.0, CONVNET: 1.0}),
        ("embedding and ConvNet path", {EMBEDDING: 1.0, CONVNET: 1.0}),
        ("embedding and both paths, low resolution halved", {EMBEDDING: 1.0, CONVNET: 1.0, LOW: 0.5}),
    ):
        for whitening in (0.15, 0.2, 0.3, 0.5):
            head = fit_general_head(joined(fit, parts), whitening=whitening)
            made.append((f"PCA of {title}, whitening {whitening}", head(joined(vectors, parts))))
    for title, parts in (
        ("ConvNet path", {CONVNET: 1.0}),
        ("embedding and last two blocks", {EMBEDDING: 1.0, STAGE_4: 1.0, CONVNET: 1.0}),
    ):
        for shrinkage in SHRINKAGES:
            project = within_class(joined(fit, parts), own, shrinkage)
            made.append((f"LDA of {title}, shrinkage {shrinkage}", project(joined(vectors, parts))))
    return made


def within_class(features: np.ndarray, own: np.ndarray, shrinkage: float) -> Callable[[np.ndarray], np.ndarray]:
    """Whitens by the covariance within classes, shrunk toward a multiple of the identity; then a plain PCA."""
    mean = features.mean(axis=0)
    means = {label: features[own == label].mean(axis=0) for label in set(own.tolist())}
    inside = features - np.stack([means[label] for label in own.tolist()])
    covariance = (inside.T @ inside / len(inside)).astype(np.float64)
    scale = np.trace(covariance) / len(covariance)
    covariance = (1 - shrinkage) * covariance + shrinkage * scale * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance)
    whitening = ((vectors * values**-0.5) @ vectors.T).astype(np.float32)
    head = fit_general_head((features - mean) @ whitening, whitening=0)
    return lambda other: head((other - mean) @ whitening)


def joined(vectors: Vectors, parts: dict[str, float]) -> np.ndarray:
    """Several features side by side, each times its weight."""
    return np.concatenate([vectors[name] * weight for name, weight in parts.items()], axis=1)


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors, of unit length."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def figures(vectors: np.ndarray, labels: np.ndarray, is_query: np.ndarray, part: int | None) -> tuple[float, float]:
    """Precision@30 and precision@1, of all classes, or of every other one, from number `part` on."""
    seen = np.ones(len(labels), bool) if part is None else labels % 2 == part
    vectors = unit(vectors).astype(np.float32)
    rows = nearest(vectors[is_query & seen], vectors[~is_query & seen], 30)[0]
    right = labels[~is_query & seen][rows] == labels[is_query & seen][:, None]
    return float(right.mean()), float(right[:, 0].mean())


if __name__ == "__main__":
    main()
