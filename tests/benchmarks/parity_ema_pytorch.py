"""Checks of ema-pytorch: `EMA`, `KarrasEMA`, `PostHocEMA`."""

import copy
import tempfile

import numpy
import torch
from ema_pytorch import EMA
from ema_pytorch.post_hoc_ema import KarrasEMA, PostHocEMA
from parity_library import CLOCK_STEPS, age_and_width, ticks
from parity_torch import SecondModule, assign, vector, weights


class EmaPytorch(SecondModule):
    """`EMA` with a constant decay, unless a check uses its warm-up."""

    starts = "at the first step"

    def average(self, model, decay, *, corrected=False, precise=False, every=1):
        return EMA(
            model,
            ema_model=copy.deepcopy(model).float() if precise else None,
            coerce_dtype=precise,
            beta=decay,
            # The default of 0 warms the decay up.
            min_value=0.0 if corrected else decay,
            update_after_step=0,
            update_every=every,
        )

    def update(self, average, model, step):
        average.update()

    def module(self, average):
        return average.ema_model

    def coefficient_left_by_updates_every_ten_steps(self):
        samples = numpy.zeros((1001, 3), "float32")
        samples[:2] = 1
        model = vector(samples[0])
        average = self.average(model, 0.999, every=10)
        self.go_through(samples, model, average)
        return weights(average.ema_model).max()

    def power_function_every_ten_steps(self):
        model = vector(ticks()[0])
        average = KarrasEMA(model, sigma_rel=0.1, update_every=10)
        self.go_through(ticks(), model, average)
        return age_and_width(weights(average.ema_model))

    def synthesis(self, every):
        """Make the average of width 0.15 from snapshots of 0.05 and 0.1."""
        model = vector(ticks()[0])
        with tempfile.TemporaryDirectory() as directory:
            average = PostHocEMA(
                model,
                sigma_rels=(0.05, 0.1),
                update_every=every,
                checkpoint_every_num_steps=CLOCK_STEPS // 20,
                checkpoint_folder=directory,
                checkpoint_dtype=torch.float32,
            )
            for sample in ticks()[1:]:
                assign(model, sample)
                average.update()
            made = average.synthesize_ema_model(sigma_rel=0.15)
        return age_and_width(weights(made.ema_model))
