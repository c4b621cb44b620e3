"""One file a benchmark: what it asks, how an answer is scored, how its own scorer reads a run."""
