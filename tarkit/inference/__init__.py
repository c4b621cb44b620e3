"""A trained Tar at work: codes drawn, pictures decoded, questions answered."""
