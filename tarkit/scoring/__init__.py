"""Detectors, checkers and statistics that evaluation, curation and training share."""
