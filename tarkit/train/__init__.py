"""`tarkit train ...`: one module a stage, all on the one loop of `loop.py`."""
