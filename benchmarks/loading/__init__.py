"""Parts of the load harness, `benchmarks/load.py`."""
