"""Stages and image sizes in global steps, and weight averaging."""

import keras
import numpy as np
import pytest

from dr_keras.config import Config
from dr_keras.errors import InputError
from dr_keras.training.phases import SOFTMAX, TRIPLETS, Phase, phases
from dr_keras.training.weight_average import UPDATE_STEPS, WeightAverage

STEPS = {SOFTMAX: 10, TRIPLETS: 30}


def course_of(config):
    return phases(config, config.sizes, STEPS)


def test_stages_follow_each_other():
    course = course_of(Config(epochs=5, pretrain_epochs=3, progressive="none"))
    assert course == (Phase(SOFTMAX, 64, 0, 3, 0, 10), Phase(TRIPLETS, 64, 3, 5, 30, 30))
    assert course[0].last_step == course[1].first_step
    assert course[-1].last_step == 90


@pytest.mark.parametrize(("epochs", "expected"), [(1, 0), (2, 1), (5, 4), (30, 24)])
def test_four_of_five_epochs_are_softmax_by_default(epochs, expected):
    assert Config(epochs=epochs).softmax_epochs == expected
    assert Config.preset("assignment", epochs=epochs).softmax_epochs == 0


def test_sizes_rise_with_the_share_of_steps():
    config = Config(epochs=10, pretrain_epochs=7, progressive="32:0.25,48:0.25")
    course = course_of(config)  # 70 + 90 steps: 48 px from 40, 64 px from 80 on
    assert [(phase.stage, phase.size, phase.first_step, phase.last_step) for phase in course] == [
        (SOFTMAX, 32, 0, 40),
        (SOFTMAX, 48, 40, 70),
        (TRIPLETS, 48, 70, 100),
        (TRIPLETS, 64, 100, 160),
    ]
    assert [phase.first_epoch for phase in course[1:]] == [phase.last_epoch for phase in course[:-1]]


@pytest.mark.parametrize("epochs", [*range(1, 8), 30])
def test_every_run_ends_at_the_full_size(epochs):
    assert course_of(Config(epochs=epochs))[-1].size == 64


def test_steps_per_epoch_can_be_set():
    assert course_of(Config(epochs=2, pretrain_epochs=1, steps_per_epoch=4))[-1].last_step == 8


@pytest.mark.parametrize("progressive", ["32", "32:x", "64:0.5", "48:0.3,32:0.3", "32:1.0", "32:0", "8:0.5"])
def test_a_progression_that_makes_no_sense_is_refused(progressive):
    with pytest.raises(InputError, match="--progressive"):
        Config(progressive=progressive)


def test_automatic_sizes_are_for_our_resnets_from_64_px_on():
    assert [size for size, _ in Config().sizes] == [32, 48, 64]
    assert [size for size, _ in Config(image_size=128).sizes] == [64, 96, 128]
    for other in ({"image_size": 48, "shift": 2}, {"backbone": "alexnet"}, {"backbone": "EfficientNetB0"}):
        assert len(Config(**other).sizes) == 1
    assert sum(share for _, share in Config().sizes) == pytest.approx(1)


def test_alexnet_has_no_progression():
    with pytest.raises(InputError, match="alexnet"):
        Config(backbone="alexnet", progressive="32:0.5")


class Numbers:
    """A model whose only weight is the current step."""

    def __init__(self):
        self.value = 0.0

    def get_layer(self, name):
        assert name == "embedding_network"
        return self

    @property
    def weights(self):
        return [keras.Variable(np.array([self.value], np.float32)), keras.Variable(int(self.value), dtype="int32")]


def averaged(average, steps):
    model = Numbers()
    average._model = model
    for step in steps:
        model.value = float(step)
        average.on_train_batch_end(0)
    return average.values


def test_average_equals_the_plain_recursion_and_goes_on_where_it_stopped(monkeypatch):
    monkeypatch.setattr(keras.callbacks.Callback, "model", property(lambda self: self._model))
    whole = averaged(WeightAverage(0.9), range(200))
    expected = 0.0
    for step in range(UPDATE_STEPS, 201, UPDATE_STEPS):
        decay = min(0.9, step / (step + 10 * UPDATE_STEPS)) ** UPDATE_STEPS
        expected = decay * expected + (1 - decay) * (step - 1)
    assert whole[0][0] == pytest.approx(expected, rel=1e-5)
    assert whole[1] == 191  # integers are not averaged
    broken = WeightAverage(0.9)
    averaged(broken, range(77))
    resumed = averaged(WeightAverage(0.9, 77, broken.values), range(77, 200))
    assert resumed[0][0] == whole[0][0]
