"""A greedy soup contains the checkpoints that improve its score."""

import numpy
import pytest
import reference
import weights_files
from weights_files import equal

from keras_wavg import greedy_soup, inspect_checkpoint

VALUES = (1.0, 5.0, 9.0, 30.0)


def files(directory, values=VALUES):
    contents = ({"vars/0": numpy.full(3, v, "float32")} for v in values)
    return weights_files.write_each(directory, *contents)


def value(path):
    return float(weights_files.read(path)["vars/0"][0])


def near(target):
    return lambda path: -abs(value(path) - target)


def saved(models, directory, suffix=".weights.h5"):
    """A model with normalization, and three checkpoints with their weights."""
    model = models.compiled(models.nested(), "adam")
    model.optimizer.build(model.trainable_variables)
    rng = numpy.random.default_rng(0)
    paths, weights = [], []
    for number in range(3):
        weights.append(
            [
                rng.uniform(0.1, 1, w.shape).astype("float32")
                for w in model.weights
            ]
        )
        model.set_weights(weights[-1])
        paths.append(directory / f"{number}{suffix}")
        (model.save if suffix == ".keras" else model.save_weights)(paths[-1])
    return model, paths, weights


def spread(model):
    """A score that depends on all weights and statistics of a model."""
    flat = numpy.concatenate([w.ravel() for w in model.get_weights()])
    return float(numpy.square(flat - 0.5).mean())


def test_checkpoints_are_added_if_the_score_does_not_fall(tmp_path):
    paths = files(tmp_path)
    report = greedy_soup(
        paths, near(6.5), tmp_path / "soup.weights.h5", verbose=0
    )
    # Alone: 5 (-1.5), 9 (-2.5), 1 (-5.5), 30. Soups: 5 + 9 = 7, with 1: 5.
    assert report.members == [paths[1], paths[2]]
    assert [t.path for t in report.trials] == [paths[i] for i in (1, 2, 0, 3)]
    assert [t.soup_score for t in report.trials[1:3]] == [-0.5, -1.5]
    assert value(tmp_path / "soup.weights.h5") == 7
    assert report.score == -0.5
    output = str(tmp_path / "soup.weights.h5")
    assert repr(report) == (
        f"SoupReport(output={output!r}, members=2, trials=4, score=-0.5)"
    )


def test_a_lower_score_is_better_with_mode_min(tmp_path):
    paths = files(tmp_path)
    report = greedy_soup(
        paths,
        lambda path: abs(value(path) - 6.5),
        tmp_path / "soup.weights.h5",
        mode="min",
        verbose=0,
    )
    assert report.members == [paths[1], paths[2]]


@pytest.mark.parametrize("seed", range(5))
def test_a_soup_is_never_worse_than_the_best_checkpoint(seed, tmp_path):
    rng = numpy.random.default_rng(seed)
    paths = files(tmp_path, rng.normal(size=6))
    scores = {}

    def score(path):
        return scores.setdefault(value(path), rng.normal())

    output = tmp_path / "soup.weights.h5"
    report = greedy_soup(paths, score, output, verbose=0)
    assert report.score >= max(trial.score for trial in report.trials)
    # The written soup is the one that was scored.
    assert scores[value(output)] == report.score


def test_checkpoints_with_equal_scores_are_added(tmp_path):
    paths = files(tmp_path)
    report = greedy_soup(
        paths, lambda path: 1, tmp_path / "soup.weights.h5", verbose=0
    )
    assert report.members == paths


def test_a_checkpoint_with_a_nan_score_is_not_added(tmp_path):
    paths = files(tmp_path)
    report = greedy_soup(
        paths,
        lambda path: float("nan") if value(path) != 9 else 1.0,
        tmp_path / "soup.weights.h5",
        verbose=0,
    )
    assert report.members == [paths[2]]
    with pytest.raises(ValueError, match="NaN for each"):
        greedy_soup(paths, lambda path: float("nan"), tmp_path / "b.weights.h5")


def test_a_model_is_scored_with_the_weights_loaded(models, tmp_path):
    def state():
        variables = model.optimizer.variables
        return [models.keras.ops.convert_to_numpy(v) for v in variables]

    model, paths, weights = saved(models, tmp_path)
    for number, variable in enumerate(model.optimizer.variables):
        variable.assign(numpy.full(variable.shape, number + 1))
    seen, before = [], state()

    def score(model):
        seen.append(model.get_weights())
        return spread(model)

    output = tmp_path / "soup.weights.h5"
    report = greedy_soup(
        paths, score, output, model=model, mode="min", verbose=0
    )
    for number in range(3):
        assert equal(seen[number], weights[number])
    members = [weights[paths.index(path)] for path in report.members]
    expected = [e.astype("float32") for e in reference.mean(members)]
    assert len(members) > 1
    assert equal(model.get_weights(), expected)
    assert spread(model) == report.score
    assert equal(state(), before)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_statistics_are_measured_for_each_candidate(suffix, models, tmp_path):
    from keras_wavg import update_bn

    model, paths, weights = saved(models, tmp_path, suffix)
    x, _ = models.data(8)
    output = tmp_path / f"soup{suffix}"
    report = greedy_soup(
        paths,
        spread,
        output,
        model=model,
        batch_norm_data=x,
        mode="min",
        verbose=0,
    )
    for trial in report.trials:
        model.set_weights(weights[paths.index(trial.path)])
        averaged = spread(model)
        update_bn(model, x, verbose=0)
        alone = spread(model)
        assert trial.score == pytest.approx(alone, rel=1e-6)
        assert trial.score != pytest.approx(averaged, rel=1e-3)
    model.load_weights(output)
    assert spread(model) == report.score
    sources = inspect_checkpoint(output).provenance["sources"]
    assert [s["path"] for s in sources] == [str(p) for p in report.members]


def test_statistics_are_measured_on_some_batches_of_endless_data(
    models, tmp_path
):
    x, y = models.data(1)

    class Endless(models.keras.utils.PyDataset):
        num_batches = None

        def __getitem__(self, index):
            return x, y

    model, paths, _ = saved(models, tmp_path)
    scores = []
    for name, data in (("a", Endless()), ("b", x)):
        report = greedy_soup(
            paths,
            spread,
            tmp_path / f"{name}.weights.h5",
            model=model,
            batch_norm_data=data,
            batch_norm_steps=1,
            verbose=0,
        )
        scores.append(report.score)
    assert scores[0] == scores[1]


def test_after_an_error_the_model_has_its_previous_weights(models, tmp_path):
    model, paths, weights = saved(models, tmp_path)

    def score(model):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        greedy_soup(paths, score, tmp_path / "soup.weights.h5", model=model)
    assert equal(model.get_weights(), weights[-1])
    assert sorted(tmp_path.iterdir()) == paths


def test_decisions_are_printed(tmp_path, capsys):
    paths = files(tmp_path)
    greedy_soup(paths, near(6.5), tmp_path / "soup.weights.h5")
    printed = capsys.readouterr().out
    assert f"{paths[0]}: -5.5" in printed
    assert f"soup with {paths[2]}: -0.5, added" in printed
    assert (
        "of 2 of 4 checkpoints, score -0.5 (best checkpoint: -1.5)" in printed
    )


def test_checkpoints_that_do_not_match_are_refused_before_scoring(
    tmp_path,
):
    paths = files(tmp_path)
    other = {"vars/0": numpy.ones(4, "float32")}
    paths.append(weights_files.write(tmp_path / "other.weights.h5", other))
    with pytest.raises(ValueError, match="same variables"):
        greedy_soup(paths, pytest.fail, tmp_path / "soup.weights.h5")


BAD = {
    "mode": ({"mode": "up"}, "`mode` must be 'auto', 'min' or 'max'"),
    "no model": ({"batch_norm_data": numpy.ones((3, 4))}, "requires `model`"),
    "no data": ({"batch_norm_steps": 1}, "requires `batch_norm_data`"),
    "no steps": (
        {"model": "m", "batch_norm_data": [1], "batch_norm_steps": 0},
        "`batch_norm_steps` must be an integer >= 1",
    ),
    "no number": ({"score": lambda path: [1, 2]}, "must return a number"),
    "no paths": ({"filepaths": []}, "at least one checkpoint"),
    "input": (
        {"output_filepath": "0.weights.h5", "overwrite": True},
        "may be one of",
    ),
    "no config": ({"output_filepath": "soup.keras"}, "must be `.keras` files"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_argument_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = files(tmp_path)
    changed, message = BAD[name]
    arguments = {
        "filepaths": paths,
        "score": value,
        "output_filepath": "soup.weights.h5",
    }
    with pytest.raises(ValueError, match=message):
        greedy_soup(**arguments | changed)
    assert sorted(tmp_path.iterdir()) == paths


def test_the_shards_of_a_soup_do_not_replace_a_checkpoint(models, tmp_path):
    model, paths, _ = saved(models, tmp_path)
    paths = [
        path.rename(tmp_path / f"run_0000{number}.weights.h5")
        for number, path in enumerate(paths)
    ]
    before = [path.read_bytes() for path in paths]
    with pytest.raises(ValueError, match="nor one of its shards"):
        greedy_soup(
            paths,
            pytest.fail,
            tmp_path / "run.weights.json",
            model=model,
            batch_norm_data=models.data(1)[0],
            overwrite=True,
        )
    assert [path.read_bytes() for path in paths] == before


def test_data_for_a_model_without_batch_normalization_are_refused(
    models, tmp_path
):
    model = models.compiled(models.dense())
    path = tmp_path / "0.weights.h5"
    model.save_weights(path)
    with pytest.raises(ValueError, match="BatchNormalization"):
        greedy_soup(
            [path],
            lambda model: 0,
            tmp_path / "soup.weights.h5",
            model=model,
            batch_norm_data=models.data(1)[0],
        )
    assert not (tmp_path / "soup.weights.h5").exists()
