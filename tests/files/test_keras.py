"""Keras loads averages of the files that it saves."""

import numpy
import pytest
import reference
import weights_files
from weights_files import SUFFIXES, equal

from keras_wavg import average_checkpoints, inspect_checkpoint


def largest(model):
    """The bytes of the largest weight, which a shard must be able to hold."""
    return max(array.nbytes for array in model.get_weights())


def save(model, path):
    """Save a model, in several shards if the format has them."""
    if path.suffix == ".keras":
        model.save(path)
    elif path.suffix == ".json":
        model.save_weights(path, max_shard_size=largest(model) / 2**30)
        assert len(weights_files.shards_of(path)) > 1
    else:
        model.save_weights(path)
    return path


def random_weights(model, seed):
    """Positive, as variances are."""
    rng = numpy.random.default_rng(seed)
    return [
        rng.uniform(0.1, 1, array.shape).astype(array.dtype)
        for array in model.get_weights()
    ]


def saved(directory, model, suffix=".weights.h5", count=3):
    """Files of a model with different weights, and these weights."""
    paths, weights = [], []
    for number in range(count):
        weights.append(random_weights(model, number))
        model.set_weights(weights[-1])
        paths.append(save(model, directory / f"{number}{suffix}"))
    return paths, weights


def rounded_mean(weights):
    means = reference.mean(weights)
    return [
        # NumPy cannot convert float64 to bfloat16 with a single rounding.
        mean.astype("float32").astype(like.dtype)
        for mean, like in zip(means, weights[0], strict=True)
    ]


def test_files_of_every_format_are_averaged_into_every_format(
    models, request, tmp_path
):
    request.applymarker(models.loses_parts_of_shards)
    model, loaded = models.compiled(models.dense()), models.fresh()
    checksums = []
    for suffix in SUFFIXES:
        directory = tmp_path / suffix
        directory.mkdir()
        paths, weights = saved(directory, model, suffix)
        checksums.append([inspect_checkpoint(p).checksum for p in paths])
        for target in SUFFIXES if suffix == ".keras" else SUFFIXES[:2]:
            output = directory / f"mean{target}"
            average_checkpoints(paths, output)
            loaded.set_weights(weights[0])
            loaded.load_weights(output)
            assert equal(loaded.get_weights(), rounded_mean(weights))
    # They depend only on the weights, not on the format.
    assert checksums == [checksums[0]] * 3
    assert len(set(checksums[0])) == 3


def test_an_average_of_keras_files_is_a_complete_model(models, tmp_path):
    paths, weights = saved(
        tmp_path, models.compiled(models.batch_norm()), ".keras"
    )
    average_checkpoints(paths, tmp_path / "mean.keras")
    model = models.keras.models.load_model(tmp_path / "mean.keras")
    assert equal(model.get_weights(), rounded_mean(weights))
    model.fit(*models.data(1), verbose=0)
    assert not equal(model.get_weights(), rounded_mean(weights))


def test_models_of_every_kind_are_averaged(models, tmp_path):
    for kind, build in models.KINDS.items():
        model = models.compiled(build())
        model(numpy.zeros((1, 4), "float32"))
        directory = tmp_path / kind
        directory.mkdir()
        paths, weights = saved(directory, model)
        report = average_checkpoints(paths, directory / "mean.weights.h5")
        model.load_weights(directory / "mean.weights.h5")
        assert len(report.averaged) == len(weights[0]), kind
        assert equal(model.get_weights(), rounded_mean(weights)), kind


def test_weights_keep_their_dtype(models, tmp_path):
    dtypes = {"bfloat16": "bfloat16", "float16": "float16"}
    for policy, dtype in (dtypes | {"mixed_bfloat16": "float32"}).items():
        models.keras.config.set_dtype_policy(policy)
        directory = tmp_path / policy
        directory.mkdir()
        model = models.compiled(models.dense())
        paths, weights = saved(directory, model)
        average_checkpoints(paths, directory / "mean.weights.h5")
        model.load_weights(directory / "mean.weights.h5")
        assert {str(array.dtype) for array in weights[0]} == {dtype}
        assert equal(model.get_weights(), rounded_mean(weights)), policy


def test_the_optimizer_is_dropped_or_copied_from_the_last_file(
    models, tmp_path
):
    def state(model):
        variables = model.optimizer.variables
        return [models.keras.ops.convert_to_numpy(v) for v in variables]

    adam = models.keras.optimizers.Adam
    model = models.fresh(optimizer=adam())
    for number, variable in enumerate(model.optimizer.variables):
        variable.assign(numpy.full(variable.shape, number + 1))
    paths, _ = saved(tmp_path, model)
    report = average_checkpoints(paths, tmp_path / "mean.weights.h5")
    assert set(report.dropped.values()) == {"optimizer"}
    names = weights_files.read(tmp_path / "mean.weights.h5")
    assert not [name for name in names if name.startswith("optimizer")]
    average_checkpoints(paths, tmp_path / "all.weights.h5", optimizer="last")
    loaded = models.fresh(optimizer=adam())
    assert not equal(state(loaded), state(model))
    loaded.load_weights(tmp_path / "all.weights.h5")
    assert equal(state(loaded), state(model))


def test_the_state_of_an_average_is_dropped(models, tmp_path):
    from keras_wavg import EMA

    model, ema = models.compiled(models.dense()), EMA(0.9)
    ema.set_model(model)
    paths = []
    for number in range(2):
        model.set_weights(random_weights(model, number))
        ema.update()
        paths.append(save(model, tmp_path / f"{number}.weights.h5"))
    report = average_checkpoints(paths, tmp_path / "mean.weights.h5")
    assert "average" in report.dropped.values()
    names = set(weights_files.read(tmp_path / "mean.weights.h5"))
    assert names == set(report.averaged)


def test_merged_adapters_are_averaged(models, tmp_path):
    model = models.compiled(models.dense())
    layer = model.layers[0]
    layer.enable_lora(2)
    paths, kernels = [], []
    for number in range(2):
        model.set_weights(random_weights(model, number))
        paths.append(save(model, tmp_path / f"{number}.weights.h5"))
        kernels.append([models.keras.ops.convert_to_numpy(layer.kernel)])
    average_checkpoints(paths, tmp_path / "mean.weights.h5")
    model.load_weights(tmp_path / "mean.weights.h5")
    got = [models.keras.ops.convert_to_numpy(layer.kernel)]
    assert equal(got, rounded_mean(kernels))


def test_quantized_weights_are_refused(models, tmp_path):
    layers, paths = models.keras.layers, []
    for number in range(2):
        models.keras.utils.set_random_seed(number)
        model = models.keras.Sequential(
            [models.keras.Input((4,)), layers.Dense(8)]
        )
        model.quantize("int8")
        paths.append(tmp_path / f"{number}.weights.h5")
        model.save_weights(paths[-1])
    for strict in (True, False):
        with pytest.raises(ValueError, match="before quantization"):
            average_checkpoints(
                paths, tmp_path / "mean.weights.h5", strict=strict
            )
    assert not (tmp_path / "mean.weights.h5").exists()
