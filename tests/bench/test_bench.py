"""Every subject of `tarkit bench` with tiny models: it runs, and its ways compute the same."""

import json
import subprocess

import pytest
import torch
from typer.testing import CliRunner

from tarkit.bench.bench import run
from tarkit.bench.case import Floor
from tarkit.bench.cases import Subject
from tarkit.bench.cases.start import command
from tarkit.bench.ceilings import Ceilings
from tarkit.bench.products import Products
from tarkit.bench.table import duration, markdown, short, table
from tarkit.cli.app import app

ON_MODELS = [
    Subject.ENCODE,
    Subject.CONDITION,
    Subject.DECODE,
    Subject.SAMPLE,
    Subject.DRAW,
    Subject.TRAIN,
]


@pytest.mark.parametrize("subject", ON_MODELS)
def test_the_ways_of_every_case_give_the_same_result(subject: Subject) -> None:
    result = run([subject], tiny=True)
    assert result["cases"]
    for case in result["cases"]:
        ways = case["ways"]
        # Eight samples of one prompt are compared with one.
        assert "ours" in ways and {"stock", "one sample"} & set(ways), case["name"]
        assert all(way.get("agreement", 1.0) == 1.0 for way in ways.values()), case
        assert all(way["seconds"] > 0 for way in ways.values())
    assert case["name"] in table(result)


def test_the_start_of_a_command_is_timed_in_new_processes() -> None:
    [case] = run([Subject.START], tiny=True, only="train --help")["cases"]
    assert set(case["ways"]) == {"ours", "stock"}
    assert all(way["first_s"] > 0.01 for way in case["ways"].values())  # Python alone takes that


@pytest.mark.slow
def test_the_ways_of_data_and_start_run() -> None:
    result = run([Subject.DATA, Subject.START], tiny=True)
    assert len(result["cases"]) == 8


def test_a_program_that_fails_stops_the_measurement() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        command(["generate", "--no-such-option"])()


def test_the_command_prints_a_table_or_json() -> None:
    words = ["bench", "condition", "--tiny", "--only", "36 codes", "--device", "cpu"]
    said = CliRunner().invoke(app, words).stdout
    assert "condition of 36 codes" in said
    assert "condition of 9 codes" not in said
    result = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert [case["name"] for case in result["cases"]] == ["condition of 36 codes"]
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert result["versions"]["torch"]
    page = markdown(result)
    head, line, case, *ways = page.partition("### condition\n\n")[2].splitlines()
    assert head == "| work and way | median | interval | rate | x ours | of floor | equal |"
    assert case == "| **condition of 36 codes** |  |  | pictures/s |  |  |  |"
    assert [way.split(" | ")[0] for way in ways] == [
        "| floor, by products",
        "| ours",
        "| products",
        "| stock",
        "| published",
    ]
    assert {each.count("|") for each in (head, line, case, *ways)} == {8}
    done = CliRunner().invoke(app, [*words, "--markdown", "--json"])
    assert done.exit_code == 1 and "--json and --markdown" in done.stderr


def test_a_floor_is_the_longer_of_products_and_memory() -> None:
    ceilings = Ceilings({"float32": 100.0}, {"read": 10.0, "copy": 5.0})
    assert ceilings.bound(Floor(flops=200.0, bytes=10.0)) == (2.0, "products")
    assert ceilings.bound(Floor(flops=200.0, bytes=50.0)) == (5.0, "memory")
    assert ceilings.bound(Floor(flops=200.0, precision="int8")) is None


def test_products_count_two_operations_a_multiplication() -> None:
    products = Products(torch.device("cpu"))
    products.linear(3, torch.ones(5, 4), torch.ones(2, 4))
    assert products.flops == 2 * 3 * 4 * (5 + 2)
    products.attention(2, batch=1, heads=2, positions=6, width=8)
    assert products.flops - 168 == 2 * 2 * (2 * 2 * 6 * 6 * 8)  # scores and values, two heads
    products()


def test_times_are_short_texts() -> None:
    assert [duration(s) for s in (123.4, 1.25, 0.0314, 8.02e-6)] == [
        "123 s",
        "1.25 s",
        "31.4 ms",
        "8.02 us",
    ]
    assert short(12345.6) == "12,346"
