"""`WeightAveraging`: subclasses, `isinstance` and `repr`."""

import pickle
from dataclasses import dataclass

import models
import numpy
import pytest
import reference
import reused
from models import BATCH, Samples, data, equal

from keras_wavg import (
    BEMA,
    EMA,
    FGE,
    LAWA,
    SWA,
    SWAG,
    AverageEvaluator,
    Lookahead,
    PowerEMA,
    SwitchEMA,
    WeightAveraging,
)
from keras_wavg.averages.scheduled import Scheduled
from keras_wavg.sampling import EverySteps
from keras_wavg.schedules import Schedule

X, Y = data(6)
ALL = [
    EMA(),
    SwitchEMA(),
    PowerEMA(),
    BEMA(),
    Lookahead(),
    SWA(),
    LAWA(),
    SWAG(),
    FGE(2),
]


@dataclass(frozen=True)
class PolynomialDecay(Schedule):
    """`(eta + 1) / (n + eta)` for the n-th step."""

    eta: float
    starts_from_initial = False

    def coefficient(self, steps, interval, ops=None):
        return (self.eta + 1) / (steps + self.eta)


class PolynomialAveraging(WeightAveraging):
    """The average of Shamir and Zhang, as a user would write it."""

    def __init__(self, eta=3.0, **options):
        self.eta = eta
        method = Scheduled((PolynomialDecay(eta),))
        super().__init__(method, EverySteps(1), **options)


def fit(model, *callbacks):
    model.fit(
        X, Y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[*callbacks]
    )


def polynomial(samples, eta):
    average = [numpy.zeros(w.shape) for w in samples[0]]
    for n, weights in enumerate(samples, 1):
        coefficient = (eta + 1) / (n + eta)
        average = [
            a + coefficient * (w - a)
            for a, w in zip(average, weights, strict=True)
        ]
    return average


def test_a_subclass_with_its_own_schedule_is_averaged_as_defined(tmp_path):
    model, samples = reused.dense(), Samples()
    average = PolynomialAveraging(8.0)
    fit(model, samples, average)
    expected = polynomial(samples.weights, 8.0)
    assert reference.relative_error(average.get_weights(), expected) < 1e-6
    assert average.name == "polynomial_averaging"
    assert average.profile().coefficients.sum() == pytest.approx(1)
    path = models.save(model, tmp_path / "a.keras")
    again = PolynomialAveraging(8.0)
    other = models.fresh(models.dense, again)
    other.load_weights(path)
    assert equal(again.get_weights(), average.get_weights())


@pytest.mark.parametrize("average", ALL, ids=lambda a: a.name)
def test_each_averaging_callback_is_a_weight_averaging(average):
    assert isinstance(average, WeightAveraging)


def test_repr_names_the_settings_that_are_not_defaults():
    assert repr(EMA(0.99, swap=False)) == (
        "<EMA(decay=0.99, swap=False, name='ema'): no model>"
    )
    assert repr(EMA()) == "<EMA(name='ema'): no model>"
    assert repr(FGE(4)) == "<FGE(cycle_steps=4, name='fge'): no model>"
    shown = repr(SWA(2, every_steps=3, batch_norm_data=numpy.ones((9, 9))))
    assert shown.startswith("<SWA(start_epoch=2, every_steps=3, name='swa', ")
    assert "batch_norm_data=ndarray" in shown


@pytest.mark.parametrize("data", [(X, Y), [X, Y], {"x": X}, (X,), ((X, Y),)])
def test_repr_does_not_show_the_elements_of_data(data):
    kind = type(data).__name__
    expected = f"<EMA(name='ema', batch_norm_data={kind}): no model>"
    assert repr(EMA(batch_norm_data=data)) == expected


@pytest.mark.parametrize("average", ALL, ids=lambda a: a.name)
def test_repr_is_one_line(average):
    assert len(repr(average).splitlines()) == 1


def test_repr_says_what_the_model_holds():
    model, ema, swa = reused.dense(), EMA(0.9), SWA(swap=False)
    ema.set_model(model)
    assert repr(ema).endswith(": no average yet>")
    fit(model, ema, swa)
    assert repr(ema).endswith(": average of 12 optimizer steps, in the model>")
    assert repr(swa).endswith(": average of 2 samples>")
    with swa.applied():
        assert repr(swa).endswith(": average of 2 samples, in the model>")
        assert repr(ema).endswith(": average of 12 optimizer steps>")
    ema.restore()
    assert repr(ema).endswith(": average of 12 optimizer steps>")
    copied = pickle.loads(pickle.dumps(ema))  # noqa: S301
    assert "with the average of the callback it copies" in repr(copied)


def test_repr_of_an_evaluator_names_its_averages():
    evaluator = AverageEvaluator(X, Y, averages=[EMA(), SWA()], every_epochs=2)
    assert repr(evaluator) == (
        "AverageEvaluator(averages=['ema', 'swa'], every_epochs=2, name='val')"
    )
