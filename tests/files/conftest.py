"""Keras for the few tests here that need it: importing it takes seconds."""

import pytest


@pytest.fixture
def models():
    """The module of tiny models, which imports Keras."""
    import keras
    import models

    keras.utils.set_random_seed(0)
    return models
