"""The table of benchmarks: one module each, which defines what the table names."""

from typing import Any

import pytest
import typer.main

from tarkit.cli.app import app
from tarkit.errors import UserError
from tarkit.eval.benchmarks import PICTURES, QUESTIONS, load_benchmark
from tarkit.eval.benchmarks.base import PictureBenchmark, QuestionBenchmark


@pytest.mark.parametrize("name", [*PICTURES, *QUESTIONS])
def test_a_module_defines_the_benchmark_of_its_name(name: str) -> None:
    benchmark = load_benchmark(name)
    kind = PictureBenchmark if name in PICTURES else QuestionBenchmark
    assert isinstance(benchmark, kind) and benchmark.name == name
    assert tuple(benchmark.layouts) == {**PICTURES, **QUESTIONS}[name]


def test_every_benchmark_is_a_command_and_in_the_help_of_prepare() -> None:
    root: Any = typer.main.get_command(app)
    commands = root.commands["eval"].commands
    assert {*PICTURES, *QUESTIONS} <= set(commands)
    (argument,) = [each for each in commands["prepare"].params if each.name == "bench"]
    assert argument.help == ", ".join((*PICTURES, *QUESTIONS))


def test_a_module_beside_the_benchmarks_is_no_benchmark() -> None:
    with pytest.raises(
        UserError, match="no benchmark 'choices': known are geneval, geneval2, dpg, pope"
    ):
        load_benchmark("choices")
