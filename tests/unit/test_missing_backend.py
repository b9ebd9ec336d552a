"""The error of an import without the backend that Keras is configured for."""

import os
import subprocess
import sys

import pytest


def error_of_import(name, missing):
    """The last line that an import prints without some packages."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r})); "
        f"from keras_wavg import {name}"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode
    return run.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["EMA", "update_bn", "CyclicLearningRate"])
def test_a_missing_backend_is_named_with_the_installed_ones(name):
    last = error_of_import(name, ["tensorflow", "jax"])
    assert last.startswith("ImportError: The backend of Keras must be")
    assert "'tensorflow' as the backend, while torch is installed" in last
    assert 'pip install "keras-wavg[tensorflow]"' in last


def test_without_any_backend_the_error_says_so():
    last = error_of_import("EMA", ["tensorflow", "jax", "torch"])
    assert "while no backend is installed" in last
