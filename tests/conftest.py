"""One backend a process: `KERAS_BACKEND`, or the first that is installed."""

import importlib.util
import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "KERAS_BACKEND" not in os.environ:
    os.environ["KERAS_BACKEND"] = next(
        name
        for name in ("jax", "tensorflow", "torch")
        if importlib.util.find_spec(name)
    )

import keras


def pytest_report_header() -> str:
    """Name what the tests run on."""
    return f"keras {keras.__version__}, backend {keras.config.backend()}"


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Give each test the same seeds and the default dtype policy."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
