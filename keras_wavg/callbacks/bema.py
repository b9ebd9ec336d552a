"""Exponential moving average of the weights with a correction of its lag."""

import functools
from typing import Unpack

from keras_wavg import arguments
from keras_wavg.averages.lag_corrected import LagCorrection, PowerDecay
from keras_wavg.callbacks.manual_averaging import AveragingOptions
from keras_wavg.callbacks.weight_averaging import WeightAveraging
from keras_wavg.sampling import EverySteps


class BEMA(WeightAveraging):
    """BEMA: an exponential moving average with a correction of its lag.

    Every `every_steps` optimizer steps,

        ema += b * (weights - ema)
        average = ema + a * (weights - initial)

        b = (lag + multiplier * t) ** -ema_power
        a = (lag + multiplier * t) ** -bias_power

    where `initial` is the weights at step `start_step`, from which `ema`
    starts, and `t` is the number of optimizer steps (not updates) since then. A
    moving average lags behind weights that drift; the second term corrects part
    of the lag. The correction depends on `t` alone: if the weights stop moving,
    the average is ahead of them by `a * (weights - initial)`. (In `profile()`
    the correction adds `a` to the coefficient of the latest sample and
    subtracts it from that of the initial weights.)

    The correction applies to trained weights. Moving statistics of
    `BatchNormalization` are averaged without it, so that variances stay
    positive. So are the weights of frozen layers, which keep their values bit
    for bit.

    Memory: `ema`, `initial` and `average` in float32 (float64 for float64
    weights), and the raw weights while the average is in the model, all in host
    memory; the device stores nothing, so there is no `device` argument. Each
    update copies the weights to the host and waits for the copy, so updates are
    rare by default. Files that Keras saves grow by three copies of the weights,
    and training resumes exactly.

    In all other respects it works like `EMA`. The average starts from the
    weights before training, so the model must be built by then.

    Args:
        every_steps: Positive integer, the number of optimizer steps between
            updates (phi in the paper). Defaults to `400`.
        ema_power: Non-negative float, how fast the coefficient of a new sample
            in `ema` decreases (kappa). With `0` it stays 1, and `ema` equals
            the weights. Defaults to `0.5`.
        bias_power: Non-negative float, how fast the correction decreases (eta).
            With `0` it is constant. Defaults to `0.2`.
        lag: Float >= 1, the age at which the average starts (rho). Defaults to
            `10.0`.
        multiplier: Non-negative float, the factor of the time `t` (gamma).
            Defaults to `1.0`.
        start_step: Non-negative integer, the optimizer step, counted from 0,
            whose weights are `initial` and from which `t` counts (tau, the
            burn-in). TRL's `BEMACallback` counts `t` from the first optimizer
            step, which is the same without a burn-in. Defaults to `0`.
        **options: `include`, `swap`, `name`, `batch_norm_data` and
            `batch_norm_steps`, see `EMA`. `name` defaults to `"bema"`.

    Example:

    >>> import keras, numpy, keras_wavg
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x, y = numpy.ones((64, 2)), numpy.ones((64, 1))
    >>> bema = keras_wavg.BEMA(every_steps=2)
    >>> history = model.fit(x, y, epochs=3, verbose=0, callbacks=[bema])
    >>> averaged = model.get_weights()
    >>> bema.restore()
    >>> raw = model.get_weights()

    Raises:
        ValueError: If an argument is out of its range, if `include` matches no
            weight, or if the model is not built when training starts.

    References:
        [Block and Zhang, 2025](https://arxiv.org/abs/2508.00180), "EMA without
        the lag: bias-corrected iterate averaging schemes"
    """

    def __init__(
        self,
        every_steps: int = 400,
        *,
        ema_power: float = 0.5,
        bias_power: float = 0.2,
        lag: float = 10.0,
        multiplier: float = 1.0,
        start_step: int = 0,
        **options: Unpack[AveragingOptions],
    ) -> None:
        self.every_steps = arguments.integer(
            "every_steps", every_steps, at_least=1
        )
        self.ema_power = arguments.number("ema_power", ema_power, at_least=0)
        self.bias_power = arguments.number("bias_power", bias_power, at_least=0)
        self.lag = arguments.number("lag", lag, at_least=1)
        self.multiplier = arguments.number("multiplier", multiplier, at_least=0)
        self.start_step = arguments.integer(
            "start_step", start_step, at_least=0
        )
        fading = functools.partial(
            PowerDecay, lag=self.lag, multiplier=self.multiplier
        )
        super().__init__(
            LagCorrection(
                fading(self.ema_power),
                fading(self.bias_power),
                self.start_step,
            ),
            EverySteps(self.every_steps, self.start_step),
            **options,
        )
