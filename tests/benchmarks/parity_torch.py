"""Checks of `torch.optim.swa_utils`, and a base class for similar libraries.

The average is a second module next to the trained one, so evaluation does not
swap anything.
"""

import abc
import contextlib
import copy
import io

import numpy
import torch
from parity_library import (
    DECAY,
    Library,
    change,
    count_updates,
    error,
    faint,
    walk,
)
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_multi_avg_fn,
    update_bn,
)


class SecondModule(Library):
    """A library that keeps the average in a second module."""

    @abc.abstractmethod
    def average(self, model, decay, *, corrected=False, precise=False):
        """Return a new average of the weights of a module."""

    @abc.abstractmethod
    def update(self, average, model, step):
        """Update the average, as documented for each optimizer step."""

    @abc.abstractmethod
    def module(self, average):
        """Return the module that holds the average."""

    def follow(self, samples, decay=DECAY, *, corrected=False, dtype="float32"):
        precise = dtype != "float32"
        model = vector(samples[0], getattr(torch, dtype))
        average = self.average(
            model, decay, corrected=corrected, precise=precise
        )
        self.go_through(samples, model, average)
        return weights(self.module(average))

    def go_through(self, samples, model, average, done=0):
        for step, sample in enumerate(samples[1:], start=done + 1):
            assign(model, sample)
            self.update(average, model, step)

    def trained_on(self, samples):
        model = vector(samples[0])
        average = self.average(model, DECAY)
        self.go_through(samples, model, average)
        return model, average

    def raw_weights_after_evaluate(self):
        model, average = self.trained_on(faint())
        self.module(average)(torch.ones(4, 3))
        return change(weights(model), faint()[-1])

    raw_weights_after_predict = raw_weights_after_evaluate
    raw_weights_after_fit = raw_weights_after_evaluate

    def raw_weights_after_an_exception(self):
        model, average = self.trained_on(faint())
        with contextlib.suppress(RuntimeError):
            self.module(average)(torch.ones(4, 99))
        return change(weights(model), faint()[-1])

    def updates_with_accumulation(self):
        model = vector(numpy.ones(3, "float32"))
        average, seen = self.average(model, DECAY), []
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for batch in range(16):
            (model(torch.ones(4, 3)) ** 2).sum().backward()
            if batch % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
                self.update(average, model, batch // 4 + 1)
            seen.append(weights(self.module(average)))
        return count_updates(seen[7:])

    def resume(self):
        model, average = self.trained_on(walk(20))
        file = io.BytesIO()
        torch.save(average.state_dict(), file)
        file.seek(0)
        resumed = copy.deepcopy(model)
        again = self.average(resumed, DECAY)
        again.load_state_dict(torch.load(file))
        self.go_through(walk(40)[20:], model, average, 20)
        self.go_through(walk(40)[20:], resumed, again, 20)
        return change(
            weights(self.module(again)), weights(self.module(average))
        )

    def several_averages(self):
        model, samples = vector(walk(50)[0]), walk(50)
        both = {decay: self.average(model, decay) for decay in (0.9, 0.99)}
        for step, sample in enumerate(samples[1:], start=1):
            assign(model, sample)
            for average in both.values():
                self.update(average, model, step)
        return max(
            error(weights(self.module(average)), samples, decay, self.starts)
            for decay, average in both.items()
        )


class Torch(SecondModule):
    """`AveragedModel` and `update_bn`."""

    starts = "at the first step"

    def average(self, model, decay, *, corrected=False, precise=False):
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def update(self, average, model, step):
        average.update_parameters(model)

    def module(self, average):
        return average.module

    def variance_of_batch_normalization(self, batches):
        model = torch.nn.BatchNorm1d(1)
        update_bn([torch.tensor(batch) for batch in batches], model)
        return float(model.running_var)


def vector(values, dtype=torch.float32):
    """Return a linear layer with one weight per input."""
    model = torch.nn.Linear(len(values), 1, bias=False, dtype=dtype)
    assign(model, values)
    return model


def assign(model, values):
    """Assign the weights of a module."""
    with torch.no_grad():
        model.weight.copy_(torch.tensor(values)[None])


def weights(model):
    """Return the weights of a module as a float64 array."""
    return model.weight.detach()[0].double().numpy().copy()
