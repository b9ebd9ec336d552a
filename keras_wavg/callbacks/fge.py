"""Fast geometric ensembling."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_wavg import arguments, swapping
from keras_wavg.arguments import Include
from keras_wavg.averages.members import Ensemble
from keras_wavg.backend import recovered_weights, require_readable
from keras_wavg.callbacks.weight_averaging import WeightAveraging
from keras_wavg.ensemble import mean_prediction
from keras_wavg.sampling import EverySteps


class FGE(WeightAveraging):
    """Fast geometric ensembling: an ensemble from the cycles of one training.

    With a triangular cyclic learning rate, the weights at the minimum of each
    cycle, `cycle_steps / 2` optimizer steps after its start, become a member of
    an ensemble, whose predictions are averaged. Give the optimizer
    `keras_wavg.CyclicLearningRate(..., shape="triangle")` with the same
    `cycle_steps`. The callback does not change the learning rate.

    `fit` leaves the raw weights in the model: there is no `swap` argument. The
    mean of the members' weights, which is SWA's solution for the same run, is
    available with `apply()`, `restore()`, `applied()`, `get_weights()` and
    `save_weights()`, as with `SWA`.

    Memory: a copy of the weights for each member and one for the mean, in host
    memory and in the files that Keras saves; the device stores nothing, so
    there is no `device` argument. With `member_dir` members are weights files
    in that directory, and memory and Keras' files contain only the mean.
    Training resumes exactly in both cases.

    Args:
        cycle_steps: Even integer >= 2, the number of optimizer steps in a
            cycle.
        start_step: Non-negative integer, the optimizer step at which the first
            cycle starts. Defaults to `0`.
        member_dir: String or `pathlib.Path` of a directory, to which members
            are written atomically as `member_0001.weights.h5` and so on.
            Existing files are replaced. Defaults to `None`, host memory.
        include: String, function or `None`. See `EMA`. Excluded weights have,
            in each member, the values that the model holds when it predicts
            (with `member_dir`: those it held when the member was saved).
            Defaults to `None`, every weight.
        name: String. See `EMA`. Defaults to `"fge"`.

    Example:

    >>> import keras, numpy, keras_wavg
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> cycle = keras_wavg.CyclicLearningRate(
    ...     0.1, 0.01, cycle_steps=4, shape="triangle"
    ... )
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
        start_step: int = 0,
        member_dir: str | os.PathLike[str] | None = None,
        include: Include = None,
        name: str | None = None,
    ) -> None:
        self.cycle_steps = arguments.even("cycle_steps", cycle_steps)
        self.start_step = arguments.integer(
            "start_step", start_step, at_least=0
        )
        self.member_dir = None if member_dir is None else Path(member_dir)
        super().__init__(
            Ensemble(self.member_dir),
            EverySteps(
                self.cycle_steps,
                self.start_step,
                phase=self.cycle_steps // 2,
            ),
            include=include,
            swap=False,
            name=name,
        )

    def on_train_begin(self, logs: Any = None) -> None:
        """Start, and check that members can be written."""
        super().on_train_begin(logs)
        if self.member_dir is not None:
            require_readable(self.model)

    @property
    def members(self) -> int:
        """The number of members so far."""
        averaged = self._average()
        return 0 if averaged is None else averaged.steps

    @contextlib.contextmanager
    def member(self, index: int) -> Iterator[None]:
        """Context in which the model holds a member.

        On exit the model holds what it held on entry, bit for bit. Do not train
        the model in the context.

        Args:
            index: Integer from 0, the oldest member first.

        Yields:
            `None`.

        Raises:
            ValueError: If there is no such member.
            FileNotFoundError: If its file is missing.
        """
        averaged = self._required_average()
        if index not in range(averaged.steps):
            raise ValueError(
                f"`index` must be less than the number of members, "
                f"{averaged.steps}, and not negative. Received: index={index!r}"
            )
        variables, values = averaged.averages.member(self.model, index)
        with (
            swapping.swapped_in(variables, values),
            recovered_weights(self.model),
        ):
            yield

    def predict(self, x: Any, *, verbose: Any = "auto", **options: Any) -> Any:
        """Return the mean prediction of the members.

        The outputs of the model are averaged. For a mean of probabilities, end
        the model with a softmax.

        Args:
            x: Inputs that `model.predict` accepts and that can be iterated
                repeatedly.
            verbose: `"auto"` or 1 for a progress bar, 0 for none. Defaults to
                `"auto"`.
            **options: Other arguments of `model.predict`.

        Returns:
            NumPy array(s), as `model.predict` returns.

        Raises:
            ValueError: If there is no member yet, or if `x` is an iterator.
            FileNotFoundError: If the file of a member is missing.
        """
        self._required_average()
        members = [self.member(index) for index in range(self.members)]
        return mean_prediction(
            self.model, x, members, verbose=verbose, **options
        )
