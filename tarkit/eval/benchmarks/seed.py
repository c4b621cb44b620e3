"""SEED-Bench: multiple choice about pictures (Li et al. 2307.16125), read as lmms-eval does."""

from __future__ import annotations

from tarkit.eval.benchmark_parts.choices import first_letter_correct, read_choices
from tarkit.eval.benchmarks.base import QuestionBenchmark

BENCHMARK = QuestionBenchmark(
    name="seed",
    data="SEED-Bench's questions as .jsonl or .parquet",
    read=read_choices,
    reader="first-letter",
    correct=first_letter_correct,
)
