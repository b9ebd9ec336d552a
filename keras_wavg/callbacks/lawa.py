"""Latest weight averaging."""

from typing import Any

from keras_wavg import arguments
from keras_wavg.arguments import Include
from keras_wavg.averages.window import LatestMean
from keras_wavg.callbacks.epochs import EpochAveraging


class LAWA(EpochAveraging):
    """Latest weight averaging: the mean of the `window` latest samples.

        average = (w[n] + w[n - 1] + ... + w[n - window + 1]) / window

    and the mean of all samples while there are fewer. A sample is the weights
    at the end of an epoch, or of `every_steps` optimizer steps. Unlike `SWA` it
    forgets, so it can run from the first epoch on; unlike `EMA` it forgets all
    at once.

    Memory: `window` copies of the weights in float32 and their mean, in host
    memory, nothing on the device. A file that Keras writes of the model grows
    by as much, and training goes on from it exactly.

    All else is as with `SWA`.

    Args:
        window: Positive integer, the most samples in the mean. Defaults to
            `10`.
        every: See `SWA`. Defaults to `1`.
        every_steps: See `SWA`. Defaults to `None`.
        start_epoch: See `SWA`. Defaults to `0`.
        bn_data: See `SWA`. Defaults to `None`.
        swap: See `SWA`. Defaults to `True`.
        include: See `SWA`. Defaults to `None`.
        name: See `SWA`. Defaults to `"lawa"`.

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
        every: int = 1,
        every_steps: int | None = None,
        start_epoch: int = 0,
        bn_data: Any = None,
        swap: bool = True,
        include: Include = None,
        name: str | None = None,
    ) -> None:
        self.window = arguments.integer("window", window, at_least=1)
        super().__init__(
            LatestMean(self.window),
            start_epoch=start_epoch,
            every=every,
            every_steps=every_steps,
            bn_data=bn_data,
            swap=swap,
            include=include,
            name=name,
        )
