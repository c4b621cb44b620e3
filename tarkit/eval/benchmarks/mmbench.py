"""MMBench: multiple choice over twenty abilities (Liu et al. 2307.06281), read as lmms-eval does.

MMBench's own figure asks every question in each rotation of its options (CircularEval); here each
row of the file is asked once, so a row is a question.
"""

from __future__ import annotations

from tarkit.eval.benchmark_parts.choices import first_letter_correct, read_choices
from tarkit.eval.benchmarks.base import QuestionBenchmark

BENCHMARK = QuestionBenchmark(
    name="mmbench",
    data="MMBench's .tsv",
    read=read_choices,
    reader="first-letter",
    correct=first_letter_correct,
)
