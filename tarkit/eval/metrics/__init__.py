"""Numbers that no single benchmark owns: distances, judges, summaries."""
