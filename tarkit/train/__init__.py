"""`tarkit train ...`: one module per trainer, all on the loop of `loop.py`."""
