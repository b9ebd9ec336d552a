"""Saved weights are averaged as defined, and Keras loads what comes out."""

import json
import os
import subprocess
import sys

import h5py
import hypothesis
import hypothesis.extra.numpy as arrays_of
import hypothesis.strategies as st
import keras
import ml_dtypes
import models
import numpy
import pytest
import reference
import weights_files
from models import compiled, data, equal, loses_parts_of_shards, save

from keras_wavg import EMA, average_checkpoints, inspect_checkpoint

SUFFIXES = [".weights.h5", ".weights.json", ".keras"]
FLOATS = ["float32", "float16", "float64", ml_dtypes.bfloat16]


def trained(folder, suffix=".weights.h5", build=models.batch_norm, count=3):
    """Files of a model in training, the weights in each, and the model."""
    model = compiled(build())
    x, y = data(2)
    paths, weights = [], []
    for number in range(count):
        model.fit(x, y, verbose=0)
        paths.append(save(model, folder / f"{number}{suffix}"))
        weights.append(model.get_weights())
    return paths, weights, model


def rounded(expected, like):
    return [e.astype(w.dtype) for e, w in zip(expected, like, strict=True)]


def fresh(build=models.batch_norm):
    """A model whose layers have names of their own."""
    build()
    model = compiled(build())
    model.optimizer.build(model.trainable_variables)
    return model


@loses_parts_of_shards
def test_files_of_every_format_are_averaged_into_every_format(tmp_path):
    for suffix in SUFFIXES:
        folder = tmp_path / suffix
        folder.mkdir()
        paths, weights, _ = trained(folder, suffix)
        expected = rounded(reference.mean(weights), weights[0])
        for target in SUFFIXES if suffix == ".keras" else SUFFIXES[:2]:
            output = folder / f"mean{target}"
            average_checkpoints(paths, output)
            model = fresh()
            model.load_weights(output)
            assert equal(model.get_weights(), expected)


def test_a_keras_file_comes_out_as_a_whole_model(tmp_path):
    paths, weights, _ = trained(tmp_path, ".keras")
    average_checkpoints(paths, tmp_path / "mean.keras")
    model = keras.models.load_model(tmp_path / "mean.keras")
    assert equal(
        model.get_weights(), rounded(reference.mean(weights), weights[0])
    )
    x, y = data(1)
    model.fit(x, y, verbose=0)


def test_formats_can_be_mixed(tmp_path):
    paths, weights, model = trained(tmp_path)
    paths[1] = save(model, tmp_path / "last.keras")
    paths[0] = save(model, tmp_path / "last.weights.json")
    average_checkpoints(paths, tmp_path / "mean.keras")
    loaded = keras.models.load_model(tmp_path / "mean.keras")
    assert equal(loaded.get_weights(), weights[2])


@pytest.mark.parametrize("kind", models.KINDS)
def test_models_of_every_kind_are_averaged(kind, tmp_path):
    paths, weights, model = trained(tmp_path, build=models.KINDS[kind])
    average_checkpoints(paths, tmp_path / "mean.weights.h5")
    model.load_weights(tmp_path / "mean.weights.h5")
    assert equal(
        model.get_weights(), rounded(reference.mean(weights), weights[0])
    )


@pytest.mark.parametrize("policy", ["bfloat16", "float16", "mixed_bfloat16"])
def test_weights_keep_their_dtype(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    paths, weights, model = trained(tmp_path, build=models.dense)
    average_checkpoints(paths, tmp_path / "mean.weights.h5")
    model.load_weights(tmp_path / "mean.weights.h5")
    for got, expected in zip(
        model.get_weights(), reference.mean(weights), strict=True
    ):
        assert got.dtype == weights[0][0].dtype
        assert equal([got], [expected.astype("float32").astype(got.dtype)])


def test_the_optimizer_is_dropped_or_taken_from_the_last(tmp_path):
    paths, _, model = trained(tmp_path)
    report = average_checkpoints(paths, tmp_path / "mean.weights.h5")
    assert set(report.dropped.values()) == {"optimizer"}
    assert not [
        name
        for name in weights_files.read(tmp_path / "mean.weights.h5")
        if name.startswith("optimizer")
    ]
    average_checkpoints(paths, tmp_path / "all.weights.h5", optimizer="last")
    loaded = fresh()
    loaded.load_weights(tmp_path / "all.weights.h5")
    assert equal(
        [keras.ops.convert_to_numpy(v) for v in loaded.optimizer.variables],
        [keras.ops.convert_to_numpy(v) for v in model.optimizer.variables],
    )


def test_the_state_of_a_running_average_is_dropped(tmp_path):
    model = compiled(models.dense())
    paths = []
    for number in range(2):
        model.fit(*data(2), verbose=0, callbacks=[EMA(0.9)])
        paths.append(save(model, tmp_path / f"{number}.weights.h5"))
    report = average_checkpoints(paths, tmp_path / "mean.weights.h5")
    assert "average" in report.dropped.values()
    names = set(weights_files.read(tmp_path / "mean.weights.h5"))
    assert names == set(report.averaged)


def test_merged_adapters_are_averaged(tmp_path):
    model = compiled(models.dense())
    model.layers[0].enable_lora(2)
    paths, kernels = [], []
    for number in range(2):
        model.fit(*data(2), verbose=0)
        paths.append(save(model, tmp_path / f"{number}.weights.h5"))
        kernels.append([keras.ops.convert_to_numpy(model.layers[0].kernel)])
    average_checkpoints(paths, tmp_path / "mean.weights.h5")
    model.load_weights(tmp_path / "mean.weights.h5")
    got = keras.ops.convert_to_numpy(model.layers[0].kernel)
    numpy.testing.assert_allclose(
        got, reference.mean(kernels)[0], rtol=0, atol=1e-7
    )


def test_quantized_weights_are_refused(tmp_path):
    paths = []
    for number in range(2):
        keras.utils.set_random_seed(number)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        model.quantize("int8")
        paths.append(save(model, tmp_path / f"{number}.weights.h5"))
    for strict in (True, False):
        with pytest.raises(ValueError, match="before quantization"):
            average_checkpoints(
                paths, tmp_path / "mean.weights.h5", strict=strict
            )
    assert not (tmp_path / "mean.weights.h5").exists()


def test_a_count_must_be_the_same_or_comes_from_the_last(tmp_path):
    paths = []
    for count in (1, 2):
        layer = keras.layers.Normalization()
        layer.adapt(numpy.ones((count * 40, 3), "float32"))
        model = keras.Sequential([keras.Input((3,)), layer])
        layer.count.assign(count)
        paths.append(save(model, tmp_path / f"{count}.weights.h5"))
    with pytest.raises(ValueError, match=r"integers .*vars/2.*strict=False"):
        average_checkpoints(paths, tmp_path / "mean.weights.h5")
    report = average_checkpoints(
        paths, tmp_path / "mean.weights.h5", strict=False
    )
    assert "integers that differ" in report.copied.values()
    found = weights_files.read(tmp_path / "mean.weights.h5")
    assert found["layers/normalization/vars/2"] == 2


# Files without a model


def files(folder, *contents):
    return [
        weights_files.write(folder / f"{number}.weights.h5", arrays)
        for number, arrays in enumerate(contents)
    ]


def averaged(folder, *contents, **options):
    """What comes out, whatever was there before."""
    paths = files(folder, *contents)
    output = folder / "mean.weights.h5"
    average_checkpoints(paths, output, overwrite=True, **options)
    return weights_files.read(output)


NUMBERS = {"allow_nan": False, "allow_infinity": False, "allow_subnormal": True}


@st.composite
def some_weights(draw, most=5):
    """Arrays of the same shapes and types in several files."""
    count = draw(st.integers(1, most))
    contents = [{} for _ in range(count)]
    for number in range(draw(st.integers(1, 4))):
        dtype = numpy.dtype(draw(st.sampled_from(FLOATS)))
        shape = draw(arrays_of.array_shapes(min_dims=0, max_side=5, min_side=0))
        small = st.floats(-1e4, 1e4, width=16)
        for content in contents:
            values = draw(arrays_of.arrays("float64", shape, elements=small))
            content[f"layers/é{number}/vars/0"] = values.astype(dtype)
    return contents


@hypothesis.given(some_weights(), st.data())
@hypothesis.settings(deadline=None, max_examples=40)
def test_the_mean_is_that_of_the_definition(tmp_path_factory, contents, draw):
    folder = tmp_path_factory.mktemp("files")
    weight = st.floats(0.1, 10)
    weights = [draw.draw(weight) for _ in contents]
    got = averaged(folder, *contents, weights=weights)
    samples = [list(content.values()) for content in contents]
    expected = reference.weighted_mean(samples, weights)
    for name, exact in zip(contents[0], expected, strict=True):
        like = contents[0][name]
        assert got[name].dtype == like.dtype
        assert got[name].shape == like.shape
        eps = float(ml_dtypes.finfo(like.dtype).eps)
        scale = max(
            numpy.abs(c[name].astype("float64")).max(initial=0)
            for c in contents
        )
        error = numpy.abs(got[name].astype("float64") - exact)
        assert error.max(initial=0) <= (0.51 * eps + 1e-15) * scale + 1e-7 * (
            like.dtype == "float16"
        )


@hypothesis.given(some_weights(), st.randoms())
@hypothesis.settings(deadline=None, max_examples=25)
def test_the_order_of_the_files_does_not_matter(
    tmp_path_factory, contents, random
):
    folder = tmp_path_factory.mktemp("files")
    paths = files(folder, *contents)
    weights = [random.uniform(0.1, 1) for _ in paths]
    pairs = list(zip(paths, weights, strict=True))
    results = []
    for number in range(2):
        output = folder / f"mean{number}.weights.h5"
        chosen, factors = zip(*pairs, strict=True)
        average_checkpoints(chosen, output, weights=factors)
        results.append(weights_files.read(output))
        random.shuffle(pairs)
    assert list(results[0]) == list(results[1])
    assert equal(results[0].values(), results[1].values())


@hypothesis.given(st.data(), st.integers(1, 12), st.sampled_from(FLOATS))
@hypothesis.settings(deadline=None, max_examples=40)
def test_copies_of_a_file_give_that_file(tmp_path_factory, draw, count, dtype):
    folder = tmp_path_factory.mktemp("files")
    dtype = numpy.dtype(dtype)
    bits = arrays_of.arrays(f"uint{8 * dtype.itemsize}", 40)
    values = draw.draw(bits).view(dtype)
    values[~numpy.isfinite(values.astype("float64"))] = 0
    content = {"vars/0": values}
    assert equal([averaged(folder, *[content] * count)["vars/0"]], [values])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_all_the_weight_on_one_file_gives_that_file(dtype, tmp_path):
    rng = numpy.random.default_rng(0)
    contents = [
        {"vars/0": rng.normal(size=1000).astype(dtype)} for _ in range(3)
    ]
    contents[0]["vars/0"][0] = -0.0
    contents[1]["vars/0"][1] = numpy.nan  # does not count
    got = averaged(tmp_path, *contents, weights=[1, 0, 0])
    assert equal(got.values(), contents[0].values())


def test_weights_that_are_not_normalized_are_taken_as_they_are(tmp_path):
    one, two = {"vars/0": numpy.full(3, 5.0)}, {"vars/0": numpy.full(3, 2.0)}
    got = averaged(tmp_path, one, two, weights=[1, -1], normalize=False)
    assert got["vars/0"].tolist() == [3, 3, 3]
    got = averaged(tmp_path, one, two, weights=[3, -1])
    assert got["vars/0"].tolist() == [6.5, 6.5, 6.5]


def test_sums_beyond_float32_are_no_problem(tmp_path):
    huge = {"vars/0": numpy.full(3, 3e38, "float32")}
    assert equal(averaged(tmp_path, huge, huge, huge).values(), huge.values())


def test_a_mean_out_of_range_is_refused(tmp_path):
    huge = {"vars/0": numpy.full(3, 3e38, "float32")}
    with pytest.raises(ValueError, match=r"range of their type.*vars/0"):
        averaged(tmp_path, huge, weights=[2], normalize=False)


def test_what_is_not_shared_is_refused_or_taken_from_the_last(tmp_path):
    base = {"a/vars/0": numpy.ones(4), "head/vars/0": numpy.ones((4, 2))}
    last = {
        "a/vars/0": numpy.zeros(4),
        "head/vars/0": numpy.zeros((4, 3)),
        "new/vars/0": numpy.ones(1),
    }
    old = base | {"old/vars/0": numpy.ones(1)}
    with pytest.raises(ValueError, match="strict=False") as error:
        averaged(tmp_path, old, base, last)
    for text in ("0.weights.h5", "2.weights.h5", "(4, 2) against", "only in"):
        assert text in str(error.value)
    got = averaged(tmp_path, old, base, last, strict=False)
    assert set(got) == set(last)
    assert got["a/vars/0"].tolist() == [2 / 3] * 4
    assert equal([got["head/vars/0"]], [last["head/vars/0"]])


def test_the_report_says_what_was_done_and_the_file_keeps_it(tmp_path):
    rng = numpy.random.default_rng(0)
    contents = [{"vars/0": rng.normal(size=5)} for _ in range(2)]
    paths = files(tmp_path, *contents)
    output = tmp_path / "mean.weights.h5"
    report = average_checkpoints(paths, output, weights=[1, 3])
    with h5py.File(output) as file:
        kept = json.loads(file.attrs["keras_wavg"])
    assert [s["coefficient"] for s in kept["sources"]] == [0.25, 0.75]
    assert [s["path"] for s in kept["sources"]] == [str(p) for p in paths]
    for source, path in zip(report.sources, paths, strict=True):
        assert source.checksum == inspect_checkpoint(path).checksum
    assert report.checksum == inspect_checkpoint(output).checksum
    assert report.checksum == kept["checksum"]
    assert "0.25" in str(report)
    assert report.averaged == ("vars/0",)


def test_layers_in_another_order_are_noted(tmp_path):
    paths = files(
        tmp_path,
        *[{"a/vars/0": numpy.ones(2), "b/vars/0": numpy.ones(2)}] * 2,
    )
    for path, names in zip(paths, ("xy", "yx"), strict=True):
        with h5py.File(path, "a") as file:
            file["a/vars"].attrs["name"] = names[0]
            file["b/vars"].attrs["name"] = names[1]
    report = average_checkpoints(paths, tmp_path / "mean.weights.h5")
    assert ["other places" in note for note in report.notes] == [True]


def test_progress_is_told(tmp_path):
    seen = []
    content = {f"{n}/vars/0": numpy.ones(100_000) for n in range(5)}
    paths = files(tmp_path, content, content)
    average_checkpoints(
        paths,
        tmp_path / "mean.weights.h5",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (8_000_000, 8_000_000)


def test_an_error_in_the_midst_stops_all_threads_and_leaves_nothing(tmp_path):
    content = {f"{n:02}/vars/0": numpy.ones(300_000) for n in range(20)}
    paths = files(tmp_path, content, content)
    calls = []

    def interrupt(done, total):
        calls.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        average_checkpoints(
            paths, tmp_path / "mean.weights.h5", progress=interrupt
        )
    assert len(calls) <= os.cpu_count()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0.weights.h5",
        "1.weights.h5",
    ]


def test_a_thousand_files(tmp_path):
    values = numpy.arange(1000.0)
    paths = files(tmp_path, *({"vars/0": numpy.full(3, v)} for v in values))
    average_checkpoints(paths, tmp_path / "mean.weights.h5")
    got = weights_files.read(tmp_path / "mean.weights.h5")
    assert got["vars/0"].tolist() == [values.mean()] * 3


def test_a_hundred_thousand_variables(tmp_path):
    rows = numpy.random.default_rng(0).normal(size=(100_000, 2))
    path = tmp_path / "0.weights.h5"
    pair, everything = h5py.h5s.create_simple((2,)), h5py.h5s.ALL
    with h5py.File(path, "w") as file:
        for start in range(0, len(rows), 1000):
            group = file.create_group(f"layers/block_{start}/vars").id
            for key in range(1000):
                name, kind = str(key).encode(), h5py.h5t.IEEE_F64LE
                made = h5py.h5d.create(group, name, kind, pair)
                made.write(everything, everything, rows[start + key])
    report = average_checkpoints([path, path], tmp_path / "mean.weights.h5")
    assert len(report.averaged) == 100_000
    with h5py.File(tmp_path / "mean.weights.h5") as file:
        for index in range(0, 100_000, 997):
            start, key = index // 1000 * 1000, index % 1000
            got = file[f"layers/block_{start}/vars/{key}"][()]
            assert got.tolist() == rows[index].tolist()


# Refusals


BAD = {
    "no paths": ({"paths": []}, "at least one checkpoint"),
    "one path": ({"paths": "a.weights.h5"}, "must be a list"),
    "bad suffix": ({"output": "mean.h5"}, "must end in '.weights.h5'"),
    "other count": ({"weights": [1]}, "1 numbers for 2 checkpoints"),
    "sum of zero": ({"weights": [1, -1]}, "sum that is not zero"),
    "sum beyond float64": (
        {"weights": [1e308, 9e307]},
        "`weights` must have a finite sum",
    ),
    "all zero": (
        {"weights": [0, 0], "normalize": False},
        "must not all be zero",
    ),
    "NaN": ({"weights": [1, float("nan")]}, "finite numbers"),
    "beyond float64": ({"weights": [10**400, 1]}, "finite numbers"),
    "text": ({"weights": [1, "2"]}, "finite numbers"),
    "optimizer": ({"optimizer": "first"}, "'drop' or 'last'"),
    "no optimizer": ({"optimizer": "last"}, "which has none"),
    "no config": ({"output": "mean.keras"}, "config of the model"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_refused_and_nothing_is_written(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    content = {"vars/0": numpy.ones(3)}
    paths = files(tmp_path, content, content)
    changed, message = BAD[name]
    arguments = {"paths": paths, "output": "mean.weights.h5"} | changed
    with pytest.raises(ValueError, match=message):
        average_checkpoints(**arguments)
    assert sorted(tmp_path.iterdir()) == paths


def test_a_file_is_overwritten_only_if_that_is_asked_for(tmp_path):
    paths = files(tmp_path, {"vars/0": numpy.ones(3)})
    for output in ("mean.weights.h5", "mean.weights.json"):
        average_checkpoints(paths, tmp_path / output)
        with pytest.raises(FileExistsError, match="overwrite=True"):
            average_checkpoints(paths, tmp_path / output)
        average_checkpoints(paths, tmp_path / output, overwrite=True)
    (tmp_path / "mean.weights.json").unlink()
    with pytest.raises(FileExistsError, match="mean_00000"):
        average_checkpoints(paths, tmp_path / "mean.weights.json")


def test_an_input_is_never_overwritten(tmp_path):
    paths = files(tmp_path, {"vars/0": numpy.ones(3)})
    (tmp_path / "link.weights.h5").symlink_to(paths[0])
    for output in (paths[0], tmp_path / "link.weights.h5"):
        with pytest.raises(ValueError, match="must not be one of"):
            average_checkpoints(paths, output, overwrite=True)


@pytest.mark.parametrize("name", ["run", "link"])
def test_an_input_is_never_replaced_by_a_shard(name, tmp_path):
    content = {"vars/0": numpy.ones(3)}
    (tmp_path / "elsewhere").mkdir()
    paths = [
        weights_files.write(
            tmp_path / "elsewhere" / f"run_0000{number}.weights.h5", content
        )
        for number in range(2)
    ]
    before = [path.read_bytes() for path in paths]
    (tmp_path / "link.weights.json").symlink_to("elsewhere/run.weights.json")
    outputs = {
        "run": tmp_path / "elsewhere" / "run.weights.json",
        "link": tmp_path / "link.weights.json",
    }
    with pytest.raises(ValueError, match=r"nor have a shard.*run_0000\d"):
        average_checkpoints(paths, outputs[name], overwrite=True)
    assert [path.read_bytes() for path in paths] == before


def test_a_shard_where_a_link_leads_to_is_overwritten_only_if_asked(tmp_path):
    (path,) = files(tmp_path, {"vars/0": numpy.ones(3)})
    (tmp_path / "elsewhere").mkdir()
    output = tmp_path / "link.weights.json"
    output.symlink_to("elsewhere/run.weights.json")
    (tmp_path / "elsewhere" / "run_00000.weights.h5").touch()
    with pytest.raises(FileExistsError, match="run_00000"):
        average_checkpoints([path], output)
    average_checkpoints([path], output, overwrite=True)
    assert inspect_checkpoint(tmp_path / "elsewhere" / "run.weights.json")


def test_a_folder_that_is_missing_is_named(tmp_path):
    paths = files(tmp_path, {"vars/0": numpy.ones(3)})
    with pytest.raises(FileNotFoundError, match="folder of `output`"):
        average_checkpoints(paths, tmp_path / "no" / "mean.weights.h5")


def test_neither_keras_nor_h5py_is_imported(tmp_path):
    paths = files(tmp_path, {"vars/0": numpy.ones(3)})
    code = (
        "import sys, keras_wavg; keras_wavg.average_checkpoints("
        f"[{str(paths[0])!r}], {str(tmp_path / 'mean.weights.h5')!r}); "
        "print({'keras', 'h5py', 'jax', 'tensorflow', 'torch', 'rich'}"
        " & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "set()"
