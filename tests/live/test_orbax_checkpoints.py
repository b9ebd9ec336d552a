"""Checkpoints of Keras' `OrbaxCheckpoint` are averaged and loaded."""

import keras
import models
import numpy
import pytest
from models import compiled

from keras_wavg import EMA, average_checkpoints, inspect_checkpoint

pytest.importorskip("orbax.checkpoint", reason="Orbax is not installed")

OPTIONS = {
    "whole": {},
    "weights": {"save_weights_only": True},
    "async": {"save_on_background": True},
}
on_jax = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="distribution on JAX"
)


@keras.saving.register_keras_serializable("keras_wavg_tests")
class Scale(keras.layers.Layer):
    """A scalar weight, which on some backends is no array in Orbax."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, inputs):
        return inputs * self.scale


class Recorder(keras.callbacks.Callback):
    """Records the weights after each epoch."""

    def on_train_begin(self, logs=None):
        self.found = []

    def on_epoch_end(self, epoch, logs=None):
        self.found.append(by_path(self.model))

    def mean(self, path):
        total = sum(each[path].astype("float64") for each in self.found)
        return (total / len(self.found)).astype("float32")


def functional():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(8, name="wide")(inputs)
    hidden = keras.layers.BatchNormalization(name="normal")(hidden)
    hidden = Scale(name="scaled")(hidden)
    hidden = keras.layers.Dropout(0.1, seed=3)(hidden)
    outputs = keras.layers.Dense(1, name="out")(hidden)
    return keras.Model(inputs, outputs)


def by_path(model):
    # The paths of a Sequential model that `fit` has built contain its name.
    return {
        weight.path.removeprefix(f"{model.name}/"): keras.ops.convert_to_numpy(
            weight.value
        )
        for weight in model.weights
        if "seed_generator" not in weight.path
    }


def trained(root, *callbacks, model=None, **options):
    model = model or compiled(functional(), optimizer="adam")
    checkpoint = keras.callbacks.OrbaxCheckpoint(
        root,
        max_to_keep=None,
        **({"save_on_background": False} | options),
    )
    recorder = Recorder()
    models.fit_and_validate(model, *callbacks, recorder, checkpoint, epochs=3)
    checkpoint.wait_until_finished()
    return recorder


def assert_holds_mean(model, recorder):
    found = by_path(model)
    assert found.keys() == recorder.found[0].keys()
    for path, value in found.items():
        expected = recorder.mean(path)
        assert value.tobytes() == expected.tobytes(), path


@pytest.fixture(scope="module", params=list(OPTIONS))
def run(request, tmp_path_factory):
    """A directory with checkpoints of three steps, and their weights."""
    keras.utils.clear_session()
    root = tmp_path_factory.mktemp("orbax") / "run"
    recorder = trained(root, **OPTIONS[request.param])
    return root, recorder, request.param


def test_the_average_of_steps_is_loaded_by_keras(run, tmp_path):
    root, recorder, _ = run
    average_checkpoints([root], tmp_path / "mean", steps=[0, 1, 2])
    keras.utils.clear_session()  # Orbax matches names of a new process.
    model = compiled(functional())
    model.load_weights(tmp_path / "mean")
    assert_holds_mean(model, recorder)


def test_the_average_of_whole_models_is_a_model(run, tmp_path):
    root, recorder, kind = run
    average_checkpoints([root], tmp_path / "mean", steps=[0, 1, 2])
    if kind == "weights":
        assert inspect_checkpoint(tmp_path / "mean").parts.keys()
        return
    model = keras.saving.load_model(tmp_path / "mean")
    assert_holds_mean(model, recorder)
    models.fit_and_validate(model)


@pytest.mark.parametrize("name", ["a.weights.h5", "a.keras", "a.weights.json"])
def test_the_average_of_steps_is_written_as_a_file(run, tmp_path, name):
    root, recorder, kind = run
    steps, weights = [root / str(step) for step in range(3)], None
    if kind == "weights":
        functional().save(tmp_path / "model.keras")
        steps.append(tmp_path / "model.keras")
        weights = [1, 1, 1, 0]
    report = average_checkpoints(steps, tmp_path / name, weights=weights)
    assert [source.path.name for source in report.sources] == ["0", "1", "2"]
    model = compiled(functional())
    model.load_weights(tmp_path / name)
    assert_holds_mean(model, recorder)
    if name.endswith(".keras"):
        assert_holds_mean(keras.saving.load_model(tmp_path / name), recorder)


def test_the_average_of_a_sequential_model_is_written_as_a_file(tmp_path):
    keras.utils.clear_session()
    model = compiled(models.dense())
    recorder = trained(tmp_path / "run", model=model)
    average_checkpoints(
        [tmp_path / "run"], tmp_path / "a.keras", steps=[0, 1, 2]
    )
    assert_holds_mean(keras.saving.load_model(tmp_path / "a.keras"), recorder)


def test_the_state_of_an_average_is_dropped(tmp_path):
    keras.utils.clear_session()
    recorder = trained(tmp_path / "run", EMA(0.9))
    report = average_checkpoints(
        [tmp_path / "run"], tmp_path / "mean", steps=[0, 1, 2]
    )
    assert "average" in report.dropped.values()
    keras.utils.clear_session()
    model = compiled(functional())
    model.load_weights(tmp_path / "mean")
    # Each checkpoint contains the average.
    assert_holds_mean(model, recorder)


def test_the_optimizer_of_the_last_checkpoint_is_kept(tmp_path):
    keras.utils.clear_session()
    trained(tmp_path / "run")
    average_checkpoints(
        [tmp_path / "run"],
        tmp_path / "mean",
        steps=[0, 1, 2],
        optimizer="last",
    )
    one = keras.saving.load_model(tmp_path / "run")
    two = keras.saving.load_model(tmp_path / "mean")
    state = [[v.numpy() for v in m.optimizer.variables] for m in (one, two)]
    assert state[0][0] > 0
    assert all(map(numpy.array_equal, *state))


@on_jax
@pytest.mark.parametrize("count", [1, 2, 4])
def test_an_average_is_loaded_under_any_distribution(tmp_path, count):
    def under(devices):
        names = keras.distribution.list_devices()[:devices]
        mesh = keras.distribution.DeviceMesh((1, devices), ("b", "m"), names)
        layout = keras.distribution.LayoutMap(mesh)
        layout[".*wide/kernel"] = (None, "m")
        layout[".*out/kernel"] = ("m", None)
        keras.distribution.set_distribution(
            keras.distribution.ModelParallel(
                layout_map=layout, batch_dim_name="b"
            )
        )

    try:
        keras.utils.clear_session()
        under(count)
        recorder = trained(tmp_path / "run")
        average_checkpoints(
            [tmp_path / "run"], tmp_path / "mean", steps=[0, 1, 2]
        )
        for other in (1, 2, 4):
            keras.utils.clear_session()
            under(other)
            model = compiled(functional())
            model.load_weights(tmp_path / "mean")
            assert_holds_mean(model, recorder)
    finally:
        keras.distribution.set_distribution(None)
