"""Scene graphs: parents, DPG's published faults, and what a bad cell does."""

from pathlib import Path

import pytest

from tarkit.errors import UserError
from tarkit.eval.benchmark_parts.dsg import (
    GraphQuestion,
    SceneGraph,
    graph_results,
    parse_dependency,
    read_graphs,
    valid,
)

# A fox (1) in a hat (2, needs 1), a red hat (3, needs 2), on snow (4).
FOX = SceneGraph(
    "fox",
    "a fox in a red hat on snow",
    (
        GraphQuestion(1, "Is there a fox?", (), "entity - whole"),
        GraphQuestion(2, "Does the fox wear a hat?", (1,), "relation - spatial"),
        GraphQuestion(3, "Is the hat red?", (2,), "attribute - color"),
        GraphQuestion(4, "Is there snow?", (), "entity - whole"),
    ),
)
CUP = SceneGraph("cup", "a cup", (GraphQuestion(1, "Is there a cup?", (), "entity - whole"),))
NO_FOX = {1: False, 2: True, 3: True, 4: True}
ALL = {1: True, 2: True, 3: True, 4: True}


def test_a_yes_counts_only_if_every_parent_is_yes_and_grandparents_do_not_matter() -> None:
    # 2 falls with 1; 3 keeps its yes, since 2 itself was answered yes: 2 of 4.
    assert valid(FOX, NO_FOX) == {1: False, 2: False, 3: True, 4: True}
    assert graph_results([FOX], {"fox": [NO_FOX]})["overall"]["value"] == 0.5


def test_the_overall_is_a_mean_over_prompts_of_means_over_pictures() -> None:
    answers = {"fox": [NO_FOX, ALL], "cup": [{1: False}]}
    found = graph_results([FOX, CUP], answers)
    assert found["overall"]["value"] == pytest.approx(((0.5 + 1.0) / 2 + 0.0) / 2)
    # entity - whole: fox no and yes, snow yes and yes, the cup no: 3 of 5.
    assert found["detailed"]["entity - whole"]["value"] == pytest.approx(3 / 5)
    assert found["categories"]["relation"]["value"] == pytest.approx(1 / 2)
    assert found["coverage"] == 1.0 and found["num_questions"] == 5


def test_as_published_the_first_row_is_lost_and_the_prompt_with_it() -> None:
    # 61: question 1 of the fox is gone, 2 depends on it, so the prompt is skipped: the cup alone.
    answers = {"fox": [ALL], "cup": [{1: False}]}
    assert graph_results([FOX, CUP], answers)["overall"]["value"] == pytest.approx(0.5)
    found = graph_results([FOX, CUP], answers, as_published=True)
    assert found["overall"]["value"] == 0.0 and found["skipped"] == ["fox"]
    # Where no question depends on the first, only the question is lost: 3 of 3, not 3 of 4.
    free = SceneGraph("fox", FOX.prompt, tuple(GraphQuestion(n, "?") for n in (1, 2, 3, 4)))
    found = graph_results([free, CUP], {"fox": [NO_FOX], "cup": [{1: True}]}, as_published=True)
    assert found["overall"]["value"] == 1.0 and found["skipped"] == []


def test_as_published_categories_are_the_last_pictures_and_were_not_zeroed() -> None:
    # 60: of the fox's pictures only the last counts, and its hat is a yes though there is no fox.
    answers = {"cup": [{1: True}, {1: True}], "fox": [ALL, NO_FOX]}
    right = graph_results([CUP, FOX], answers)["categories"]
    wrong = graph_results([CUP, FOX], answers, as_published=True)["categories"]
    assert right["relation"]["value"] == pytest.approx(1 / 2)
    assert wrong["relation"]["value"] == 1.0
    # entity: as published fox no, snow yes of the last picture; the cup's question was lost.
    assert wrong["entity"]["value"] == pytest.approx(1 / 2)


def test_as_published_a_question_is_zeroed_before_its_children_are_read() -> None:
    # In place: 1 is no, so 2 becomes no, so 3 becomes no: 1 of 4 where one hop gives 2 of 4.
    answers = {"cup": [{1: True}], "fox": [NO_FOX]}
    two = SceneGraph("cup", "two cups", (*CUP.questions, GraphQuestion(2, "Are there two?")))
    answers["cup"] = [{1: True, 2: True}]
    found = graph_results([two, FOX], answers, as_published=True)
    assert found["overall"]["value"] == pytest.approx((1.0 + 0.25) / 2)


def test_a_missing_answer_is_no_and_lowers_coverage() -> None:
    found = graph_results([FOX], {"fox": [{**ALL, 4: None}]})
    assert found["overall"]["value"] == 0.75 and found["coverage"] == 0.75
    with pytest.raises(UserError, match="the first is cup"):
        graph_results([FOX, CUP], {"fox": [ALL]})


@pytest.mark.parametrize(
    ("cell", "parents"),
    [("0", ()), ("", ()), ("1", (1,)), ("3, 1", (3, 1)), ("2,2", (2,)), ("5, air", None)],
)
def test_a_dependency_cell_is_numbers_or_malformed(cell: str, parents: object) -> None:
    assert parse_dependency(cell) == parents


def test_a_csv_is_read_and_a_malformed_cell_is_kept_and_reported(tmp_path: Path) -> None:
    head = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
    rows = 'a,A,1,0,entity - whole (air),Is there air?\na,A,2,"1, air",global - (A),Is it cold?\n'
    (tmp_path / "q.csv").write_text(head + rows)
    (graph,) = read_graphs(tmp_path / "q.csv")
    assert [question.parents for question in graph.questions] == [(), ()]
    assert graph.questions[0].category == "entity - whole" and graph.questions[0].broad == "entity"
    found = graph_results([graph], {"a": [{1: False, 2: True}]})
    assert found["malformed"] == ["a question 2: 1, air"] and found["overall"]["value"] == 0.5
    (tmp_path / "bad.csv").write_text(head + "a,A,one,0,t,q\n")
    with pytest.raises(UserError, match="bad.csv:2: proposition_id 'one'"):
        read_graphs(tmp_path / "bad.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no column item_id"):
        read_graphs(tmp_path / "other.csv")
