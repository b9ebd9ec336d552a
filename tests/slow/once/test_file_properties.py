"""Checks the properties of `tests/files` with many examples."""

import file_properties
import pytest


@pytest.mark.parametrize(
    "check", file_properties.STRATEGIES, ids=lambda check: check.__name__
)
def test_properties_hold_for_many_files(check, tmp_path_factory):
    test = file_properties.examples(check, "many")
    test(tmp_path_factory=tmp_path_factory)
