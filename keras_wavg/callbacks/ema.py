"""Exponential moving average of the weights."""

from typing import Any

from keras_wavg import arguments
from keras_wavg.arguments import Include
from keras_wavg.averages.scheduled import Scheduled
from keras_wavg.callbacks.weight_averaging import WeightAveraging
from keras_wavg.sampling import EverySteps
from keras_wavg.schedules import (
    BiasCorrected,
    ConstantDecay,
    FromInitial,
    Schedule,
    WarmupDecay,
)
from keras_wavg.warning import warn

# The coefficient of the initial weights above which a warning is issued.
_LARGE_COEFFICIENT = 0.05


class EMA(WeightAveraging):
    """Exponential moving average of the weights.

    After each optimizer step,

        average += coefficient * (weights - average)

    where the coefficient of the n-th step is, for `d = decay`,

    - `(1 - d) / (1 - d**n)` with bias correction (the default): the weights
      from before training are not part of the average;
    - `1 - d` without bias correction: the textbook recursion
      `average = d * average + (1 - d) * weights`, which starts from the weights
      before training;
    - with `warmup=True`, the same with `min(d, (1 + n) / (10 + n))` as the
      decay of the n-th step.

    In `fit` the average is in the model from the end of the last batch of an
    epoch, through validation and the other callbacks, until the next epoch
    starts. After `fit` the model holds the average, and `restore()` restores
    the raw weights. Training itself is not changed: losses are the same, bit
    for bit, as without the callback. Pass the callback in a list.

    Keras saves the state of the average with the model, and training resumes
    exactly: with `keras.callbacks.BackupAndRestore`, with `keras_wavg.resume`,
    or with `set_model(model)` before `model.load_weights(path)`.

    Every floating-point weight of the model is averaged, including the moving
    statistics of `BatchNormalization`, in float32 (float64 for float64
    weights). Elements that are NaN or infinite after a step are not averaged
    at that step.

    A second `fit` of the same model continues the average. It restarts, with a
    warning, if the weights were replaced after the first `fit`.

    Args:
        decay: Float in [0, 1), the factor by which the coefficients of past
            steps shrink in one optimizer step. To derive it from a half-life,
            in steps, epochs or samples, see `keras_wavg.decay_from`. Defaults
            to `0.999`.
        bias_correction: Boolean, whether to exclude the weights from before
            training from the average. Defaults to `True`.
        warmup: Boolean, whether the decay grows from 2/11 to `decay`. Defaults
            to `False`.
        every_steps: Positive integer, the number of optimizer steps between
            updates. An update then shrinks past coefficients by
            `decay**every_steps`. Defaults to `1`.
        start_step: Non-negative integer, the optimizer step, counted from 0,
            at which averaging starts. Defaults to `0`.
        include: String, a regular expression that is searched in the path of
            each weight, or a function from a path to a boolean. Excluded
            weights keep their raw values. Defaults to `None`, every weight.
        swap: Boolean, whether `fit`, `evaluate` and `predict` use the average.
            At most one callback in a list can have `swap=True`. Defaults to
            `True`.
        name: String that identifies the average in a saved model. Two averages
            of a model must have different names. Defaults to `"ema"`.
        device: `None` to store the average on the device of each weight, or
            `"cpu"` to store it in host memory. Defaults to `None`.
        target: A Keras model or layer, such as a teacher in the `train_step` of
            the model, whose weights are set to the average after each update.
            Its weights must have the names, shapes and order of the averaged
            weights, and are not averaged themselves. Until the first update
            it has the weights from the start of `fit`. On JAX it must be an
            attribute of the model if a compiled step calls it. Defaults to
            `None`.
        batch_norm_data: Data to measure the moving statistics of
            `BatchNormalization` with, before each evaluation of an average that
            has changed and at the end of `fit`. Anything that `update_bn`
            accepts and that can be iterated repeatedly, such as the training
            inputs. Defaults to `None`: statistics are averaged like weights.
        batch_norm_steps: Positive integer, the number of batches of
            `batch_norm_data` to use. Required for infinite data. Defaults to
            `None`, all batches.

    Example:

    >>> import keras, numpy, keras_wavg
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x, y = numpy.ones((64, 2)), numpy.ones((64, 1))
    >>> ema = keras_wavg.EMA(0.9)
    >>> history = model.fit(x, y, epochs=2, verbose=0, callbacks=[ema])
    >>> averaged = model.get_weights()
    >>> ema.restore()
    >>> raw = model.get_weights()

    In a custom training loop:

    ```python
    ema.set_model(model)
    for batch in data:
        train_step(batch)
        ema.update()
    with ema.applied():
        model.evaluate(x_test, y_test)
    ```

    Raises:
        ValueError: If an argument is out of its range, if `include` matches no
            weight, if the weights of `target` do not fit or are trained, or if
            an average that starts from the weights before training finds a
            model that is not built.

    References:
        - [Polyak and Juditsky, 1992](https://doi.org/10.1137/0330046)
        - [Kingma and Ba, 2015](https://arxiv.org/abs/1412.6980), section 3, for
          the bias correction
        - [Morales-Brotons et al., 2024](https://arxiv.org/abs/2411.18704)
    """

    def __init__(
        self,
        decay: float = 0.999,
        *,
        bias_correction: bool = True,
        warmup: bool = False,
        every_steps: int = 1,
        start_step: int = 0,
        include: Include = None,
        swap: bool = True,
        name: str | None = None,
        device: str | None = None,
        target: Any = None,
        batch_norm_data: Any = None,
        batch_norm_steps: int | None = None,
    ) -> None:
        self.decay = arguments.decay(decay)
        self.bias_correction = bias_correction
        self.warmup = warmup
        self.every_steps = arguments.integer(
            "every_steps", every_steps, at_least=1
        )
        self.start_step = arguments.integer(
            "start_step", start_step, at_least=0
        )
        self.device = arguments.device(device)
        schedule = exponential_schedule(self.decay, bias_correction, warmup)
        super().__init__(
            Scheduled((schedule,), self.start_step, self.device),
            EverySteps(self.every_steps, self.start_step),
            target=target,
            include=include,
            swap=swap,
            name=name,
            batch_norm_data=batch_norm_data,
            batch_norm_steps=batch_norm_steps,
        )

    def on_train_end(self, logs: Any = None) -> None:
        """Warn if the average covers more steps than training had."""
        super().on_train_end(logs)
        if self.bias_correction or self._average() is None:
            return
        coefficient = self.profile().initial_coefficient
        if coefficient > _LARGE_COEFFICIENT:
            warn(
                f"The weights from before training are still {coefficient:.0%} "
                "of this `EMA`. Lower its decay, train longer, or pass "
                f"`bias_correction=True`. Received: decay={self.decay}, after "
                f"{self._model_average.clock.now} optimizer steps.",
            )


def exponential_schedule(
    decay: float,
    bias_correction: bool,
    warmup: bool,
) -> Schedule:
    """The schedule of an exponential moving average. See `EMA`."""
    decays = (WarmupDecay if warmup else ConstantDecay)(decay)
    return BiasCorrected(decays) if bias_correction else FromInitial(decays)
