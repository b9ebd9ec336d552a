"""Averages of common architectures, through the public interface.

One model of each architecture is compiled once and trained three times: without
an average, with `EMA` from the same weights, and from a file of the second run.
"""

from types import SimpleNamespace

import keras
import numpy
import pytest
import real_models
import reference
from models import Samples, equal
from real_models import BATCH, STEPS

from keras_wavg import EMA, LAWA, average_checkpoints

EPOCHS = 2
DECAY = 0.8


class EpochEnds(Samples):
    """Records also the weights and the optimizer after each epoch."""

    def __init__(self):
        super().__init__()
        self.ends = []
        self.optimizers = []

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(self.model.get_weights())
        self.optimizers.append(optimizer_state(self.model))


@pytest.fixture(scope="module", params=real_models.KINDS)
def kind(request):
    return real_models.KINDS[request.param]


def only(*names):
    """Run a test with some of the architectures."""
    return pytest.mark.parametrize("kind", names, indirect=True)


def trained(model, kind, *callbacks, **options):
    """Train; return the samples, the history and the final weights."""
    samples = EpochEnds()
    history = model.fit(
        *kind.data(STEPS, 0),
        batch_size=BATCH,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        validation_data=kind.data(1, 1),
        callbacks=[samples, *callbacks],
        **options,
    ).history
    return SimpleNamespace(
        samples=samples, history=history, shown=model.get_weights()
    )


def optimizer_state(model):
    return [keras.ops.convert_to_numpy(v) for v in model.optimizer.variables]


def restore_state(model, weights, state):
    """Restore the weights of a model and the state of its optimizer."""
    model.set_weights(weights)
    for variable, value in zip(model.optimizer.variables, state, strict=True):
        variable.assign(value)


@pytest.fixture(scope="module")
def model(kind):
    model = kind.build()
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture(scope="module")
def plain(kind, model):
    """A training without an average, which leaves the model as it was."""
    initial = model.get_weights(), optimizer_state(model)
    run = trained(model, kind)
    restore_state(model, *initial)
    return run


@pytest.fixture(scope="module")
def run(kind, model, plain, tmp_path_factory):
    """The same training with `EMA`, and a checkpoint after each epoch."""
    assert len(plain.history["loss"]) == EPOCHS
    directory, ema = tmp_path_factory.mktemp("run"), EMA(DECAY)
    means = means_of_epochs(model, kind)
    checkpoint = keras.callbacks.ModelCheckpoint(
        directory / f"{{epoch}}{kind.suffix}",
        save_weights_only=kind.suffix != ".keras",
    )
    run = trained(model, kind, checkpoint, ema, *means)
    run.files = [directory / f"{n + 1}{kind.suffix}" for n in range(EPOCHS)]
    run.average = ema.get_weights()
    run.score = model.evaluate(*kind.data(1, 1), batch_size=BATCH, verbose=0)
    run.file = directory / "average.weights.h5"
    ema.save_weights(run.file)
    run.outputs = outputs(model, kind)
    ema.restore()
    run.raw = model.get_weights()
    ema.apply()
    run.applied = model.get_weights()
    run.means = [mean.get_weights() for mean in means]
    run.after_means = model.get_weights()
    run.ema = ema
    return run


@pytest.fixture(scope="module")
def resumed(kind, model, run):
    """Loads the first checkpoint and trains the second epoch."""
    model.load_weights(run.files[0])
    return trained(model, kind, run.ema, initial_epoch=1)


@pytest.fixture(scope="module")
def plain_model(kind):
    """A model that loads the weights."""
    return kind.plain()


def outputs(model, kind):
    x, _ = kind.data(1, 1)
    return keras.ops.convert_to_numpy(model(x, training=False))


def test_training_is_the_same_with_and_without_the_average(plain, run):
    assert run.samples.losses == plain.samples.losses
    assert run.history["loss"] == plain.history["loss"]
    assert equal(run.samples.weights[-1], plain.samples.weights[-1])
    assert len(set(run.samples.losses)) == EPOCHS * STEPS


def test_the_average_is_as_defined(run):
    expected = reference.ema(run.samples.weights, DECAY)
    assert reference.relative_error(run.average, expected) < 1e-6
    assert equal(run.shown, run.average)
    assert equal(run.samples.ends[-1], run.average)


def test_validation_measures_the_average(run):
    assert run.history["val_loss"][-1] == pytest.approx(run.score, rel=1e-6)


def test_raw_weights_are_restored_bit_for_bit(run):
    assert equal(run.raw, run.samples.weights[-1])
    assert equal(run.applied, run.average)
    assert not equal(run.raw, run.average)


def test_training_resumes_exactly_from_a_file(run, resumed):
    assert resumed.samples.losses == run.samples.losses[STEPS:]
    assert equal(resumed.samples.weights[-1], run.samples.weights[-1])
    assert equal(resumed.samples.optimizers[-1], run.samples.optimizers[-1])


def test_the_average_resumes_exactly_from_a_file(run, resumed):
    assert resumed.history["val_loss"] == run.history["val_loss"][1:]
    assert equal(resumed.shown, run.samples.ends[-1])


def test_a_new_model_loads_weights_average_and_optimizer_of_a_file(kind, run):
    model, ema = kind.build(), EMA(DECAY)
    model.optimizer.build(model.trainable_variables)
    ema.set_model(model)
    model.load_weights(run.files[0])
    assert equal(model.get_weights(), run.samples.ends[0])
    assert equal(ema.get_weights(), run.samples.ends[0])
    assert equal(optimizer_state(model), run.samples.optimizers[0])
    ema.restore()
    assert equal(model.get_weights(), run.samples.weights[STEPS - 1])


@only("resnet", "gpt2")
def test_a_plain_model_loads_a_file_of_the_average(run, plain_model):
    plain_model.load_weights(run.file)
    assert equal(plain_model.get_weights(), run.average)


@only("lora")
def test_a_model_without_adapters_loads_their_average(kind, run, plain_model):
    plain_model.load_weights(run.file)
    numpy.testing.assert_allclose(
        outputs(plain_model, kind), run.outputs, rtol=0, atol=1e-5
    )


def test_checkpoints_are_averaged_as_defined(kind, run, plain_model, tmp_path):
    output, held = tmp_path / f"mean{kind.suffix}", []
    average_checkpoints(run.files, output)
    for file in (*run.files, output):
        plain_model.load_weights(file)
        held.append(plain_model.get_weights())
    expected = reference.mean(held[:-1])
    assert equal(held[-1], [mean.astype("float32") for mean in expected])


def means_of_epochs(model, kind):
    """A mean with averaged statistics, and one that measures them.

    Unlike for `SWA`, TensorFlow compiles nothing for them.
    """
    if not statistics(model):
        return []
    x, _ = kind.data(STEPS, 0)
    return [
        LAWA(EPOCHS, swap=False),
        LAWA(EPOCHS, swap=False, batch_norm_data=x, name="measured"),
    ]


def statistics(model):
    """The indices of the moving statistics among the weights."""
    variables = {
        id(variable)
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        for variable in (layer.moving_mean, layer.moving_variance)
    }
    return [i for i, w in enumerate(model.weights) if id(w) in variables]


@only("resnet")
def test_measured_statistics_are_finite_and_other_weights_unchanged(model, run):
    assert len(statistics(model)) == 2 * 13
    mean, measured = run.means
    samples = run.samples.weights[STEPS - 1 :: STEPS]
    expected = reference.mean(samples)
    assert reference.relative_error(mean, expected) < 1e-6
    for i, (old, new) in enumerate(zip(mean, measured, strict=True)):
        assert equal([old], [new]) == (i not in statistics(model))
        assert numpy.isfinite(new).all()
    assert equal(run.after_means, run.average)


@only("lora")
def test_adapters_without_their_kernel_are_refused(kind):
    model = kind.build()
    part, others = EMA(DECAY, include="lora"), EMA(DECAY, include="norm")
    part.set_model(model)
    with pytest.raises(ValueError, match="adapters"):
        part.update()
    others.set_model(model)
    others.update()
    assert equal(others.get_weights(), model.get_weights())
