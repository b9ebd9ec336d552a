"""Exponential moving average of the weights."""

from typing import Any

from keras_wavg import arguments
from keras_wavg.arguments import Include
from keras_wavg.averages.scheduled import Scheduled
from keras_wavg.callbacks.averaging import WeightAveraging
from keras_wavg.plan import Plan
from keras_wavg.sampling import EverySteps
from keras_wavg.schedules import (
    BiasCorrected,
    ConstantDecay,
    FromInitial,
    WarmUpDecay,
    decay_from_half_life,
)
from keras_wavg.warning import warn

# An object of its own, to tell `EMA(0.999, half_life=10)`, which names both,
# from `EMA(half_life=10)`.
_DEFAULT_DECAY = float("0.999")
# Of the weights from before training, before a warning says so.
_TOO_MUCH = 0.05


class EMA(WeightAveraging):
    """Exponential moving average of the weights: the past fades step by step.

    After each optimizer step,

        average += coefficient * (weights - average)

    where the coefficient of the n-th step is, for `d = decay`,

    - `(1 - d) / (1 - d**n)` with bias correction (the default): no trace of the
      weights from before training;
    - `1 - d` without: the textbook recursion
      `average = d * average + (1 - d) * weights`, started from the weights
      before training;
    - with `warmup=True`, the same with `min(d, (1 + n) / (10 + n))` as the
      decay of the n-th step.

    In `fit` the average is in the model from the end of an epoch's last batch,
    through validation and the other callbacks, until the next epoch begins;
    after `fit` it stays there, and `restore()` gives the raw weights back.
    Training itself is left as it is, to the last bit. Pass the callback in a
    list.

    Files that Keras writes of the model carry the average along, and training
    goes on from them exactly: with `keras.callbacks.BackupAndRestore`, or with
    `set_model(model)` before `model.load_weights(path)`.

    Averaged is every floating-point weight of the model, moving statistics of
    `BatchNormalization` included, in float32 whatever the weight's dtype (and
    float64 for float64 weights). A step that leaves a weight NaN or infinite
    is not averaged in.

    The average goes on in a second `fit` of the same model. It begins anew if
    the weights were replaced after the first, and for another model.

    Args:
        decay: Float in [0, 1), the share of itself that the average keeps in
            one optimizer step. Defaults to `0.999`.
        half_life: Positive float, instead of `decay`: the number of optimizer
            steps in which the average forgets half of its past,
            `decay = 2 ** (-1 / half_life)`. Defaults to `None`. See
            `keras_wavg.decay_from` for epochs, samples and other horizons.
        bias_correction: Boolean, whether the weights from before training have
            no share in the average. Defaults to `True`.
        warmup: Boolean, whether the decay grows from 2/11 up to `decay`.
            Defaults to `False`.
        every: Integer, the number of optimizer steps from one update to the
            next. An update then fades the past by `decay**every`. Defaults to
            `1`.
        start: Integer, the optimizer step, counted from 0, from which samples
            count. Defaults to `0`.
        swap: Boolean, whether `fit`, `evaluate` and `predict` find the average
            in the model. At most one callback in a list can. Defaults to
            `True`.
        include: A regular expression, searched in the path of each weight, or
            a function from a path to a boolean. What is left out stays raw.
            Defaults to `None`, every weight.
        name: String, by which a saved file tells the averages of one model
            apart. Defaults to `"ema"`.
        device: `None` to keep the averages beside their weights, or `"cpu"` to
            keep them in host memory: choose `every` so that the copying hides
            behind the steps. Defaults to `None`.
        overwrite_every: Integer, the number of optimizer steps after which the
            weights that are being trained become their average (not the moving
            statistics, and the optimizer keeps its state), as with Keras'
            `ema_overwrite_frequency`. The steps of an epoch make it Switch EMA.
            Defaults to `None`, never.

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

    In a loop of one's own:

    ```python
    ema.set_model(model)
    for batch in data:
        train_step(batch)
        ema.update()
    with ema.applied():
        model.evaluate(x_test, y_test)
    ```

    Raises:
        ValueError: If an argument is out of its range, if both `decay` and
            `half_life` are given, if `include` matches no weight, or if an
            average that begins at the weights before training finds a model
            that is not built.

    References:
        - [Polyak and Juditsky, 1992](https://doi.org/10.1137/0330046)
        - [Kingma and Ba, 2015](https://arxiv.org/abs/1412.6980), section 3, for
          the bias correction
        - [Morales-Brotons et al., 2024](https://arxiv.org/abs/2411.18704)
        - [Li et al., 2024](https://arxiv.org/abs/2402.09240), Switch EMA
    """

    def __init__(
        self,
        decay: float = _DEFAULT_DECAY,
        *,
        half_life: float | None = None,
        bias_correction: bool = True,
        warmup: bool = False,
        every: int = 1,
        start: int = 0,
        swap: bool = True,
        include: Include = None,
        name: str | None = None,
        device: str | None = None,
        overwrite_every: int | None = None,
    ) -> None:
        self.decay = _decay(decay, half_life)
        self.half_life = half_life
        self.bias_correction = bias_correction
        self.warmup = warmup
        self.every = arguments.integer("every", every, at_least=1)
        self.start = arguments.integer("start", start, at_least=0)
        decays = WarmUpDecay if warmup else ConstantDecay
        schedules = BiasCorrected if bias_correction else FromInitial
        plan = Plan(
            name=arguments.name(name, "ema"),
            method=Scheduled(
                (schedules(decays(self.decay)),),
                self.start,
                arguments.device(device),
            ),
            sampling=EverySteps(self.every, self.start),
            include=arguments.include(include),
            overwrite_every=arguments.integer_or_none(
                "overwrite_every", overwrite_every, at_least=1
            ),
        )
        super().__init__(plan, swap=swap)

    def on_train_end(self, logs: Any = None) -> None:
        """Warn of a horizon that is longer than the training."""
        super().on_train_end(logs)
        if self.bias_correction or self._average() is None:
            return
        share = self.profile().initial_share
        if share > _TOO_MUCH:
            warn(
                f"{share:.0%} of this `EMA` are still the weights from before "
                "training. Lower its decay or train longer, or pass "
                f"`bias_correction=True`. Received: decay={self.decay}, after "
                f"{self._running.clock.now} optimizer steps.",
            )


def _decay(decay: float, half_life: float | None) -> float:
    if half_life is None:
        return arguments.decay(decay)
    if decay is not _DEFAULT_DECAY:
        raise ValueError(
            "Only one of `decay` and `half_life` can be given. Received: "
            f"decay={decay!r}, half_life={half_life!r}"
        )
    steps = arguments.positive("half_life", half_life)
    return arguments.decay(decay_from_half_life(steps))
