"""Checks of `ModelEmaV3` of timm."""

import importlib.util
from pathlib import Path

import torch
from parity_torch import SecondModule


def imported(package: str, file: str):
    """Import one file of a package, because all of timm needs torchvision."""
    found = importlib.util.find_spec(package)
    if found is None:
        raise ModuleNotFoundError(package)
    path = Path(found.origin).parent / file
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ModelEmaV3 = imported("timm", "utils/model_ema.py").ModelEmaV3


class Timm(SecondModule):
    """`ModelEmaV3` with its warm-up and float32 average."""

    def average(self, model, decay, *, corrected=False, precise=False):
        return ModelEmaV3(
            model,
            decay,
            use_warmup=corrected,
            dtype=torch.float32 if precise else None,
        )

    def update(self, average, model, step):
        # Only the warm-up needs the step. With a step, the first is skipped.
        average.update(model, step if average.use_warmup else None)

    def module(self, average):
        return average.module
