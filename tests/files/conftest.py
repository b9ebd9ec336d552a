"""Fixtures for the few tests here that need Keras, which imports slowly."""

import pytest


@pytest.fixture
def models():
    """The module of small models, which imports Keras."""
    import keras
    import models

    keras.utils.set_random_seed(0)
    return models
