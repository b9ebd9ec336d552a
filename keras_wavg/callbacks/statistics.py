"""Moving statistics of `BatchNormalization`, measured for an average."""

from typing import Any

from keras_wavg.arguments import Include
from keras_wavg.batchnorm import Measurement, modules_of_torch
from keras_wavg.included import averaged_variables


class MeasuredStatistics:
    """Measures moving statistics of a model again and again.

    Args:
        data: The argument `batch_norm_data`.
        steps: The argument `batch_norm_steps`.
    """

    def __init__(self, data: Any, steps: int | None) -> None:
        self._data, self._steps = data, steps
        self._measurement: Measurement | None = None

    def __getstate__(self) -> dict[str, Any]:
        # What is compiled belongs to one model, and cannot be copied.
        return vars(self) | {"_measurement": None}

    def measure(self, model: Any) -> None:
        """Measure the statistics for the weights in the model."""
        self._of(model).update(self._data, steps=self._steps, verbose=0)

    def variables(self, model: Any, include: Include) -> list[Any]:
        """The moving statistics of a model.

        Raises:
            ValueError: If the model has none, or if `include` excludes some.
        """
        variables = self._of(model).variables
        if modules := modules_of_torch(model):
            raise ValueError(
                "With `batch_norm_data`, all moving statistics must be weights "
                "of the model. Received: buffers of the module "
                f"'{modules[0].path}'. Call `update_bn(model, data)` while the "
                "average is in the model instead."
            )
        averaged = averaged_variables(model, include)
        missing = {id(v) for v in variables} - {id(v) for v in averaged}
        if missing:
            raise ValueError(
                "With `batch_norm_data`, `include` must match the moving "
                f"statistics of the model. Received: include={include!r}, "
                "which excludes "
                f"{[v.path for v in variables if id(v) in missing]}"
            )
        return variables

    def _of(self, model: Any) -> Measurement:
        if self._measurement is None or not self._measurement.is_of(model):
            self._measurement = Measurement(model)
        return self._measurement
