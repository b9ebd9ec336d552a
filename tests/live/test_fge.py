"""FGE: members at the minima of the learning rate's cycle."""

import keras
import models
import numpy
import probe
import pytest
import reference
from models import BATCH, Samples, compiled, data, equal

from keras_wavg import FGE, SWA, TriangularLearningRate

X, Y = data(6)
CYCLE = 4


def fit(model, *callbacks, epochs=3, **options):
    options = {"batch_size": BATCH, "verbose": 0, "shuffle": False} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


def cyclic(build=models.dense, **options):
    cycle = TriangularLearningRate(0.02, 0.002, cycle_steps=CYCLE)
    return compiled(build(), keras.optimizers.SGD(cycle), **options)


def trained(build=models.dense, **options):
    model, fge, samples = cyclic(build), FGE(CYCLE, **options), Samples()
    fit(model, samples, fge)
    return model, fge, samples.weights


def held(model, fge):
    found = []
    for index in range(fge.members):
        with fge.member(index):
            found.append(model.get_weights())
    return found


@pytest.fixture(params=["memory", "files"])
def options(request, tmp_path):
    return {"folder": tmp_path / "m"} if request.param == "files" else {}


@pytest.mark.parametrize(
    "kind", ["dense", "batch_norm", "nested", "subclassed"]
)
def test_members_are_the_weights_at_the_minima(kind, options):
    model, fge, walk = trained(models.KINDS[kind], **options)
    expected = walk[CYCLE // 2 - 1 :: CYCLE]
    assert fge.members == len(expected) == 5
    received = held(model, fge)
    for got, wanted in zip(received, expected, strict=True):
        # Random seeds are the model's own in memory, a file has them all.
        pairs = zip(model.weights, got, wanted, strict=True)
        assert all(
            numpy.array_equal(a, b) for v, a, b in pairs if v.dtype == "float32"
        )
    assert equal(model.get_weights(), walk[-1])


def test_the_learning_rate_is_at_its_minimum_where_a_member_is_taken():
    class Rates(keras.callbacks.Callback):
        rates = ()

        def on_train_batch_begin(self, batch, logs=None):
            rate = float(self.model.optimizer.learning_rate)
            self.rates = (*self.rates, rate)

    model, fge, samples, rates = cyclic(), FGE(CYCLE), Samples(), Rates()
    fit(model, rates, samples, fge)
    for got, wanted in zip(
        held(model, fge), samples.weights[1::CYCLE], strict=True
    ):
        assert equal(got, wanted)
    assert rates.rates[1::CYCLE] == pytest.approx([0.002] * 5)


def test_the_first_cycle_begins_at_the_start():
    model, fge, samples = cyclic(), FGE(CYCLE, start=7), Samples()
    fit(model, samples, fge)
    expected = samples.weights[7:][1::CYCLE]
    assert fge.members == len(expected) == 3
    assert all(map(equal, held(model, fge), expected))


@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="torch runs no groups of batches"
)
def test_groups_of_batches_keep_the_phase():
    """A group may go past a minimum; the next one is not late for that."""
    fge, samples = FGE(CYCLE), Samples()
    model = cyclic(steps_per_execution=3)
    fit(model, samples, fge)
    # Steps 3, 6, 9, ... of which the first behind 2, 6, 10, 14 and 18.
    expected = [samples.weights[i] for i in (0, 1, 3, 4, 5)]
    assert all(map(equal, held(model, fge), expected))


def test_training_is_left_as_it_is(options):
    model, _, walk = trained(models.batch_norm, **options)
    alone, plain = Samples(), cyclic(models.batch_norm)
    fit(plain, alone)
    assert equal(walk[-1], alone.weights[-1])
    assert equal(model.get_weights(), plain.get_weights())


def test_predictions_are_the_mean_of_the_members(options):
    model, fge, _ = trained(models.batch_norm, **options)
    received = fge.predict(X, verbose=0, batch_size=7)
    single = []
    for index in range(fge.members):
        with fge.member(index):
            single.append(model.predict(X, verbose=0))
    assert received == pytest.approx(numpy.mean(single, axis=0), abs=1e-6)
    assert not numpy.allclose(single[0], single[1])


def test_the_mean_of_the_members_is_the_solution_of_swa(options):
    model, fge, walk = trained(models.batch_norm, **options)
    expected = reference.mean(walk[1::CYCLE])
    assert reference.relative_error(fge.get_weights(), expected) < 1e-6
    with fge.applied():
        assert equal(model.get_weights(), fge.get_weights())
    assert equal(model.get_weights(), walk[-1])


def test_swa_of_the_same_run_rides_along():
    model, fge, swa = cyclic(), FGE(CYCLE), SWA(every_steps=CYCLE)
    samples = Samples()
    fit(model, samples, fge, swa)
    expected = reference.mean(samples.weights[CYCLE - 1 :: CYCLE])
    assert reference.relative_error(swa.get_weights(), expected) < 1e-6


def test_files_are_weights_files_of_a_plain_model(tmp_path):
    _, fge, walk = trained(folder=tmp_path)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == [f"member_000{n}.weights.h5" for n in range(1, 6)]
    plain = models.dense()
    plain.load_weights(tmp_path / "member_0002.weights.h5")
    assert equal(plain.get_weights(), walk[5])
    assert probe.kept(fge) == {}


def test_a_run_goes_on_from_a_file_with_all_its_members(options, tmp_path):
    model, fge, _ = trained(**options)
    model.save_weights(tmp_path / "a.weights.h5")
    again, other = FGE(CYCLE, **options), cyclic()
    other.optimizer.build(other.trainable_variables)
    again.set_model(other)
    other.load_weights(tmp_path / "a.weights.h5")
    assert again.members == 5
    fit(model, fge)
    fit(other, again)
    assert again.members == fge.members == 9
    assert all(map(equal, held(other, again), held(model, fge)))
    assert equal(again.get_weights(), fge.get_weights())


def test_a_missing_file_of_a_member_is_named(tmp_path):
    model, fge, walk = trained(folder=tmp_path)
    (tmp_path / "member_0003.weights.h5").unlink()
    with pytest.raises((FileNotFoundError, OSError), match="member_0003"):
        fge.predict(X, verbose=0)
    assert equal(model.get_weights(), walk[-1])
    fit(model, fge, epochs=1)


def test_a_prediction_that_fails_leaves_the_weights():
    model, fge, walk = trained()
    with pytest.raises(Exception):  # noqa: B017, PT011
        fge.predict(numpy.ones((3, 7)), verbose=0)
    assert equal(model.get_weights(), walk[-1])
    fit(model, fge, epochs=1)


def test_inputs_that_are_gone_after_one_member_are_refused():
    model, fge, walk = trained()
    with pytest.raises(ValueError, match="`x` must be data that can be gone"):
        fge.predict(iter([X]))
    assert equal(model.get_weights(), walk[-1])


def test_there_is_no_member_before_the_first_minimum():
    fge = FGE(1000)
    with pytest.warns(UserWarning, match=r"no average.*cycle_steps=1000"):
        fit(compiled(models.dense()), fge)
    assert fge.members == 0
    with pytest.raises(ValueError, match="cycle_steps=1000"):
        fge.predict(X)


@pytest.mark.parametrize("index", [-1, 5, 9, 0.5])
def test_a_member_that_does_not_exist_is_refused(index):
    _, fge, _ = trained()
    message = r"`index` must be in the range \[0, 5\)"
    with pytest.raises(ValueError, match=message), fge.member(index):
        pass


@pytest.mark.parametrize("cycle_steps", [0, 1, 3, 2.5, "4"])
def test_a_cycle_must_have_a_middle(cycle_steps):
    with pytest.raises(ValueError, match=r"`cycle_steps` must be"):
        FGE(cycle_steps)
