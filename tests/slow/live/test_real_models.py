"""Architectures that people train keep every promise, through the front door.

A training of two epochs for each of them, which the tests look at.
"""

from types import SimpleNamespace

import keras
import numpy
import pytest
import real_models
import reference
from models import Samples, equal
from real_models import BATCH, STEPS

from keras_wavg import EMA, SWA, average_checkpoints, update_bn

EPOCHS = 2
DECAY = 0.8


class Ends(Samples):
    """Records also what the model holds where an epoch ends."""

    def __init__(self):
        super().__init__()
        self.ends = []

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(self.model.get_weights())


@pytest.fixture(scope="module", params=real_models.KINDS)
def kind(request):
    return real_models.KINDS[request.param]


def of(*names):
    """A test of some of the architectures only."""
    return pytest.mark.parametrize("kind", names, indirect=True)


def fit(model, kind, *callbacks, **options):
    return model.fit(
        *kind.data(STEPS, 0),
        batch_size=BATCH,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        validation_data=kind.data(1, 1),
        callbacks=[*callbacks],
        **options,
    ).history


@pytest.fixture(scope="module")
def plain(kind):
    """A training without an average."""
    model, samples = kind.build(), Samples()
    history = fit(model, kind, samples)
    return SimpleNamespace(model=model, samples=samples, history=history)


@pytest.fixture(scope="module")
def run(kind, tmp_path_factory):
    """The same with `EMA`, and a checkpoint at each epoch's end."""
    model, ema, samples = kind.build(), EMA(DECAY), Ends()
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoint = keras.callbacks.ModelCheckpoint(
        folder / f"{{epoch}}{kind.suffix}",
        save_weights_only=kind.suffix != ".keras",
    )
    history = fit(model, kind, checkpoint, samples, ema)
    files = [folder / f"{n + 1}{kind.suffix}" for n in range(EPOCHS)]
    return SimpleNamespace(
        model=model, ema=ema, samples=samples, history=history, files=files
    )


def optimizer_state(optimizer):
    return [keras.ops.convert_to_numpy(v) for v in optimizer.variables]


def test_training_is_the_same_with_and_without_the_average(plain, run):
    assert run.samples.losses == plain.samples.losses
    assert run.history["loss"] == plain.history["loss"]
    assert equal(run.samples.weights[-1], plain.samples.weights[-1])
    assert len(set(run.samples.losses)) == EPOCHS * STEPS


def test_the_average_is_that_of_the_definition(run):
    averages = run.ema.get_weights()
    expected = reference.ema(run.samples.weights, DECAY)
    assert reference.relative_error(averages, expected) < 1e-6
    assert equal(run.model.get_weights(), averages)
    assert equal(run.samples.ends[-1], averages)


def test_validation_measures_the_average(kind, run):
    score = run.model.evaluate(*kind.data(1, 1), batch_size=BATCH, verbose=0)
    assert run.history["val_loss"][-1] == pytest.approx(score, rel=1e-6)


def test_the_raw_weights_come_back_bit_for_bit(run):
    run.ema.restore()
    raw = run.model.get_weights()
    run.ema.apply()
    assert equal(raw, run.samples.weights[-1])
    assert equal(run.model.get_weights(), run.ema.get_weights())


@pytest.fixture(scope="module")
def resumed(kind, run):
    """Loads the first checkpoint and trains the second epoch."""
    model, ema, samples = kind.build(), EMA(DECAY), Ends()
    model.optimizer.build(model.trainable_variables)
    ema.set_model(model)
    model.load_weights(run.files[0])
    loaded = model.get_weights()
    history = fit(model, kind, samples, ema, initial_epoch=1)
    return SimpleNamespace(
        model=model, loaded=loaded, samples=samples, history=history
    )


def test_training_goes_on_from_a_file_as_if_it_had_not_stopped(run, resumed):
    assert resumed.samples.losses == run.samples.losses[STEPS:]
    assert equal(resumed.samples.weights[-1], run.samples.weights[-1])
    assert equal(
        optimizer_state(resumed.model.optimizer),
        optimizer_state(run.model.optimizer),
    )


def test_the_average_goes_on_from_a_file_as_if_nothing_was(run, resumed):
    assert equal(resumed.loaded, run.samples.ends[0])
    assert resumed.history["val_loss"] == run.history["val_loss"][1:]
    assert equal(resumed.model.get_weights(), run.samples.ends[-1])


@of("resnet", "gpt2")
def test_a_plain_model_loads_a_file_of_the_average(kind, run, tmp_path):
    run.ema.save_weights(tmp_path / "average.weights.h5")
    model = kind.plain()
    model.load_weights(tmp_path / "average.weights.h5")
    assert equal(model.get_weights(), run.ema.get_weights())


@of("lora")
def test_a_model_without_adapters_loads_their_average(kind, run, tmp_path):
    run.ema.save_weights(tmp_path / "average.weights.h5")
    model = kind.plain()
    model.load_weights(tmp_path / "average.weights.h5")
    x, _ = kind.data(1, 1)
    numpy.testing.assert_allclose(
        model.predict(x, verbose=0),
        run.model.predict(x, verbose=0),
        rtol=0,
        atol=1e-5,
    )


def test_checkpoints_are_averaged_as_defined(kind, run, tmp_path):
    output = tmp_path / f"mean{kind.suffix}"
    average_checkpoints(run.files, output)
    model, held = kind.plain(), []
    for file in (*run.files, output):
        model.load_weights(file)
        held.append(model.get_weights())
    expected = reference.mean(held[:-1])
    assert equal(held[-1], [mean.astype("float32") for mean in expected])


def measured(model):
    """Which weights `update_bn` assigns."""
    statistics = {
        id(variable)
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        for variable in (layer.moving_mean, layer.moving_variance)
    }
    return [id(weight) in statistics for weight in model.weights]


@of("resnet")
def test_measuring_gives_finite_statistics_and_changes_nothing_else(kind, run):
    before = run.model.get_weights()
    update_bn(run.model, kind.data(STEPS, 0)[0], verbose=0)
    after = run.model.get_weights()
    run.model.set_weights(before)
    for old, new, is_measured in zip(
        before, after, measured(run.model), strict=True
    ):
        assert equal([old], [new]) != is_measured
        assert numpy.isfinite(new).all()
    assert sum(measured(run.model)) == 2 * 49


@of("resnet")
def test_swa_measures_the_statistics_of_the_mean(kind, plain):
    x, _ = kind.data(STEPS, 0)
    swa, samples = SWA(bn_data=x), Samples()
    fit(plain.model, kind, samples, swa)
    shown = plain.model.get_weights()
    mean = reference.mean(samples.weights[STEPS - 1 :: STEPS])
    mean = [
        array if is_measured else average
        for array, average, is_measured in zip(
            shown, mean, measured(plain.model), strict=True
        )
    ]
    assert reference.relative_error(shown, mean) < 1e-6
    update_bn(plain.model, x, verbose=0)
    assert equal(plain.model.get_weights(), shown)
    swa.restore()
    assert equal(plain.model.get_weights(), samples.weights[-1])


@of("lora")
def test_adapters_are_averaged_with_their_kernel_or_not_at_all(kind):
    with pytest.raises(ValueError, match="adapters"):
        fit(kind.build(), kind, EMA(DECAY, include="lora"))
    fit(kind.build(), kind, EMA(DECAY, include="norm"))
