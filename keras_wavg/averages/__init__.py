"""Accumulators: objects that hold an average of variables and update it.

`base.py` defines the interface. The accumulators of `device.py` keep averages
on the devices of the weights, or in host memory, and update them in one fused
call of the running backend. Those of `host.py` keep samples, are updated
rarely, and use plain NumPy on every backend.
"""
