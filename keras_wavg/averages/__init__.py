"""Accumulators: what holds an average of some variables, and updates it.

`base.py` says what each of them does. Those of `device.py` keep averages on the
devices of the weights, or in host memory beside an accelerator, and update them
in one fused call of the running backend. Those of `host.py` keep samples, are
updated rarely, and are plain NumPy, the same on every backend.
"""
