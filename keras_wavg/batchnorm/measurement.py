"""One pass over data, and new moving statistics at the end of it."""

import contextlib
import warnings
from typing import Any

import keras
import numpy
from keras import ops

from keras_wavg import arguments, swapping
from keras_wavg.backend import (
    assign,
    attach_weights,
    host_copies,
    randomness_kept,
)
from keras_wavg.batchnorm.moments import combination
from keras_wavg.batchnorm.probe import Probe, watched
from keras_wavg.keras_private import flattened_layers

_BATCH_SIZE = 32


def update_bn(
    model: Any,
    data: Any,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    variance: str = "population",
    verbose: Any = "auto",
) -> None:
    """Measure the statistics of `BatchNormalization` for the weights there are.

    The moving mean and variance of a `BatchNormalization` layer belong to the
    weights before it. They do not fit weights that were put into the model
    afterwards: a soup, or an average of checkpoints. One pass over `data`
    measures them anew. Ten to twenty batches get most of the gain.

    In the pass every trainable `BatchNormalization` normalizes by the
    statistics of the batch, as in training, while all else runs as in
    inference: no dropout, no noise, no augmentation. What the moving
    statistics were before plays no role. Nothing but them is changed, and they
    only at the end: after an error the model is as it was. Frozen layers
    (`trainable=False`) keep theirs, and normalize by them. A layer that the
    model itself calls with `training=False` is measured unless it is frozen.

    An average by `EMA` has averaged statistics with it, which fit it well.

    Args:
        model: A built Keras model, compiled or not.
        data: What `fit` takes: arrays as `x` or as a tuple `(x, y)` or
            `(x, y, sample_weight)`, a dictionary or list of arrays for several
            inputs, a `tf.data.Dataset`, a `torch.utils.data.DataLoader`, a
            `keras.utils.PyDataset` or a generator. Targets and sample weights
            are not used.
        steps: Integer, the number of batches. Data without end needs it.
            Defaults to `None`, all there are.
        batch_size: Integer, the size of the batches of arrays. Defaults to
            `None`, which is 32.
        variance: `"population"`, the mean and variance of all elements that
            reach the layer, whatever batch they come in. Or `"batch_mean"`,
            what `torch.optim.swa_utils.update_bn` measures: the plain mean
            over the batches of their means and unbiased variances. That one is
            too small if batches differ. Defaults to `"population"`.
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
            built, or cannot be called on a batch. If there is no batch, or
            fewer than `steps`. If a layer was never updated, or its
            statistics are not finite. If an argument is out of its range.

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
    """What `update_bn` does, for a model that is measured again and again.

    The pass is compiled only once.

    Args:
        model: See `update_bn`.
    """

    def __init__(self, model: Any) -> None:
        self._layers = _trainable_normalizations(model)
        self._what = _identity(model)
        self._model = model
        with self._strategy_scope():
            self._probe = Probe(model, self._layers)

    def is_of(self, model: Any) -> bool:
        """Whether it is this model, frozen and compiled as it was then."""
        return self._what == _identity(model)

    @property
    def variables(self) -> list[Any]:
        """What an update assigns."""
        return [
            getattr(layer, name)
            for layer in self._layers
            for name in _names(layer)
        ]

    def update(
        self,
        data: Any,
        *,
        steps: int | None = None,
        batch_size: int | None = None,
        variance: str = "population",
        verbose: Any = "auto",
    ) -> None:
        """Measure. See `update_bn`."""
        combine = combination(variance)
        least = arguments.integer_or_none("steps", steps, at_least=1) or 1
        inputs = _inputs(data)
        measured = self._run(
            x=inputs,
            batch_size=_size(inputs, batch_size),
            steps=steps,
            verbose=verbose,
            callbacks=[_AtLeast(least)],
        )
        # All values before the first is assigned: one may be refused.
        _assign(
            [
                assignment
                for layer, rows in zip(self._layers, measured, strict=True)
                for assignment in _assignments(layer, *combine(layer, rows))
            ]
        )
        # They belong to the average, if one is in the model.
        swapping.measured(self.variables)

    def _run(self, **data: Any) -> list[numpy.ndarray]:
        """An array `(calls, 4, channels)` of each layer."""
        attach_weights(self._model)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._strategy_scope())
            stack.enter_context(randomness_kept())
            stack.enter_context(watched(self._layers, self._probe))
            # Keras warns of any end of data whose length it did not know.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Your input ran out of data")
            return self._predict(data)

    def _predict(self, data: dict[str, Any]) -> list[numpy.ndarray]:
        self._probe.running = ""
        try:
            return self._probe.predict(**data)
        except Exception as error:
            if not self._probe.running:
                raise
            raise ValueError(
                "`data` must have batches that the model can be called on. "
                f"Received: inputs of shape {self._probe.running}"
            ) from error

    def _strategy_scope(self) -> Any:
        # TensorFlow lets no model be part of one of another strategy.
        strategy = getattr(self._model, "distribute_strategy", None)
        return strategy.scope() if strategy else contextlib.nullcontext()


def _trainable_normalizations(model: Any) -> list[Any]:
    layers = [
        layer
        for layer in flattened_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
    ]
    is_model = isinstance(model, keras.Model)
    if not is_model or not all(layer.built for layer in [model, *layers]):
        raise ValueError(
            "`update_bn` needs a built Keras model: call it on a batch, or "
            f"`model.build(input_shape)`, first. Received: model={model!r}"
        )
    if not layers:
        raise ValueError(
            "`update_bn` needs a model with a trainable `BatchNormalization` "
            "layer (the statistics of frozen ones never change). Received: "
            f"model={model!r}"
        )
    return layers


def _identity(model: Any) -> list[Any]:
    """All that a compiled pass depends on."""
    compiled = model.compiled and (model.run_eagerly, model.jit_compile)
    weights = model.trainable_variables, model.non_trainable_variables
    layers = _trainable_normalizations(model)
    return [
        id(model),
        compiled,
        *([id(part) for part in parts] for parts in (*weights, layers)),
    ]


def _inputs(data: Any) -> Any:
    if isinstance(data, tuple):
        return keras.utils.unpack_x_y_sample_weight(data)[0]
    return data


def _size(inputs: Any, batch_size: int | None) -> int | None:
    arrays = all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(inputs))
    # Keras would make `steps` batches of all there are.
    return _BATCH_SIZE if arrays and batch_size is None else batch_size


class _AtLeast(keras.callbacks.Callback):
    """Refuses data with fewer batches than asked for."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches
        self.seen = 0

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen += 1

    def on_predict_end(self, logs: Any = None) -> None:
        if self.seen < self.batches:
            wanted = "one batch"
            if self.batches > 1:
                wanted = f"`steps={self.batches}` batches"
            raise ValueError(
                f"`data` must have at least {wanted}. "
                f"Received: {self.seen} batches"
            )


def _assignments(
    layer: Any, mean: numpy.ndarray, variance: numpy.ndarray
) -> list[tuple[Any, Any]]:
    stddev = numpy.sqrt(variance + layer.epsilon)
    values = (mean, variance, stddev, mean, stddev)
    return [
        (getattr(layer, name), _finite(getattr(layer, name), value))
        for name, value in zip(_names(layer), values, strict=False)
    ]


def _names(layer: Any) -> list[str]:
    renorm = ["moving_stddev", "renorm_mean", "renorm_stddev"]
    has_renorm = getattr(layer, "renorm", False)
    return ["moving_mean", "moving_variance", *(renorm if has_renorm else [])]


def _finite(variable: Any, value: numpy.ndarray) -> Any:
    tensor = ops.convert_to_tensor(value, variable.dtype)
    if not ops.convert_to_numpy(ops.all(ops.isfinite(tensor))):
        raise ValueError(
            f"The statistics of '{variable.path}' are not finite in "
            f"{variable.dtype}. Received: {value}. Are all of `data` and all "
            "weights finite?"
        )
    return tensor


def _assign(pairs: list[tuple[Any, Any]]) -> None:
    """All or, if interrupted, none."""
    variables = [variable for variable, _ in pairs]
    before = host_copies(variables)
    try:
        assign(variables, [value for _, value in pairs])
    except BaseException:
        assign(variables, before)
        raise
