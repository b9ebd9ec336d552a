"""What `tests/files` checks with few examples, with many."""

import file_properties
import pytest


@pytest.mark.parametrize(
    "check", file_properties.STRATEGIES, ids=lambda check: check.__name__
)
def test_what_holds_for_a_few_files_holds_for_many(check, tmp_path_factory):
    test = file_properties.examples(check, "many")
    test(tmp_path_factory=tmp_path_factory)
