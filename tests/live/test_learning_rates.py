"""Learning rate schedules: their formulas on each backend, and training."""

import itertools
import math

import keras
import models
import numpy
import pytest
from models import BATCH, compiled, data

from keras_wavg.learning_rates import AnnealToConstant, CyclicLearningRate

BACKEND = keras.config.backend()


def sawtooth(i, high, low, cycle):
    """Izmailov et al., 2018, section 3.1, at the i-th step, from 1."""
    t = ((i - 1) % cycle + 1) / cycle
    return (1 - t) * high + t * low


def triangle(i, high, low, cycle):
    """Garipov et al., 2018, at the i-th step, from 1."""
    t = ((i - 1) % cycle + 1) / cycle
    if t <= 1 / 2:
        return (1 - 2 * t) * high + 2 * t * low
    return (2 - 2 * t) * low + (2 * t - 1) * high


def swalr(step, before, rate, start, steps, anneal):
    """`torch.optim.swa_utils.SWALR` from step `start`, from 0."""
    if step < start:
        return before
    t = min((step - start) / steps, 1) if steps else 1
    alpha = t if anneal == "linear" else (1 - math.cos(math.pi * t)) / 2
    return rate * alpha + before * (1 - alpha)


DEFINITIONS = {"sawtooth": sawtooth, "triangle": triangle}
all_shapes = pytest.mark.parametrize("shape", DEFINITIONS)


def rates(schedule, steps):
    return numpy.array([float(schedule(step)) for step in steps])


def to_float32(expected):
    """Compare with a tolerance of the rounding of float32."""
    return pytest.approx(expected, rel=4e-7, abs=0)


@all_shapes
def test_cycles_follow_the_formulas_of_the_papers(shape):
    for high, low in ((0.05, 0.0005), (1, 1), (0.3, 0)):
        for cycle in (2, 4, 10):
            steps = range(2 * cycle + 1)
            schedule = CyclicLearningRate(high, low, cycle, shape=shape)
            numpy.testing.assert_allclose(
                rates(schedule, steps),
                [DEFINITIONS[shape](n + 1, high, low, cycle) for n in steps],
                rtol=4e-7,
                atol=1e-8,
                err_msg=str((high, low, cycle)),
            )


@all_shapes
def test_the_minimum_is_reached_exactly_once_a_cycle(shape):
    high, low = numpy.float32(0.1), numpy.float32(0.003)
    schedule = CyclicLearningRate(0.1, 0.003, 6, shape=shape)
    received = rates(schedule, range(18)).reshape(3, 6)
    lowest = 5 if shape == "sawtooth" else 2
    assert (received == received[0]).all()
    assert (received[0] == low).nonzero()[0].tolist() == [lowest]
    assert (received[0, -1] == high) == (shape == "triangle")


def test_a_cycle_of_one_step_is_constant():
    schedule = CyclicLearningRate(0.1, 0.02, 1)
    assert rates(schedule, range(3)) == pytest.approx([0.02] * 3)


@all_shapes
def test_cycles_are_exact_after_many_steps(shape):
    for step in (10**6 + 7, 10**7, 2**24 + 1, 2**31 - 2):
        expected = DEFINITIONS[shape](step + 1, 0.1, 0.0001, 998)
        schedule = CyclicLearningRate(0.1, 0.0001, 998, shape=shape)
        assert float(schedule(step)) == to_float32(expected), step
        tensor = keras.ops.convert_to_tensor(step, "int32")
        assert float(schedule(tensor)) == to_float32(expected), step


@all_shapes
def test_cycles_start_after_another_schedule(shape):
    decay = keras.optimizers.schedules.CosineDecay(0.5, 5)
    schedule = CyclicLearningRate(
        0.1, 0.02, 4, shape=shape, before=decay, start_step=5
    )
    expected = [float(decay(n)) for n in range(5)]
    expected += [DEFINITIONS[shape](n, 0.1, 0.02, 4) for n in range(1, 10)]
    assert rates(schedule, range(14)) == to_float32(expected)


def test_annealing_follows_its_formula():
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


def test_annealing_starts_from_the_value_of_a_schedule():
    decay = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.5)
    schedule = AnnealToConstant(
        decay, 0.05, start_step=4, anneal_steps=4, anneal="linear"
    )
    expected = [0.5 * 0.5 ** (n / 10) for n in range(4)]
    expected += [swalr(n, 0.5**1.4, 0.05, 0, 4, "linear") for n in range(8)]
    assert rates(schedule, range(12)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.skipif(BACKEND != "torch", reason="needs torch")
def test_annealing_equals_that_of_torch():
    import torch

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
    """Return the distance of each step of SGD where the gradient is 1."""
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
        (
            CyclicLearningRate(
                0.1, 0.02, 4, shape="triangle", before=0.2, start_step=3
            ),
            False,
        ),
    ],
    ids=["annealed cycle, jit", "annealed cycle", "triangle"],
)
def test_training_uses_the_rates_of_the_schedule(schedule, jit):
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


def test_a_loaded_model_continues_its_schedule(tmp_path):
    decay = keras.optimizers.schedules.CosineDecay(0.5, 5)
    schedule = AnnealToConstant(
        CyclicLearningRate(
            0.1, 0.02, 4, shape="triangle", before=decay, start_step=5
        ),
        0.05,
        start_step=8,
        anneal_steps=4,
        name="rate",
    )
    model = compiled(models.dense(), keras.optimizers.SGD(schedule))
    x, y = data(6)
    model.fit(x, y, batch_size=BATCH, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    recorder = Rates()
    loaded.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[recorder])
    assert recorder.received == pytest.approx(rates(schedule, range(6, 12)))
    loaded_schedule = loaded.optimizer.get_config()["learning_rate"]
    assert loaded_schedule == keras.saving.serialize_keras_object(schedule)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a graph of TensorFlow")
def test_the_name_is_that_of_the_operations():
    import tensorflow as tf

    schedules = [
        CyclicLearningRate(0.1, 0.02, 4),
        AnnealToConstant(0.2, 0.1, start_step=1, anneal_steps=2, name="rate"),
    ]
    for schedule in schedules:
        with tf.Graph().as_default() as graph:
            schedule(tf.constant(3))
        names = [operation.name for operation in graph.get_operations()]
        assert any(n.startswith(f"{schedule.name}/") for n in names), names
