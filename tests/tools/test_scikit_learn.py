"""Scikit-learn sends the callbacks to its processes, which start slowly."""

from logged import assert_cross_validates_the_average


def test_scikit_learn_cross_validates_the_average_in_two_processes():
    assert_cross_validates_the_average(n_jobs=2)
