"""Exponential moving average of the weights, corrected for its lag."""

import functools

from keras_wavg import arguments
from keras_wavg.arguments import Include
from keras_wavg.averages.lag_corrected import Fading, LagCorrection
from keras_wavg.callbacks.averaging import WeightAveraging
from keras_wavg.plan import Plan
from keras_wavg.sampling import EverySteps


class BEMA(WeightAveraging):
    """BEMA: an exponential moving average, corrected for its lag.

    After every `every` optimizer steps,

        ema += b * (weights - ema)
        average = ema + a * (weights - initial)

        b = (lag + multiplier * t) ** -ema_power
        a = (lag + multiplier * t) ** -bias_power

    where `initial` is the weights at the step `start`, at which `ema` begins,
    and `t` counts the optimizer steps (not the updates) since then. A moving
    average lags behind weights that drift; the second term takes it some of
    the way after them. That term fades with `t` alone: weights that have come
    to rest have an average that is ahead of them by `a * (weights - initial)`.
    (In `profile()` it is a share of the latest sample, and as much less than
    nothing of the weights at the start.)

    The correction is for what gradients train. Moving statistics of
    `BatchNormalization` are averaged without it, so that no variance becomes
    negative, and so is a layer while it is frozen: one that never moved stays
    what it is, bit for bit.

    Memory: `ema`, `initial` and `average` in float32 (float64 for float64
    weights), and the raw weights while the average is in the model, all in host
    memory and nothing on the device. Each update copies the weights there and
    waits for it, which is why it is made rarely. A file that Keras writes of
    the model grows by three copies of the weights, and training goes on from
    it exactly.

    All else is as with `EMA`. The average begins at the weights before
    training, so the model must be built by then.

    Args:
        every: Positive integer, the optimizer steps from one update to the
            next (phi in the paper). Defaults to `400`.
        ema_power: Non-negative float, how fast the share of a new sample in
            `ema` fades (kappa). With `0` the past has no share: `ema` is the
            weights. Defaults to `0.5`.
        bias_power: Non-negative float, how fast the correction fades (eta).
            With `0` it does not. Defaults to `0.2`.
        lag: Float of at least 1, the age at which the average begins (rho).
            Defaults to `10.0`.
        multiplier: Non-negative float, by which time is multiplied (gamma).
            Defaults to `1.0`.
        start: Integer, the optimizer step, counted from 0, at whose weights the
            average begins and from which on `t` counts (tau, the burn-in).
            TRL's `BEMACallback` counts `t` from the first step of all, which is
            the same without a burn-in. Defaults to `0`.
        swap: See `EMA`. Defaults to `True`.
        include: See `EMA`. Defaults to `None`.
        name: See `EMA`. Defaults to `"bema"`.

    Example:

    >>> import keras, numpy, keras_wavg
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x, y = numpy.ones((64, 2)), numpy.ones((64, 1))
    >>> bema = keras_wavg.BEMA(every=2)
    >>> history = model.fit(x, y, epochs=3, verbose=0, callbacks=[bema])
    >>> averaged = model.get_weights()
    >>> bema.restore()
    >>> raw = model.get_weights()

    Raises:
        ValueError: If an argument is out of its range, if `include` matches no
            weight, or if the model is not built when training begins.

    References:
        [Block and Zhang, 2025](https://arxiv.org/abs/2508.00180), "EMA without
        the lag: bias-corrected iterate averaging schemes"
    """

    def __init__(
        self,
        every: int = 400,
        *,
        ema_power: float = 0.5,
        bias_power: float = 0.2,
        lag: float = 10.0,
        multiplier: float = 1.0,
        start: int = 0,
        swap: bool = True,
        include: Include = None,
        name: str | None = None,
    ) -> None:
        self.every = arguments.integer("every", every, at_least=1)
        self.ema_power = arguments.number("ema_power", ema_power, at_least=0)
        self.bias_power = arguments.number("bias_power", bias_power, at_least=0)
        self.lag = arguments.number("lag", lag, at_least=1)
        self.multiplier = arguments.number("multiplier", multiplier, at_least=0)
        self.start = arguments.integer("start", start, at_least=0)
        fading = functools.partial(
            Fading, lag=self.lag, multiplier=self.multiplier
        )
        plan = Plan(
            name=arguments.name(name, "bema"),
            method=LagCorrection(
                fading(self.ema_power), fading(self.bias_power), self.start
            ),
            sampling=EverySteps(self.every, self.start),
            include=arguments.include(include),
        )
        super().__init__(plan, swap=swap)
