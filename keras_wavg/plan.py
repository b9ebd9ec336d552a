"""What a callback averages, how and when, in one object."""

from dataclasses import dataclass

from keras_wavg.arguments import Include
from keras_wavg.averages.base import Method
from keras_wavg.sampling import Sampling


@dataclass(frozen=True)
class Plan:
    """The settings of an average, for any model.

    Args:
        name: String that identifies the average in a saved model.
        method: A `Method`.
        sampling: A `Sampling`, when a sample enters the average.
        include: See `keras_wavg.arguments.Include`.
        overwriting: A `Sampling`, when the average is written into the trained
            weights, or `None`.
    """

    name: str
    method: Method
    sampling: Sampling
    include: Include = None
    overwriting: Sampling | None = None
