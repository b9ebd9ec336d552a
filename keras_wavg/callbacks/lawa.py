"""Latest weight averaging."""

from typing import Unpack

from keras_wavg import arguments
from keras_wavg.averages.latest_mean import LatestMean
from keras_wavg.callbacks.epoch_averaging import EpochAveraging
from keras_wavg.callbacks.manual_averaging import AveragingOptions


class LAWA(EpochAveraging):
    """Latest weight averaging: the mean of the `window` latest samples.

        average = (w[n] + w[n - 1] + ... + w[n - window + 1]) / window

    or the mean of all samples while there are fewer. A sample is the weights
    at the end of an epoch, or after `every_steps` optimizer steps. Unlike
    `SWA` it forgets old samples, so it can run from the first epoch. Unlike
    `EMA` it forgets a sample at once.

    Memory: `window` copies of the weights in float32 and their mean, in host
    memory; the device stores nothing, so there is no `device` argument. Files
    that Keras saves grow by the same amount, and training resumes exactly.

    In all other respects it works like `SWA`.

    Args:
        window: Positive integer, the largest number of samples in the mean.
            Defaults to `10`.
        every_epochs: Positive integer, the number of epochs between samples.
            Defaults to `1`.
        every_steps: Positive integer, the number of optimizer steps between
            samples, which replaces the epochs. Defaults to `None`.
        start_epoch: Non-negative integer, the first epoch that counts, from
            0. Defaults to `0`.
        **options: `include`, `swap`, `name`, `batch_norm_data` and
            `batch_norm_steps`, see `EMA`. `name` defaults to `"lawa"`.

    Example:

    >>> import keras, numpy, keras_wavg
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x, y = numpy.ones((64, 2)), numpy.ones((64, 1))
    >>> lawa = keras_wavg.LAWA(window=3)
    >>> history = model.fit(x, y, epochs=5, verbose=0, callbacks=[lawa])

    Raises:
        ValueError: See `SWA`.

    References:
        [Kaddour, 2022](https://arxiv.org/abs/2209.14981)
    """

    def __init__(
        self,
        window: int = 10,
        *,
        every_epochs: int = 1,
        every_steps: int | None = None,
        start_epoch: int = 0,
        **options: Unpack[AveragingOptions],
    ) -> None:
        self.window = arguments.integer("window", window, at_least=1)
        super().__init__(
            LatestMean(self.window),
            start_epoch=start_epoch,
            every_epochs=every_epochs,
            every_steps=every_steps,
            **options,
        )
