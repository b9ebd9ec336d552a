"""What a callback averages, how and when, in one object."""

from dataclasses import dataclass
from typing import Any

from keras_wavg.arguments import Include
from keras_wavg.averages.base import Method
from keras_wavg.included import averaged_variables
from keras_wavg.sampling import Sampling
from keras_wavg.target import target_variables


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
        target: A Keras model or layer whose weights are set to the average
            after each update, or `None`.
    """

    name: str
    method: Method
    sampling: Sampling
    include: Include = None
    overwriting: Sampling | None = None
    target: Any = None

    def variables(self, model: Any) -> list[Any]:
        """The averaged variables of a model, in the model's order.

        Raises:
            ValueError: If there is none.
        """
        return averaged_variables(model, self.include, self.target)

    def target_variables(self, model: Any) -> list[Any]:
        """The weights of the target in the order of `variables(model)`.

        Raises:
            ValueError: If the target does not fit the model.
        """
        if self.target is None:
            return []
        return target_variables(self.target, self.variables(model), model)
