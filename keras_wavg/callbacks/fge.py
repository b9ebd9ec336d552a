"""Fast geometric ensembling."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_wavg import arguments, swapping
from keras_wavg.arguments import Include
from keras_wavg.averages.members import Ensemble
from keras_wavg.backend import require_readable, weights_survive
from keras_wavg.callbacks.averaging import WeightAveraging
from keras_wavg.ensemble import mean_prediction
from keras_wavg.plan import Plan
from keras_wavg.sampling import EverySteps


class FGE(WeightAveraging):
    """Fast geometric ensembling: an ensemble from the cycles of one training.

    The weights at the minimum of each cycle of a triangular learning rate,
    `cycle_steps / 2` optimizer steps into it, become a member of an ensemble
    whose predictions are averaged. Give the optimizer
    `keras_wavg.TriangularLearningRate` with the same `cycle_steps`: this
    callback never touches the learning rate.

    The weights in the model stay raw. The mean of the members' weights, which
    is SWA's solution for the same run, is available by `apply()`, `restore()`,
    `applied()`, `get_weights()` and `save_weights()`, as with `SWA`.

    Memory: a copy of the weights for each member and one for the mean, in host
    memory, and in the files that Keras writes of the model. With `folder`
    members are plain weights files there, and memory and Keras' files have the
    mean alone. Training goes on exactly from either.

    Args:
        cycle_steps: Even integer of at least 2, the optimizer steps of a cycle.
        start: Integer, the optimizer step at which the first cycle begins.
            Defaults to `0`.
        folder: String or `pathlib.Path`. Members are written to
            `member_0001.weights.h5` and so on, each whole or not at all, over
            what is there. Defaults to `None`.
        include: See `SWA`. What is left out is, in each member, what the model
            holds when it predicts (with `folder`: what it held). Defaults to
            `None`.
        name: See `SWA`. Defaults to `"fge"`.

    Example:

    >>> import keras, numpy, keras_wavg
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> cycle = keras_wavg.TriangularLearningRate(0.1, 0.01, cycle_steps=4)
    >>> model.compile(keras.optimizers.SGD(cycle), "mse")
    >>> x, y = numpy.ones((64, 2)), numpy.ones((64, 1))
    >>> fge = keras_wavg.FGE(cycle_steps=4)
    >>> history = model.fit(x, y, epochs=4, verbose=0, callbacks=[fge])
    >>> fge.members
    2
    >>> fge.predict(x, verbose=0).shape
    (64, 1)

    Raises:
        ValueError: If an argument is out of its range, or if `include` matches
            no weight.

    References:
        [Garipov et al., 2018](https://arxiv.org/abs/1802.10026), section 4
    """

    def __init__(
        self,
        cycle_steps: int,
        *,
        start: int = 0,
        folder: str | os.PathLike[str] | None = None,
        include: Include = None,
        name: str | None = None,
    ) -> None:
        self.cycle_steps = arguments.even("cycle_steps", cycle_steps)
        self.start = arguments.integer("start", start, at_least=0)
        self.folder = folder
        plan = Plan(
            name=arguments.name(name, "fge"),
            method=Ensemble(None if folder is None else Path(folder)),
            sampling=EverySteps(
                self.cycle_steps,
                self.start,
                head_start=self.cycle_steps // 2,
            ),
            include=arguments.include(include),
        )
        super().__init__(plan, swap=False)

    def on_train_begin(self, logs: Any = None) -> None:
        """Begin, unless files of members could not be written."""
        super().on_train_begin(logs)
        if self.folder is not None:
            require_readable(self.model)

    @property
    def members(self) -> int:
        """The number of members so far."""
        shadow = self._average()
        return 0 if shadow is None else shadow.steps

    @contextlib.contextmanager
    def member(self, index: int) -> Iterator[None]:
        """Context in which the model holds a member.

        Afterwards the model holds what it held before, bit for bit. Do not
        train in it.

        Args:
            index: Integer from 0 on, the oldest first.

        Yields:
            `None`.

        Raises:
            ValueError: If there is no such member.
            FileNotFoundError: If its file is gone.
        """
        shadow = self._required_average()
        if index not in range(shadow.steps):
            raise ValueError(
                f"`index` must be in the range [0, {shadow.steps}), there are "
                f"{shadow.steps} members. Received: index={index!r}"
            )
        variables, values = shadow.averages.member(self.model, index)
        with (
            swapping.holding(variables, values),
            weights_survive(self.model),
        ):
            yield

    def predict(self, x: Any, *, verbose: Any = "auto", **options: Any) -> Any:
        """The mean of what the members predict.

        What the model outputs is averaged: let it end in a softmax for a mean
        of probabilities.

        Args:
            x: What `model.predict` takes, and that can be gone through again
                and again.
            verbose: `"auto"` or 1 for a progress bar, 0 for none. Defaults to
                `"auto"`.
            **options: What else `model.predict` takes.

        Returns:
            NumPy array(s), as `model.predict` returns.

        Raises:
            ValueError: If there is no member yet, or if `x` is an iterator.
            FileNotFoundError: If the file of a member is gone.
        """
        self._required_average()
        members = [self.member(index) for index in range(self.members)]
        return mean_prediction(
            self.model, x, members, verbose=verbose, **options
        )
