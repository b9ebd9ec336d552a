"""Many random sequences of calls on a model and its averages."""

import hypothesis
import sequences
from hypothesis.stateful import run_state_machine_as_test

MANY = hypothesis.settings(
    max_examples=300,
    stateful_step_count=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)


def test_raw_weights_and_averages_are_right_after_any_sequence():
    run_state_machine_as_test(sequences.Sequence, settings=MANY)
