"""FGE: members at the minima of the learning rate's cycle."""

from typing import Any, NamedTuple

import keras
import models
import numpy
import probe
import pytest
import reference
import reused
from models import BATCH, Samples, compiled, data, equal, fresh

from keras_wavg import FGE, SWA, CyclicLearningRate

X, Y = data(6)
CYCLE = 4


def fit(model, *callbacks, epochs=3, **options):
    options = {"batch_size": BATCH, "verbose": 0, "shuffle": False} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


def cyclic():
    cycle = CyclicLearningRate(0.02, 0.002, cycle_steps=CYCLE, shape="triangle")
    return keras.optimizers.SGD(cycle)


DENSE = reused.Reused(models.dense, cyclic)


def member_weights(model, fge):
    found = []
    for index in range(fge.members):
        with fge.member(index):
            found.append(model.get_weights())
    return found


class Rates(keras.callbacks.Callback):
    """Records the learning rate of each step."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def on_train_batch_begin(self, batch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))


class Run(NamedTuple):
    """A training with several ensembles.

    Args:
        model: The model.
        weights: The weights after each step.
        rates: The learning rate of each step.
        memory: An `FGE` with its members in memory.
        files: An `FGE` with its members in files.
        late: An `FGE` that starts at step 7.
    """

    model: Any
    weights: list
    rates: list
    memory: FGE
    files: FGE
    late: FGE


def trained(build, directory):
    model, samples, rates = compiled(build(), cyclic()), Samples(), Rates()
    ensembles = [
        FGE(CYCLE),
        FGE(CYCLE, member_dir=directory, name="files"),
        FGE(CYCLE, start_step=7, name="late"),
    ]
    fit(model, rates, samples, *ensembles)
    return Run(model, samples.weights, rates.rates, *ensembles)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    keras.config.set_dtype_policy("float32")
    return trained(models.batch_norm, tmp_path_factory.mktemp("members"))


@pytest.fixture(params=["memory", "files"])
def fge(request, run):
    return getattr(run, request.param)


def assert_members(model, fge, expected):
    assert fge.members == len(expected)
    for got, wanted in zip(member_weights(model, fge), expected, strict=True):
        # Members in memory have no random seeds, those in files have.
        pairs = zip(model.weights, got, wanted, strict=True)
        assert all(
            numpy.array_equal(a, b) for v, a, b in pairs if v.dtype == "float32"
        )


def test_members_are_the_weights_at_the_minima(fge, run):
    expected = run.weights[CYCLE // 2 - 1 :: CYCLE]
    assert len(expected) == 5
    assert_members(run.model, fge, expected)
    assert equal(run.model.get_weights(), run.weights[-1])


@pytest.mark.parametrize("kind", ["nested", "subclassed"])
def test_every_kind_of_model_has_members(kind, tmp_path):
    run = trained(models.KINDS[kind], tmp_path)
    for fge in (run.memory, run.files):
        assert_members(run.model, fge, run.weights[CYCLE // 2 - 1 :: CYCLE])
    assert equal(run.model.get_weights(), run.weights[-1])


def test_members_are_sampled_at_the_minima_of_the_learning_rate(run):
    assert_members(run.model, run.memory, run.weights[1::CYCLE])
    assert run.rates[1::CYCLE] == pytest.approx([0.002] * 5)
    assert min(run.rates) == pytest.approx(0.002)


def test_the_first_cycle_starts_at_the_start_step(run):
    expected = run.weights[7:][1::CYCLE]
    assert len(expected) == 3
    assert_members(run.model, run.late, expected)


@pytest.mark.skipif(
    keras.config.backend() == "torch",
    reason="torch has no `steps_per_execution`",
)
def test_cycles_do_not_shift_with_steps_per_execution():
    """A member that is sampled late does not delay the next one."""
    fge, samples = FGE(CYCLE), Samples()
    model = compiled(models.dense(), cyclic(), steps_per_execution=3)
    fit(model, samples, fge)
    # Of the steps 3, 6, 9, ..., the first ones from 2, 6, 10, 14 and 18 on.
    expected = [samples.weights[i] for i in (0, 1, 3, 4, 5)]
    assert all(map(equal, member_weights(model, fge), expected))


def test_ensembles_do_not_change_training(run):
    plain, alone = compiled(models.batch_norm(), cyclic()), Samples()
    fit(plain, alone)
    assert all(map(equal, run.weights, alone.weights))
    assert equal(run.model.get_weights(), plain.get_weights())


def test_predictions_are_the_mean_of_the_members(fge, run):
    received = fge.predict(X, verbose=0, batch_size=7)
    single = []
    for index in range(fge.members):
        with fge.member(index):
            single.append(run.model.predict(X, verbose=0))
    assert received == pytest.approx(numpy.mean(single, axis=0), abs=1e-6)
    assert not numpy.allclose(single[0], single[1])


def test_the_mean_of_the_members_is_the_solution_of_swa(fge, run):
    expected = reference.mean(run.weights[1::CYCLE])
    assert reference.relative_error(fge.get_weights(), expected) < 1e-6
    with fge.applied():
        assert equal(run.model.get_weights(), fge.get_weights())
    assert equal(run.model.get_weights(), run.weights[-1])


def test_swa_can_average_the_same_run():
    swa, samples = SWA(every_steps=CYCLE), Samples()
    fit(DENSE(), samples, FGE(CYCLE), swa)
    expected = reference.mean(samples.weights[CYCLE - 1 :: CYCLE])
    assert reference.relative_error(swa.get_weights(), expected) < 1e-6


def test_member_files_are_loaded_by_a_plain_model(tmp_path):
    fge, samples = FGE(CYCLE, member_dir=tmp_path), Samples()
    fit(DENSE(), samples, fge)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == [f"member_000{n}.weights.h5" for n in range(1, 6)]
    plain = models.dense()
    plain.load_weights(tmp_path / "member_0002.weights.h5")
    assert equal(plain.get_weights(), samples.weights[5])
    assert probe.kept(fge) == {}


def test_a_run_resumes_from_a_file_with_all_its_members(tmp_path):
    def ensembles():
        return FGE(CYCLE), FGE(CYCLE, member_dir=tmp_path / "m", name="files")

    model, fges = DENSE(), ensembles()
    fit(model, *fges)
    model.save_weights(tmp_path / "a.weights.h5")
    fit(model, *fges)
    # The resumed run writes these files again.
    expected = [member_weights(model, fge) for fge in fges]
    for path in (tmp_path / "m").glob("member_000[6-9]*"):
        path.unlink()
    again = ensembles()
    other = fresh(models.dense, *again, optimizer=cyclic())
    other.load_weights(tmp_path / "a.weights.h5")
    assert [fge.members for fge in again] == [5, 5]
    fit(other, *again)
    for fge, former, members in zip(again, fges, expected, strict=True):
        assert fge.members == former.members == len(members) == 9
        assert all(map(equal, member_weights(other, fge), members))
        assert equal(fge.get_weights(), former.get_weights())


def test_the_error_names_a_missing_member_file(tmp_path):
    model, samples = DENSE(), Samples()
    fge = FGE(CYCLE, member_dir=tmp_path)
    fit(model, samples, fge)
    (tmp_path / "member_0003.weights.h5").unlink()
    with pytest.raises((FileNotFoundError, OSError), match="member_0003"):
        fge.predict(X, verbose=0)
    assert equal(model.get_weights(), samples.weights[-1])
    fit(model, fge, epochs=1)


def test_a_prediction_that_fails_restores_the_weights():
    model, fge, samples = compiled(models.dense(), cyclic()), FGE(2), Samples()
    fit(model, samples, fge, epochs=1)
    with pytest.raises(Exception):  # noqa: B017, PT011
        fge.predict(numpy.ones((3, 7)), verbose=0)
    assert equal(model.get_weights(), samples.weights[-1])
    fit(model, fge, epochs=1)


def test_inputs_that_can_be_iterated_only_once_are_refused(run):
    with pytest.raises(
        ValueError, match="`x` must be data that can be iterated"
    ):
        run.memory.predict(iter([X]))
    assert equal(run.model.get_weights(), run.weights[-1])


def test_there_is_no_member_before_the_first_minimum():
    fge = FGE(1000)
    with pytest.warns(UserWarning, match=r"no average.*cycle_steps=1000"):
        fit(DENSE(), fge, epochs=1)
    assert fge.members == 0
    with pytest.raises(ValueError, match="cycle_steps=1000"):
        fge.predict(X)


@pytest.mark.parametrize("index", [-1, 5, 9, 0.5])
def test_a_member_that_does_not_exist_is_refused(index, fge):
    message = "`index` must be less than the number of members, 5"
    with pytest.raises(ValueError, match=message), fge.member(index):
        pass


@pytest.mark.parametrize("cycle_steps", [0, 1, 3, 2.5, "4"])
def test_the_steps_of_a_cycle_must_be_an_even_integer(cycle_steps):
    with pytest.raises(ValueError, match=r"`cycle_steps` must be"):
        FGE(cycle_steps)
