"""What the averages of epochs have in common: when, and BatchNormalization."""

import abc
from typing import Any

import numpy

from keras_wavg import arguments
from keras_wavg.arguments import Include
from keras_wavg.averages.base import Method
from keras_wavg.batchnorm import Measurement
from keras_wavg.callbacks.averaging import WeightAveraging
from keras_wavg.included import averaged_variables
from keras_wavg.plan import Plan
from keras_wavg.sampling import EveryEpochs, EverySteps, Sampling


class EpochAveraging(WeightAveraging, abc.ABC):
    """Averages samples taken at the ends of epochs or cycles. Abstract.

    Args:
        method: A `Method`.
        start_epoch: Integer, the first epoch that counts, from 0 on.
        every: Positive integer, epochs from one sample to the next.
        every_steps: Positive integer, optimizer steps instead, or `None`.
        bn_data: What `update_bn` takes, or `None`.
        swap: Boolean, whether the hooks put the average in the model.
        include: See `Plan`.
        name: String, or `None` for the lower-case name of the class.
    """

    def __init__(
        self,
        method: Method,
        *,
        start_epoch: int,
        every: int,
        every_steps: int | None,
        bn_data: Any,
        swap: bool,
        include: Include,
        name: str | None,
    ) -> None:
        self.start_epoch = arguments.integer(
            "start_epoch", start_epoch, at_least=0
        )
        self.every = arguments.integer("every", every, at_least=1)
        self.every_steps = arguments.integer_or_none(
            "every_steps", every_steps, at_least=1
        )
        self.bn_data = arguments.repeatable("bn_data", bn_data)
        plan = Plan(
            name=arguments.name(name, type(self).__name__.lower()),
            method=method,
            sampling=self._sampling(),
            include=arguments.include(include),
        )
        super().__init__(plan, swap=swap)

    def _begin_without_a_model(self) -> None:
        super()._begin_without_a_model()
        self._measurement: Measurement | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Get ready to count, and refuse a model not made for `bn_data`."""
        super().on_train_begin(logs)
        if self.bn_data is not None and self.model.built:
            self._measured_variables()

    def get_weights(self) -> list[numpy.ndarray]:
        """The averaged weights, with measured statistics if `bn_data` is given.

        Returns:
            See `EMA.get_weights`.

        Raises:
            ValueError: If there is no average yet.
        """
        if self.bn_data is not None and self._running is not None:
            with self.applied():
                pass
        return super().get_weights()

    def _sampling(self) -> Sampling:
        if self.every_steps is None:
            return EveryEpochs(self.every, self.start_epoch)
        if self.every != 1:
            raise ValueError(
                "Only one of `every` and `every_steps` can be given. Received: "
                f"every={self.every}, every_steps={self.every_steps}"
            )
        return EverySteps(self.every_steps, start_epoch=self.start_epoch)

    def _make_ready(self) -> None:
        shadow = self._shadow
        if self.bn_data is None or shadow is None:
            return
        if shadow.is_in_model() and not shadow.measured:
            variables = self._measured_variables()
            self._measure()
            shadow.take_over(variables)

    def _measure(self) -> None:
        """Measure the moving statistics of the weights in the model."""
        self._current_measurement().update(self.bn_data, verbose=0)

    def _current_measurement(self) -> Measurement:
        model = self.model
        if self._measurement is None or not self._measurement.is_of(model):
            self._measurement = Measurement(model)
        return self._measurement

    def _measured_variables(self) -> list[Any]:
        variables = self._current_measurement().variables
        averaged = averaged_variables(self.model, self._plan.include)
        missing = {id(v) for v in variables} - {id(v) for v in averaged}
        if missing:
            raise ValueError(
                "With `bn_data`, `include` must match the moving statistics of "
                "the model. Received: "
                f"include={self._plan.include!r}, which leaves out "
                f"{[v.path for v in variables if id(v) in missing]}"
            )
        return variables
