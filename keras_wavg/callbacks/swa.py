"""Stochastic weight averaging."""

from typing import Any

from keras_wavg import arguments
from keras_wavg.arguments import Include
from keras_wavg.averages.scheduled import Scheduled
from keras_wavg.callbacks.epochs import EpochAveraging
from keras_wavg.schedules import Uniform


class SWA(EpochAveraging):
    """Stochastic weight averaging: the equal-weight mean along the training.

    The n-th sample, the weights at the end of an epoch or of a cycle, moves the
    average by

        average += (weights - average) / n

    Samples are taken while the learning rate is high: constant or cyclic. This
    callback never touches the learning rate. `keras_wavg.CyclicLearningRate`
    and `keras_wavg.AnnealToConstant` are the schedules of the paper.

    The averaged weights have activations of their own, and
    `BatchNormalization` needs the statistics of these. Without `bn_data` the
    moving statistics are averaged like weights; with it they are measured by
    `update_bn`, before each evaluation of an average that has changed and at
    the end of `fit`.

    All else is as with `EMA`: the average is in the model for validation and
    after `fit`, `restore()` gives the raw weights back bit for bit, Keras'
    files carry the average along, and training goes on from them exactly.
    Before the first sample the model keeps its raw weights; if there never is
    one, a warning says so.

    Epochs are counted over all `fit`s of the model, and from `initial_epoch`
    where that is more.

    Args:
        start_epoch: Integer, the first epoch that counts, from 0 on. Defaults
            to `0`.
        every: Positive integer, epochs from one sample to the next: the
            `every`-th epoch from `start_epoch` on gives the first. Defaults to
            `1`.
        every_steps: Positive integer, optimizer steps from one sample to the
            next instead: the length of the learning rate's cycle. Defaults to
            `None`.
        bn_data: Data to measure the statistics of `BatchNormalization` with,
            anything that `update_bn` takes and that can be gone through again
            and again, such as the training inputs. Defaults to `None`.
        swap: Boolean, whether `fit`, `evaluate` and `predict` find the average
            in the model. At most one callback in a list can. Defaults to
            `True`.
        include: A regular expression, searched in the path of each weight, or a
            function from a path to a boolean. What is left out stays raw.
            Defaults to `None`, every weight.
        name: String, by which a saved file tells the averages of one model
            apart. Defaults to `"swa"`.
        device: `None` to keep the average beside the weights, or `"cpu"` to
            keep it in host memory. Defaults to `None`.

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

    In a loop of one's own, call `swa.update()` at the end of each epoch, or
    after each optimizer step with `every_steps`.

    Raises:
        ValueError: If an argument is out of its range, if `include` matches no
            weight, or if there is no `BatchNormalization` for `bn_data`.

    References:
        [Izmailov et al., 2018](https://arxiv.org/abs/1803.05407), algorithm 1
        (without the weights that it starts from: they are a sample only if an
        epoch ends on them)
    """

    def __init__(
        self,
        start_epoch: int = 0,
        *,
        every: int = 1,
        every_steps: int | None = None,
        bn_data: Any = None,
        swap: bool = True,
        include: Include = None,
        name: str | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(
            Scheduled((Uniform(),), device=arguments.device(device)),
            start_epoch=start_epoch,
            every=every,
            every_steps=every_steps,
            bn_data=bn_data,
            swap=swap,
            include=include,
            name=name,
        )
