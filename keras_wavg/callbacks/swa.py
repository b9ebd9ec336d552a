"""Stochastic weight averaging."""

from typing import Unpack

from keras_wavg import arguments
from keras_wavg.averages.scheduled import Scheduled
from keras_wavg.callbacks.epoch_averaging import EpochAveraging
from keras_wavg.callbacks.manual_averaging import AveragingOptions
from keras_wavg.schedules import Uniform


class SWA(EpochAveraging):
    """Stochastic weight averaging: the equal-weight mean of samples.

    The n-th sample, the weights at the end of an epoch or of a cycle, updates
    the average by

        average += (weights - average) / n

    Samples are taken while the learning rate is high, constant or cyclic. The
    callback does not change the learning rate. The schedules of the paper are
    `keras_wavg.CyclicLearningRate` and `keras_wavg.AnnealToConstant`.

    The averaged weights have other activations than any sample, and
    `BatchNormalization` needs their statistics. By default the moving
    statistics are averaged like weights. With `batch_norm_data` they are
    measured by `update_bn`.

    In all other respects it works like `EMA`: the average is in the model for
    validation and after `fit`, `restore()` restores the raw weights bit for
    bit, Keras saves the state of the average with the model, and training
    resumes exactly. Before the first sample the model keeps its raw weights. A
    warning is issued if `fit` ends without a sample.

    Epochs are counted over all calls of `fit`. With `initial_epoch`, they
    count from there, if it is ahead.

    Args:
        start_epoch: Non-negative integer, the first epoch that counts, from
            0. Defaults to `0`.
        every_epochs: Positive integer, the number of epochs between samples.
            The first sample is taken at the end of the `every_epochs`-th epoch
            from `start_epoch`. Defaults to `1`.
        every_steps: Positive integer, the number of optimizer steps between
            samples, which replaces the epochs: the length of the cycle of the
            learning rate. Defaults to `None`.
        device: `None` or `"cpu"`. See `EMA`. Defaults to `None`.
        **options: `include`, `swap`, `name`, `batch_norm_data` and
            `batch_norm_steps`, see `EMA`. `name` defaults to `"swa"`.

    Example:

    >>> import keras, numpy, keras_wavg
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x, y = numpy.ones((64, 2)), numpy.ones((64, 1))
    >>> swa = keras_wavg.SWA(start_epoch=3)
    >>> history = model.fit(x, y, epochs=5, verbose=0, callbacks=[swa])
    >>> averaged = model.get_weights()
    >>> swa.restore()
    >>> raw = model.get_weights()

    In a custom training loop, call `swa.update()` at the end of each epoch, or
    after each optimizer step with `every_steps`.

    Raises:
        ValueError: If an argument is out of its range, if both intervals are
            given, if `include` matches no weight, or if the model has no
            `BatchNormalization` for `batch_norm_data`.

    References:
        [Izmailov et al., 2018](https://arxiv.org/abs/1803.05407), algorithm 1,
        without the weights that it starts from: they are a sample only if an
        epoch ends with them
    """

    def __init__(
        self,
        start_epoch: int = 0,
        *,
        every_epochs: int = 1,
        every_steps: int | None = None,
        device: str | None = None,
        **options: Unpack[AveragingOptions],
    ) -> None:
        self.device = arguments.device(device)
        super().__init__(
            Scheduled((Uniform(),), device=self.device),
            start_epoch=start_epoch,
            every_epochs=every_epochs,
            every_steps=every_steps,
            **options,
        )
