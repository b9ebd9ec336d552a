"""Lookahead: slow weights that follow the trained ones, and lead them back."""

from keras_wavg import arguments
from keras_wavg.arguments import Include
from keras_wavg.averages.scheduled import Scheduled
from keras_wavg.callbacks.averaging import WeightAveraging
from keras_wavg.plan import Plan
from keras_wavg.sampling import EverySteps
from keras_wavg.schedules import ConstantDecay, FromInitial


class Lookahead(WeightAveraging):
    """Lookahead: "k steps forward, 1 step back".

    After every `every` optimizer steps,

        slow += alpha * (weights - slow)
        weights = slow

    where `slow` starts at the weights before training. It is `EMA` without bias
    correction, written back at each of its updates, and keeps its promises: the
    slow weights are in the model for validation, travel in Keras' files, and
    training goes on from them exactly. The optimizer keeps its state. Moving
    statistics of `BatchNormalization` are averaged for validation and not
    written back.

    Args:
        every: Positive integer, the optimizer steps between two
            synchronizations, `k` in the paper. Defaults to `5`.
        alpha: Float in (0, 1], the slow weights' step size. Defaults to `0.5`.
        swap: See `EMA`. Defaults to `True`.
        include: See `EMA`. Defaults to `None`.
        name: See `EMA`. Defaults to `"lookahead"`.

    Example:

    ```python
    model.fit(x, y, callbacks=[Lookahead(every=5, alpha=0.5)])
    ```

    Raises:
        ValueError: If an argument is out of its range, or if `include` matches
            no weight, or if the model is not built when training begins.

    References:
        [Zhang et al., 2019](https://arxiv.org/abs/1907.08610), algorithm 1
    """

    def __init__(
        self,
        every: int = 5,
        alpha: float = 0.5,
        *,
        swap: bool = True,
        include: Include = None,
        name: str | None = None,
    ) -> None:
        self.every = arguments.integer("every", every, at_least=1)
        self.alpha = arguments.share("alpha", alpha)
        decay = (1 - self.alpha) ** (1 / self.every)
        plan = Plan(
            name=arguments.name(name, "lookahead"),
            method=Scheduled((FromInitial(ConstantDecay(decay)),)),
            sampling=EverySteps(self.every),
            include=arguments.include(include),
            overwrite_every=self.every,
        )
        super().__init__(plan, swap=swap)
