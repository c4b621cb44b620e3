"""Models on disk: where they lie, how they are read and checked, how they are put together."""
