"""Measures moving statistics of `BatchNormalization` in a pass over data."""

import contextlib
import warnings
from typing import Any

import keras
import numpy
from keras import ops

from keras_wavg import arguments, swapping
from keras_wavg.backend import (
    assign,
    host_copies,
    preserved_random_state,
    sync_weights,
)
from keras_wavg.batchnorm.batch_statistics import BatchStatistics, recording
from keras_wavg.batchnorm.moments import Moments, moments_function
from keras_wavg.batchnorm.normalization import (
    Normalization,
    modules_of_torch,
)
from keras_wavg.keras_private import flattened_layers

_BATCH_SIZE = 32
_OF_KERAS = keras.layers.BatchNormalization


def update_bn(
    model: Any,
    data: Any,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    variance: str = "population",
    verbose: Any = "auto",
) -> None:
    """Measure the moving statistics of `BatchNormalization` layers.

    The moving mean and variance of a `BatchNormalization` layer depend on the
    weights of the layers before it. After other weights were set, such as a
    soup or an average of checkpoints, they have to be measured again in a pass
    over `data`. Ten to twenty batches are usually enough.

    During the pass every trainable `BatchNormalization` layer normalizes with
    the statistics of the batch, as in training. All other layers run in
    inference mode, without dropout, noise or augmentation. The previous moving
    statistics are not used. The new ones are assigned at the end, so that the
    model does not change if an error occurs. Frozen layers (`trainable=False`)
    keep their statistics and normalize with them. A layer that the model calls
    with `training=False` is measured unless it is frozen.

    Subclasses, shared and nested layers, layers in a `keras.RematScope` and in
    the cell of a `keras.layers.RNN` are measured too, and on torch the
    normalizations in a `keras.layers.TorchModuleWrapper`. The statistics of
    these are buffers, not weights: swapping an average out does not restore
    them.

    `EMA` averages the moving statistics too, which fit the averaged weights
    well.

    Args:
        model: A built Keras model, compiled or not.
        data: Data as in `fit`: arrays as `x` or as a tuple `(x, y)` or
            `(x, y, sample_weight)`, a dictionary or list of arrays for several
            inputs, a `tf.data.Dataset`, a `torch.utils.data.DataLoader`, a
            `keras.utils.PyDataset` or a generator. Targets and sample weights
            are not used.
        steps: Positive integer, the number of batches, required for endless
            data. Defaults to `None`, all batches.
        batch_size: Positive integer, the batch size if `data` are arrays.
            Defaults to `None`, which is 32.
        variance: `"population"` for the mean and variance of all elements that
            reach the layer, independent of the batches. Or `"batch_mean"`, as
            in `torch.optim.swa_utils.update_bn`, for the mean over the batches
            of their means and unbiased variances, which underestimates the
            variance if batches differ. Defaults to `"population"`.
        verbose: `"auto"`, 0, 1, or 2, as in `predict`. Defaults to `"auto"`.

    Example:

    >>> import keras, numpy
    >>> from keras_wavg import update_bn
    >>> normalization = keras.layers.BatchNormalization()
    >>> model = keras.Sequential([keras.Input((2,)), normalization])
    >>> x = numpy.array([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]])
    >>> update_bn(model, x, batch_size=2, verbose=0)
    >>> keras.ops.convert_to_numpy(normalization.moving_mean).tolist()
    [3.0, 30.0]

    Raises:
        ValueError: If the model has no trainable `BatchNormalization`, is not
            built, or cannot be called on a batch; if there is no batch, or
            fewer than `steps`; if no data reaches a layer, or its statistics
            are not finite; if a layer is called in a function that the backend
            transforms, such as `keras.ops.cond`; or if an argument is out of
            its range.

    References:
        - [Izmailov et al., 2018](https://arxiv.org/abs/1803.05407), section 3.2
        - [Wu and Johnson, 2021](https://arxiv.org/abs/2105.07576), section 3,
          for the statistics of the population
    """
    Measurement(model).update(
        data,
        steps=steps,
        batch_size=batch_size,
        variance=variance,
        verbose=verbose,
    )


class Measurement:
    """Measures a model repeatedly, as `update_bn` does, and compiles once.

    Args:
        model: A built Keras model.
    """

    def __init__(self, model: Any) -> None:
        self._layers = _normalizations(model)
        self._identity = _identity(model)
        self._model = model
        with self._strategy_scope():
            self._statistics = BatchStatistics(model, self._layers)

    def is_of(self, model: Any) -> bool:
        """Whether this is for a model, frozen and compiled as it is now."""
        return self._identity == _identity(model)

    @property
    def variables(self) -> list[Any]:
        """The variables that `update` assigns."""
        return [v for layer in self._layers for v in layer.variables]

    def update(
        self,
        data: Any,
        *,
        steps: int | None = None,
        batch_size: int | None = None,
        variance: str = "population",
        verbose: Any = "auto",
    ) -> None:
        """Measure the statistics. See `update_bn`."""
        moments = moments_function(variance)
        min_batches = arguments.integer_or_none("steps", steps, at_least=1) or 1
        inputs = _inputs(data)
        measured = self._run(
            x=inputs,
            batch_size=_size(inputs, batch_size),
            steps=steps,
            verbose=verbose,
            callbacks=[_RequireBatches(min_batches)],
        )
        # Compute all values before assigning any: one may be refused.
        _assign(
            [
                assignment
                for layer, rows in zip(self._layers, measured, strict=True)
                for assignment in _assignments(layer, moments(layer, rows))
            ]
        )
        # They belong to the average in the model, if there is one.
        swapping.accept_current(self.variables)

    def _run(self, **data: Any) -> list[numpy.ndarray]:
        """Run the pass. Returns an array `(calls, 4, channels)` per layer."""
        sync_weights(self._model)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._strategy_scope())
            stack.enter_context(preserved_random_state())
            stack.enter_context(recording(self._layers, self._statistics))
            # Keras warns at the end of data of unknown length.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Your input ran out of data")
            return self._predict(data)

    def _predict(self, data: dict[str, Any]) -> list[numpy.ndarray]:
        self._statistics.reason = ""
        try:
            return self._statistics.predict(**data)
        except Exception as error:
            if not self._statistics.reason:
                raise
            raise ValueError(self._statistics.reason) from error

    def _strategy_scope(self) -> Any:
        # TensorFlow refuses a model inside a model of another strategy.
        strategy = getattr(self._model, "distribute_strategy", None)
        return strategy.scope() if strategy else contextlib.nullcontext()


def _normalizations(model: Any) -> list[Any]:
    """The trainable normalizations of a model.

    Raises:
        ValueError: If the model has none, or is not built.
    """
    is_model = isinstance(model, keras.Model)
    layers = flattened_layers(model) if is_model else []
    layers = [layer for layer in layers if layer.trainable]
    found = [layer for layer in layers if isinstance(layer, _OF_KERAS)]
    if not is_model or not all(layer.built for layer in [model, *found]):
        raise ValueError(
            f"`model` must be a built Keras model. Received: model={model!r}. "
            "Call it on a batch or call `model.build(input_shape)` first."
        )
    normalizations = [*map(Normalization, found), *modules_of_torch(model)]
    if not normalizations:
        raise ValueError(
            "The model must have a trainable `BatchNormalization` layer: the "
            "statistics of frozen layers do not change. Received: "
            f"model={model!r}"
        )
    return normalizations


def _identity(model: Any) -> list[Any]:
    """The properties of a model that a compiled pass depends on."""
    compiled = model.compiled and (model.run_eagerly, model.jit_compile)
    weights = model.trainable_variables, model.non_trainable_variables
    return [
        id(model),
        compiled,
        *([id(variable) for variable in variables] for variables in weights),
        [layer.identity for layer in _normalizations(model)],
    ]


def _inputs(data: Any) -> Any:
    if isinstance(data, tuple):
        return keras.utils.unpack_x_y_sample_weight(data)[0]
    return data


def _size(inputs: Any, batch_size: int | None) -> int | None:
    arrays = all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(inputs))
    # Keras would divide all samples into `steps` batches.
    return _BATCH_SIZE if arrays and batch_size is None else batch_size


class _RequireBatches(keras.callbacks.Callback):
    """Refuses data with fewer batches than requested."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches
        self.seen = 0

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen += 1

    def on_predict_end(self, logs: Any = None) -> None:
        if self.seen < self.batches:
            required = "one batch"
            if self.batches > 1:
                required = f"`steps={self.batches}` batches"
            raise ValueError(
                f"`data` must have at least {required}. "
                f"Received: {self.seen} batches"
            )


def _assignments(layer: Any, moments: Moments) -> list[tuple[Any, Any]]:
    pairs = zip(layer.variables, layer.values(*moments), strict=True)
    return [(variable, _finite(variable, value)) for variable, value in pairs]


def _finite(variable: Any, value: numpy.ndarray) -> Any:
    tensor = ops.convert_to_tensor(value, variable.dtype)
    if not ops.convert_to_numpy(ops.all(ops.isfinite(tensor))):
        raise ValueError(
            f"The statistics of '{variable.path}' must be finite in "
            f"{variable.dtype}. Received: {value}. Check that `data` and the "
            "weights are finite."
        )
    return tensor


def _assign(pairs: list[tuple[Any, Any]]) -> None:
    """Assign all values or, if interrupted, none."""
    variables = [variable for variable, _ in pairs]
    before = host_copies(variables)
    try:
        assign(variables, [value for _, value in pairs])
    except BaseException:
        assign(variables, before)
        raise
