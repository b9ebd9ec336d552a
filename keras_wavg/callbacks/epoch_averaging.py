"""Sampling at the ends of epochs, shared by several averages."""

import abc
from typing import Unpack

from keras_wavg import arguments
from keras_wavg.averages.base import Method
from keras_wavg.callbacks.manual_averaging import AveragingOptions
from keras_wavg.callbacks.weight_averaging import WeightAveraging
from keras_wavg.sampling import every_epochs_or_steps


class EpochAveraging(WeightAveraging, abc.ABC):
    """Averages samples taken at the ends of epochs or cycles. Abstract.

    Args:
        method: A `Method`.
        start_epoch: Integer, the first epoch that counts, from 0.
        every_epochs: Positive integer, the epochs between samples.
        every_steps: Positive integer, the optimizer steps between samples,
            which replace the epochs, or `None`.
        **options: See `WeightAveraging`.
    """

    def __init__(
        self,
        method: Method,
        *,
        start_epoch: int,
        every_epochs: int,
        every_steps: int | None,
        **options: Unpack[AveragingOptions],
    ) -> None:
        self.start_epoch = arguments.integer(
            "start_epoch", start_epoch, at_least=0
        )
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        sampling = every_epochs_or_steps(
            every_epochs, every_steps, start_epoch=self.start_epoch
        )
        super().__init__(method, sampling, **options)
