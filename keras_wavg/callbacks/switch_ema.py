"""Switch EMA: an average that is written back into the trained weights."""

from typing import Unpack

from keras_wavg import arguments
from keras_wavg.averages.scheduled import Scheduled
from keras_wavg.callbacks.ema import exponential_schedule
from keras_wavg.callbacks.manual_averaging import AveragingOptions
from keras_wavg.callbacks.weight_averaging import WeightAveraging
from keras_wavg.sampling import EverySteps, every_epochs_or_steps


class SwitchEMA(WeightAveraging):
    """Switch EMA: training continues from the average after each epoch.

    The average is updated after each optimizer step, as in `EMA`. At the end
    of each epoch, or every `switch_every_steps` optimizer steps, the trained
    weights are set to it:

        weights = average

    The state of the optimizer is kept. Moving statistics of
    `BatchNormalization` are averaged, but not written back. In all other
    respects it works like `EMA`.

    Args:
        decay: Float in [0, 1). See `EMA`. Defaults to `0.999`.
        switch_every_epochs: Positive integer, the number of epochs between
            switches. Defaults to `1`.
        switch_every_steps: Positive integer, the number of optimizer steps
            between switches, which replaces the epochs. A custom training loop
            needs it. Defaults to `None`.
        bias_correction: Boolean. See `EMA`. Defaults to `True`.
        warmup: Boolean. See `EMA`. Defaults to `False`.
        device: `None` or `"cpu"`. See `EMA`. Defaults to `None`.
        **options: `include`, `swap`, `name`, `batch_norm_data` and
            `batch_norm_steps`, see `EMA`. `name` defaults to `"switch_ema"`.

    Example:

    ```python
    model.fit(x, y, epochs=10, callbacks=[SwitchEMA(0.999)])
    ```

    Raises:
        ValueError: If an argument is out of its range, if both intervals are
            given, or if `include` matches no weight.

    References:
        [Li et al., 2024](https://arxiv.org/abs/2402.09240)
    """

    def __init__(
        self,
        decay: float = 0.999,
        *,
        switch_every_epochs: int = 1,
        switch_every_steps: int | None = None,
        bias_correction: bool = True,
        warmup: bool = False,
        device: str | None = None,
        **options: Unpack[AveragingOptions],
    ) -> None:
        self.decay = arguments.decay(decay)
        self.switch_every_epochs = switch_every_epochs
        self.switch_every_steps = switch_every_steps
        self.bias_correction = bias_correction
        self.warmup = warmup
        self.device = arguments.device(device)
        schedule = exponential_schedule(self.decay, bias_correction, warmup)
        super().__init__(
            Scheduled((schedule,), device=self.device),
            EverySteps(1),
            overwriting=every_epochs_or_steps(
                switch_every_epochs, switch_every_steps, prefix="switch_"
            ),
            **options,
        )

    def update(self) -> None:
        """Count an optimizer step in a custom training loop. See `EMA`.

        Raises:
            ValueError: As in `EMA`, or without `switch_every_steps`: calls
                count optimizer steps, not epochs.
        """
        if self.switch_every_steps is None:
            raise ValueError(
                "A custom training loop needs `switch_every_steps`, because "
                "`update()` counts optimizer steps. Received: "
                f"switch_every_epochs={self.switch_every_epochs}, "
                "switch_every_steps=None"
            )
        super().update()
