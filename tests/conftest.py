"""One backend a process: `KERAS_BACKEND`, or the first that is installed.

Nothing here imports a backend, unless it is TensorFlow: many tests need none.
"""

import gc
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "KERAS_BACKEND" not in os.environ:
    os.environ["KERAS_BACKEND"] = next(
        name
        for name in ("jax", "tensorflow", "torch")
        if importlib.util.find_spec(name)
    )
BACKEND = os.environ["KERAS_BACKEND"]

# Several devices for `test_distribution.py`; all else runs on the first one.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

# Many tests compile the same small models. tox keeps the directory.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(tempfile.gettempdir(), "keras_wavg_tests_jax")),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Otherwise a GPU multiplies with less precision.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")

hypothesis.settings.register_profile("few", max_examples=20, deadline=None)
hypothesis.settings.register_profile("many", max_examples=300, deadline=None)
hypothesis.settings.load_profile("few")

if BACKEND == "tensorflow":
    import tensorflow as tf

    # TensorFlow keeps every graph: a collection takes minutes, frees little.
    gc.set_threshold(700, 10, 1_000_000)
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )


def pytest_report_header() -> str:
    """Name the version of Keras and the backend."""
    return f"keras {importlib.metadata.version('keras')}, backend {BACKEND}"


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Give each test the same seeds and the default dtype policy."""
    if BACKEND == "tensorflow":
        # Collections during the test do not visit the graphs of earlier ones.
        gc.freeze()
    keras = sys.modules.get("keras")
    if keras is None:
        return
    # No garbage collection here: with TensorFlow it takes a second.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def figures():
    """Draw figures without a display, and close them."""
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    yield
    pyplot.close("all")


def pytest_sessionfinish() -> None:
    """Skip the last garbage collection."""
    # With all of TensorFlow's graphs it takes a minute.
    gc.freeze()
