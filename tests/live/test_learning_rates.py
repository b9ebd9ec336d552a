"""Learning rates: tensors of the backend by their formulas, and training."""

import itertools
import math

import keras
import models
import numpy
import pytest
from models import BATCH, compiled, data

from keras_wavg.learning_rates import (
    AnnealToConstant,
    CyclicLearningRate,
    TriangularLearningRate,
)

CYCLES = [CyclicLearningRate, TriangularLearningRate]
BACKEND = keras.config.backend()


def swa(i, high, low, cycle):
    """Izmailov et al., 2018, section 3.1, for the i-th step from 1."""
    t = ((i - 1) % cycle + 1) / cycle
    return (1 - t) * high + t * low


def fge(i, high, low, cycle):
    """Garipov et al., 2018, for the i-th step from 1."""
    t = ((i - 1) % cycle + 1) / cycle
    if t <= 1 / 2:
        return (1 - 2 * t) * high + 2 * t * low
    return (2 - 2 * t) * low + (2 * t - 1) * high


def swalr(step, before, rate, start, steps, anneal):
    """`torch.optim.swa_utils.SWALR` from step `start`, counted from 0."""
    if step < start:
        return before
    t = min((step - start) / steps, 1) if steps else 1
    alpha = t if anneal == "linear" else (1 - math.cos(math.pi * t)) / 2
    return rate * alpha + before * (1 - alpha)


DEFINITIONS = dict(zip(CYCLES, [swa, fge], strict=True))


def rates(schedule, steps):
    return numpy.array([float(schedule(step)) for step in steps])


def exactly(expected):
    """Equal but for the roundings of float32."""
    return pytest.approx(expected, rel=4e-7, abs=0)


@pytest.mark.parametrize("kind", CYCLES)
def test_cycles_have_the_rates_of_their_papers(kind):
    for high, low in ((0.05, 0.0005), (1, 1), (0.3, 0)):
        for cycle in (2, 4, 10):
            schedule, steps = kind(high, low, cycle), range(2 * cycle + 1)
            numpy.testing.assert_allclose(
                rates(schedule, steps),
                [DEFINITIONS[kind](n + 1, high, low, cycle) for n in steps],
                rtol=4e-7,
                atol=1e-8,
                err_msg=str((high, low, cycle)),
            )


@pytest.mark.parametrize("kind", CYCLES)
def test_the_lowest_rate_is_reached_exactly_and_once_a_cycle(kind):
    high, low = numpy.float32(0.1), numpy.float32(0.003)
    received = rates(kind(0.1, 0.003, 6), range(18)).reshape(3, 6)
    lowest = 5 if kind is CyclicLearningRate else 2
    assert (received == received[0]).all()
    assert (received[0] == low).nonzero()[0].tolist() == [lowest]
    assert (received[0, -1] == high) == (kind is TriangularLearningRate)


def test_a_cycle_of_one_step_is_a_constant_rate():
    schedule = CyclicLearningRate(0.1, 0.02, 1)
    assert rates(schedule, range(3)) == pytest.approx([0.02] * 3)


@pytest.mark.parametrize("kind", CYCLES)
def test_a_late_step_knows_its_place_in_the_cycle(kind):
    for step in (10**6 + 7, 10**7, 2**24 + 1, 2**31 - 2):
        expected = DEFINITIONS[kind](step + 1, 0.1, 0.0001, 998)
        schedule = kind(0.1, 0.0001, 998)
        assert float(schedule(step)) == exactly(expected), step
        tensor = keras.ops.convert_to_tensor(step, "int32")
        assert float(schedule(tensor)) == exactly(expected), step


@pytest.mark.parametrize("kind", CYCLES)
def test_cycles_begin_after_what_stands_before_them(kind):
    decay = keras.optimizers.schedules.CosineDecay(0.5, 5)
    schedule = kind(0.1, 0.02, 4, before=decay, start_step=5)
    expected = [float(decay(n)) for n in range(5)]
    expected += [DEFINITIONS[kind](n, 0.1, 0.02, 4) for n in range(1, 10)]
    assert rates(schedule, range(14)) == exactly(expected)


def test_annealing_has_the_rates_of_its_formula():
    for case in itertools.product(
        [(0.1, 0.0007), (0.01, 0.05)], [0, 3], [0, 1, 7], ["linear", "cosine"]
    ):
        (before, rate), start, length, anneal = case
        schedule = AnnealToConstant(
            before, rate, start_step=start, anneal_steps=length, anneal=anneal
        )
        steps = range(start + length + 2)
        received = rates(schedule, steps)
        assert received == pytest.approx(
            [swalr(n, before, rate, start, length, anneal) for n in steps],
            rel=1e-6,
            abs=0,
        ), case
        assert received[-1] == numpy.float32(rate), case


def test_annealing_leaves_a_schedule_from_its_value_at_the_start():
    decay = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.5)
    schedule = AnnealToConstant(
        decay, 0.05, start_step=4, anneal_steps=4, anneal="linear"
    )
    expected = [0.5 * 0.5 ** (n / 10) for n in range(4)]
    expected += [swalr(n, 0.5**1.4, 0.05, 0, 4, "linear") for n in range(8)]
    assert rates(schedule, range(12)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.skipif(BACKEND != "torch", reason="needs torch")
def test_annealing_is_that_of_torch():
    import torch

    # torch says "cos".
    names = {"linear": "linear", "cosine": "cos"}
    for anneal, length in itertools.product(names, [0, 1, 10]):
        parameters = [torch.nn.Parameter(torch.zeros(1))]
        optimizer = torch.optim.SGD(parameters, lr=0.3)
        scheduler = torch.optim.swa_utils.SWALR(
            optimizer, 0.01, length, names[anneal]
        )
        expected = []
        for _ in range(15):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        schedule = AnnealToConstant(
            0.3, 0.01, start_step=0, anneal_steps=length, anneal=anneal
        )
        received = rates(schedule, range(15))
        assert received == pytest.approx(expected, rel=1e-6), (anneal, length)


class Rates(keras.callbacks.Callback):
    """Records the learning rate of each batch."""

    def __init__(self):
        super().__init__()
        self.received = []

    def on_train_batch_begin(self, batch, logs=None):
        self.received.append(float(self.model.optimizer.learning_rate))


def moves(optimizer, batches, **options):
    """How far gradient descent on a slope of 1 moves at each batch."""
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False)]
    )
    model.compile(optimizer, loss=lambda y, prediction: prediction, **options)
    samples, recorder = models.Samples(), Rates()
    x = numpy.ones((batches, 1))
    model.fit(x, x, batch_size=1, verbose=0, callbacks=[samples, recorder])
    path = [samples.initial, *samples.weights]
    return -numpy.diff([w[0].item() for w in path]), recorder.received


def nested():
    return AnnealToConstant(
        CyclicLearningRate(0.1, 0.02, 4, before=0.2, start_step=3),
        0.05,
        start_step=8,
        anneal_steps=4,
    )


@pytest.mark.parametrize(
    ("schedule", "jit"),
    [
        (nested(), True),
        (nested(), False),
        (TriangularLearningRate(0.1, 0.02, 4, before=0.2, start_step=3), False),
    ],
    ids=["annealed cycle, jit", "annealed cycle", "triangle"],
)
def test_training_moves_at_the_rate_of_the_schedule(schedule, jit):
    if jit and BACKEND == "torch":
        pytest.skip("torch.compile needs a C++ toolchain and a minute")
    moved, received = moves(keras.optimizers.SGD(schedule), 14, jit_compile=jit)
    expected = rates(schedule, range(14))
    assert received == pytest.approx(expected)
    assert moved == pytest.approx(expected, rel=1e-5)


def test_with_accumulated_gradients_keras_counts_batches():
    schedule = CyclicLearningRate(0.1, 0.02, 4)
    optimizer = keras.optimizers.SGD(schedule, gradient_accumulation_steps=2)
    moved, received = moves(optimizer, 8)
    assert int(optimizer.iterations) == 4
    assert received == pytest.approx([0.08, 0.06, 0.04, 0.02] * 2)
    assert moved == pytest.approx([0, 0.06, 0, 0.02] * 2, rel=1e-5)


def test_a_saved_model_goes_on_with_its_schedule(tmp_path):
    decay = keras.optimizers.schedules.CosineDecay(0.5, 5)
    schedule = AnnealToConstant(
        TriangularLearningRate(0.1, 0.02, 4, before=decay, start_step=5),
        0.05,
        start_step=8,
        anneal_steps=4,
    )
    model = compiled(models.dense(), keras.optimizers.SGD(schedule))
    x, y = data(6)
    model.fit(x, y, batch_size=BATCH, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    recorder = Rates()
    loaded.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[recorder])
    assert recorder.received == pytest.approx(rates(schedule, range(6, 12)))
