from dataclasses import replace

import numpy as np
import pytest

from dr_keras.config import Config
from dr_keras.data.augment_pillow import gather
from dr_keras.data.augmentation_draws import Augmentation
from dr_keras.data.batches import BRANCHES, BatchSequence, Share, TripletSource, dataset
from dr_keras.data.samplers import TripletSampler
from dr_keras.training.phases import SOFTMAX
from dr_keras.training.sources import training_sources

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 9, 12, 3), dtype=np.uint8)


def source(**how):
    rows = np.arange(5, 25)
    return TripletSource(PIXELS, rows, TripletSampler(rows % 4, 6, seed=2), Augmentation(**how))


def slow_gather(pixels, rows, *, flip, shift, seed):
    """The plain loop: each pixel comes from the shifted and possibly mirrored position, clipped to the image."""
    random = np.random.default_rng(seed)
    down, right = random.integers(-shift, shift + 1, (2, len(rows), 1))
    mirrored = random.random((len(rows), 1)) < 0.5
    height, width = pixels.shape[1:3]
    out = np.empty((len(rows), height, width, 3), np.uint8)
    for number, row in enumerate(rows):
        for y in range(height):
            for x in range(width):
                across = width - 1 - x if flip and mirrored[number, 0] else x
                from_y = min(max(y + down[number, 0], 0), height - 1)
                from_x = min(max(across + right[number, 0], 0), width - 1)
                out[number, y, x] = pixels[row, from_y, from_x]
    return out


@pytest.mark.parametrize(("flip", "shift"), [(True, 0), (False, 3), (True, 3), (True, 8)])
def test_augmentation_equals_the_plain_loop(flip, shift):
    rows = np.array([3, 3, 0, 29, 7, 11, 2, 5])
    for step in range(3):
        fast = gather(PIXELS, rows, flip=flip, shift=shift, seed=(1, step))
        assert np.array_equal(fast, slow_gather(PIXELS, rows, flip=flip, shift=shift, seed=(1, step)))


def test_augmentation_is_per_image_and_seeded():
    rows = np.zeros(16, int)
    one = gather(PIXELS, rows, flip=True, shift=2, seed=(0, 1))
    assert len({image.tobytes() for image in one}) > 4
    assert np.array_equal(one, gather(PIXELS, rows, flip=True, shift=2, seed=(0, 1)))
    assert not np.array_equal(one, gather(PIXELS, rows, flip=True, shift=2, seed=(0, 2)))


def test_without_augmentation_pixels_are_untouched():
    assert np.array_equal(gather(PIXELS, np.array([4, 1])), PIXELS[[4, 1]])


def test_a_sequence_is_in_order_whatever_was_looked_at_before():
    made = source(flip=True)
    sequence = BatchSequence(made, 3, 9)
    assert sequence.num_batches == 6
    for _ in range(2):
        sequence[0]
        sequence.on_epoch_end()
        for number in range(6):
            assert np.array_equal(sequence[number]["query"], made.batch(3 + number)["query"])
        sequence.on_epoch_end()


def test_an_error_in_a_batch_is_raised_where_the_batch_is_requested():
    class Broken:
        def batch(self, step):
            if step == 2:
                raise RuntimeError("step 2")
            return {}

    sequence = BatchSequence(Broken(), 0, 5)
    assert sequence[0] == sequence[1] == {}
    with pytest.raises(RuntimeError, match="step 2"):
        sequence[2]
    sequence.on_epoch_end()


def test_batches_hold_the_samplers_images_with_their_classes():
    plain = source()
    batch, triplets = plain.batch(2), plain.sampler.batch(2)
    assert np.array_equal(batch["query"], PIXELS[plain.rows[triplets.query]])
    assert np.array_equal(batch["positive"], PIXELS[plain.rows[triplets.positive]])
    assert np.array_equal(batch["negative"], PIXELS[plain.rows[triplets.negative]])
    assert batch["classes"].dtype == np.int32
    assert batch["classes"].shape == (6, 2)


def test_only_training_images_are_in_batches():
    numbered = np.broadcast_to(np.arange(30, dtype=np.uint8)[:, None, None, None], PIXELS.shape).copy()
    rows = np.array([1, 4, 8, 9, 15, 22, 29])
    plain = TripletSource(numbered, rows, TripletSampler(np.arange(7) % 2, 3, seed=0))
    seen = {int(image[0, 0, 0]) for step in range(50) for name in BRANCHES for image in plain.batch(step)[name]}
    assert seen == set(rows.tolist())


def test_branches_are_augmented_apart():
    same = TripletSource(
        np.repeat(PIXELS[:1], 8, axis=0), np.arange(8), TripletSampler(np.arange(8) % 2, 64, 0), Augmentation(shift=4)
    )
    batch = same.batch(0)
    assert not np.array_equal(batch["query"], batch["positive"])


def test_strong_augmentation_begins_after_its_share_of_all_steps():
    config = Config(batch_size=2, epochs=6, pretrain_epochs=5, operations=2, erase=1.0, cutmix=0.5, strong_after=0.5)
    rows = np.arange(24)  # 4 steps in an epoch of softmax and 12 in one of triplets, 32 in all

    def batches(**changes):
        source = training_sources(replace(config, **changes), PIXELS, rows, rows % 4, Share())[SOFTMAX]
        source = replace(source, begin=3)
        return [source.batch(step) for step in range(3, 23)]

    delayed, always = batches(), batches(strong_after=0.0)
    plain = batches(operations=0, erase=0.0, cutmix=0.0, strong_after=0.0)
    for number, (found, strong, weak) in enumerate(zip(delayed, always, plain, strict=True)):
        expected = weak if number < 16 else strong
        assert all(np.array_equal(found[name], expected[name]) for name in found)
        assert not np.array_equal(strong["image"], weak["image"])
        assert np.array_equal(found["label"], strong["label"])


def test_the_dataset_yields_the_source_from_any_step():
    augmented = source(flip=True, shift=2)
    batches = list(dataset(augmented, 4, 9))
    assert len(batches) == 5
    for step, batch in enumerate(batches, start=4):
        assert isinstance(batch, dict)
        assert list(batch) == ["query", "positive", "negative", "classes"]
        for name, expected in augmented.batch(step).items():
            assert batch[name].dtype.name == expected.dtype.name
            assert batch[name].shape == expected.shape
            assert np.array_equal(batch[name].numpy(), expected)
