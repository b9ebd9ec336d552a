"""Properties that `tests/live` checks with few examples, with many."""

import hypothesis
import hypothesis.strategies as st
import saving


# An example trains nothing, and takes a second on JAX.
@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(plan=saving.PLANS, name=st.sampled_from([*saving.AVERAGES]))
def test_saving_and_loading_at_any_time_changes_nothing(
    plan, name, tmp_path_factory
):
    path = tmp_path_factory.mktemp("plan") / "a.weights.h5"
    saving.save_and_load_at_any_time(plan, name, path)
