"""What several benchmarks share: readers of files, lettered choices, detections, export layouts."""
