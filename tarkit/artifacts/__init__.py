"""Artifacts on disk: a manifest that is the plan, numbered shards that are the progress."""
