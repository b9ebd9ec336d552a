"""Callbacks that average weights while `fit` trains them."""
