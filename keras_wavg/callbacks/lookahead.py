"""Lookahead: slow weights that follow and replace the trained weights."""

from typing import Unpack

from keras_wavg import arguments
from keras_wavg.averages.scheduled import Scheduled
from keras_wavg.callbacks.manual_averaging import AveragingOptions
from keras_wavg.callbacks.weight_averaging import WeightAveraging
from keras_wavg.sampling import EverySteps
from keras_wavg.schedules import ConstantDecay, FromInitial


class Lookahead(WeightAveraging):
    """Lookahead: "k steps forward, 1 step back".

    Every `every_steps` optimizer steps,

        slow += alpha * (weights - slow)
        weights = slow

    where `slow` starts from the weights before training. The state of the
    optimizer is kept. The slow weights are in the model for validation and are
    saved with it, and training resumes exactly. Moving statistics of
    `BatchNormalization` are averaged for validation, but not written back.

    Args:
        every_steps: Positive integer, the number of optimizer steps between
            synchronizations, `k` in the paper. Defaults to `5`.
        alpha: Float in (0, 1], the step size of the slow weights. Defaults to
            `0.5`.
        device: `None` or `"cpu"`. See `EMA`. Defaults to `None`.
        **options: `include`, `swap`, `name`, `batch_norm_data` and
            `batch_norm_steps`, see `EMA`. `name` defaults to `"lookahead"`.

    Example:

    ```python
    model.fit(x, y, callbacks=[Lookahead(every_steps=5, alpha=0.5)])
    ```

    Raises:
        ValueError: If an argument is out of its range, if `include` matches no
            weight, or if the model is not built when training starts.

    References:
        [Zhang et al., 2019](https://arxiv.org/abs/1907.08610), algorithm 1
    """

    def __init__(
        self,
        every_steps: int = 5,
        alpha: float = 0.5,
        *,
        device: str | None = None,
        **options: Unpack[AveragingOptions],
    ) -> None:
        self.every_steps = arguments.integer(
            "every_steps", every_steps, at_least=1
        )
        self.alpha = arguments.fraction("alpha", alpha)
        self.device = arguments.device(device)
        decay = (1 - self.alpha) ** (1 / self.every_steps)
        sampling = EverySteps(self.every_steps)
        super().__init__(
            Scheduled((FromInitial(ConstantDecay(decay)),), device=self.device),
            sampling,
            overwriting=sampling,
            **options,
        )
