"""Moving statistics of `BatchNormalization`, measured for given weights."""

import contextlib
import operator
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy
from keras import ops

from keras_wavg.backend import attach_weights, randomness_kept


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
            `None`, which is 32 as in `predict`.
        variance: `"population"`, the mean and variance of all elements that
            reach the layer, whatever batch they come in. Or `"batch_mean"`,
            what `torch.optim.swa_utils.update_bn` measures: the plain mean
            over the batches of their means and unbiased variances. That one is
            too small if batches differ. Defaults to `"population"`.
        verbose: `"auto"`, 0, 1, or 2, as in `predict`. Defaults to `"auto"`.

    Example:

    >>> import keras, numpy
    >>> from keras_wavg.batchnorm import update_bn
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
        self._seen = _Seen()
        with self._strategy_scope():
            self._probe = _Probe(model, self._layers, self._seen)

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
        combine = _combination(variance)
        measured = self._run(
            x=_inputs(data),
            batch_size=batch_size,
            steps=steps,
            verbose=verbose,
            callbacks=[_AtLeast(_least(steps))],
        )
        # All values before the first is assigned: one may be refused.
        _assign(
            [
                assignment
                for layer, rows in zip(self._layers, measured, strict=True)
                for assignment in _assignments(layer, *combine(layer, rows))
            ]
        )

    def _run(self, **data: Any) -> list[numpy.ndarray]:
        """An array `(calls, 4, channels)` of each layer."""
        attach_weights(self._model)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._strategy_scope())
            stack.enter_context(randomness_kept())
            for layer in self._layers:
                call = _observed(layer, self._seen)
                stack.enter_context(_lent(layer, call=call))
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
        for layer in getattr(model, "_flatten_layers", list)()
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


_Moments = tuple[numpy.ndarray, numpy.ndarray]


def _inputs(data: Any) -> Any:
    if isinstance(data, tuple):
        return keras.utils.unpack_x_y_sample_weight(data)[0]
    return data


def _combination(variance: Any) -> Callable[[Any, numpy.ndarray], _Moments]:
    if variance == "population":
        return _population
    if variance == "batch_mean":
        return _batch_mean
    raise ValueError(
        "`variance` must be 'population' or 'batch_mean'. "
        f"Received: variance={variance!r}"
    )


def _least(steps: Any) -> int:
    try:
        batches = 1 if steps is None else operator.index(steps)
    except TypeError:
        batches = 0
    if batches < 1:
        raise ValueError(
            "`steps` must be an integer >= 1, or `None`. "
            f"Received: steps={steps!r}"
        )
    return batches


class _Seen(threading.local):
    """Statistics by layer. One batch a thread: TensorFlow's replicas are."""

    def __init__(self) -> None:
        self.of: dict[int, list[Any]] = {}


class _Probe(keras.Model):
    """Maps a batch to the statistics that layers of a model see of it.

    A model for the sake of its `predict`: that takes any data, compiles,
    distributes, shows the progress, and concatenates.
    """

    def __init__(self, model: Any, layers: list[Any], seen: _Seen) -> None:
        super().__init__(name="probe", dtype="float32", autocast=False)
        self.probed = model
        self.seen = seen
        self.channels = {id(v): v.moving_mean.shape[0] for v in layers}
        self.running = ""
        self.built = True
        if model.compiled:
            self.run_eagerly = model.run_eagerly
            if not model.jit_compile:
                self.jit_compile = False

    def call(self, inputs: Any) -> list[Any]:
        self.running = str(keras.tree.map_structure(_shape, inputs))
        self.seen.of = {layer: [] for layer in self.channels}
        self.probed(inputs, training=False)
        self.running = ""
        return [
            ops.stack(statistics)
            if (statistics := self.seen.of[layer])
            else ops.zeros((0, 4, channels))
            for layer, channels in self.channels.items()
        ]

    def _get_jax_state(self, **kinds: Any) -> Any:
        # JAX donates the state of a model to each batch. With a copy, the
        # weights stay where they are, whatever happens.
        kinds["purge_model_variables"] = False
        state = super()._get_jax_state(**kinds)
        return keras.tree.map_structure(ops.copy, state)

    def jax_state_sync(self) -> None:
        """Leave the weights as they are."""


def _shape(array: Any) -> Any:
    return tuple(getattr(array, "shape", ()))


def _observed(layer: Any, seen: _Seen) -> Callable[..., Any]:
    """The layer's `call`, by the statistics of the batch, which are noted."""
    call = layer.call

    def observed(inputs: Any, *_: Any, mask: Any = None, **__: Any) -> Any:
        statistics = _statistics(layer, inputs, mask)
        seen.of[id(layer)].append(statistics)
        mean, _, variance, _ = ops.unstack(statistics)
        if getattr(layer, "synchronized", False):
            mean, variance = layer._moments(ops.cast(inputs, mean.dtype), mask)
        # In inference the layer normalizes by its moving statistics. So no
        # variable needs to be assigned, and renormalization has no say.
        with _lent(layer, moving_mean=mean, moving_variance=variance):
            return call(inputs, training=False, mask=mask)

    return observed


@contextlib.contextmanager
def _lent(layer: Any, **attributes: Any) -> Iterator[None]:
    """Context in which a layer has other attributes, untracked by Keras."""
    own = vars(layer)
    before = {name: own[name] for name in attributes.keys() & own.keys()}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del own[name]
        own.update(before)


def _statistics(layer: Any, inputs: Any, mask: Any) -> Any:
    """Mean, its rounding error, biased variance and count of each channel."""
    dtype = keras.backend.result_type(inputs.dtype, "float32")
    inputs = ops.cast(inputs, dtype)
    kept = ops.ones_like(inputs, dtype="bool")
    if mask is not None:
        kept = ops.logical_and(kept, ops.expand_dims(mask, -1))
    axes = layer._reduction_axes
    count = ops.cast(_sum(ops.cast(kept, "int32"), axes), dtype)

    def average(values: Any) -> Any:
        total = _sum(ops.where(kept, values, 0), axes)
        return total / ops.maximum(count, 1)

    mean = average(inputs)
    rest = average(inputs - mean)
    variance = average(ops.square(inputs - mean)) - ops.square(rest)
    variance = ops.maximum(variance, 0)
    rows = (mean, rest, variance, count)
    return ops.stack([ops.reshape(row, (-1,)) for row in rows])


def _sum(values: Any, axes: list[int]) -> Any:
    # Axis by axis: TensorFlow adds one number after the other, and a long sum
    # of images loses half of the digits.
    for axis in axes:
        values = ops.sum(values, axis, keepdims=True)
    return values


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


def _population(layer: Any, rows: numpy.ndarray) -> _Moments:
    means, variances, counts = _used(layer, rows)
    shares = counts / counts.sum(axis=0)
    mean = (shares * means).sum(axis=0)
    # The law of total variance: within the batches, and between them.
    return mean, (shares * (variances + (means - mean) ** 2)).sum(axis=0)


def _batch_mean(layer: Any, rows: numpy.ndarray) -> _Moments:
    means, variances, counts = _used(layer, rows)
    if counts.min() == 1:
        raise ValueError(
            "`variance='batch_mean'` needs two or more elements of each "
            "channel in each batch, for its unbiased variance. Received: one, "
            f"in layer '{layer.path}'"
        )
    unbiased = variances * counts / (counts - 1)
    return means.mean(axis=0), unbiased.mean(axis=0)


def _used(layer: Any, rows: numpy.ndarray) -> list[numpy.ndarray]:
    """Means, variances and counts, each `(calls, channels)`."""
    # A replica may get no sample of the last batch, and masks may hide all.
    used = rows[(rows[:, -1] > 0).all(axis=1)].astype("float64")
    if not len(used):
        raise ValueError(
            f"The layer '{layer.path}' was never updated: no element of "
            "`data` reaches it in `model(inputs)`. Freeze it, "
            "`layer.trainable = False`, to keep its statistics."
        )
    means, rests, variances, counts = used.transpose(1, 0, 2)
    return [means + rests, variances, counts]


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
    # Copies, because torch would show its own memory.
    before = [
        (variable, numpy.array(ops.convert_to_numpy(variable)))
        for variable, _ in pairs
    ]
    try:
        for variable, value in pairs:
            variable.assign(value)
    except BaseException:
        for variable, value in before:
            variable.assign(value)
        raise
