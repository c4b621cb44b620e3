import hashlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tarkit.artifacts.artifact import Artifact, open_artifact
from tarkit.curate.render import QuestionWeights, RenderPlan
from tarkit.errors import UserError
from tarkit.images import decode, to_uint8
from tarkit.shapes import questions
from tarkit.shapes.grammar import parse
from tarkit.shapes.prompts import g0_captions
from tarkit.shapes.render import render as draw
from tarkit.shapes.sampling import holds_held_out_picture
from tarkit.shapes.scene import scene_from_json

SMALL = ["count=60", "shard_size=20", "num_workers=1", "similar_share=0.5", "reference_share=0.5"]


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return [row for name in artifact.shards for row in artifact.rows(name)]


def fingerprints(path: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.iterdir())
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return RenderPlan(out=tmp_path_factory.mktemp("render") / "small", overrides=SMALL).run()


def test_every_picture_is_drawn_again_from_its_scene_and_seed(small: Artifact) -> None:
    for name in small.shards:
        for row, blob in small.read_images(name):
            assert blob is not None
            rng = np.random.default_rng(row["seed"])
            assert (to_uint8(decode(blob)) == draw(scene_from_json(row["scene"]), rng)).all()


def test_a_group_is_a_target_with_its_similar_picture_and_its_reference(small: Artifact) -> None:
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows_of(small):
        assert row["role"] not in groups.setdefault(row["group"], {})
        groups[row["group"]][row["role"]] = row
    assert len(groups) == 60  # count is of targets
    sizes = [set(group) for group in groups.values()]
    assert {"target"} in sizes and {"target", "similar", "reference"} in sizes
    for key, group in groups.items():
        target = group["target"]
        assert (target["key"], target["parent_key"]) == (key, None)
        assert (target["template"] is not None) == ("reference" in group)
        for role, suffix in (("similar", "-1"), ("reference", "-2")):
            if role in group:
                assert (group[role]["key"], group[role]["parent_key"]) == (key + suffix, key)


def test_a_similar_picture_shows_the_same_things_at_other_places(small: Artifact) -> None:
    rows = {row["key"]: row for row in rows_of(small)}
    pairs = [
        (scene_from_json(rows[row["parent_key"]]["scene"]), scene_from_json(row["scene"]))
        for row in rows.values()
        if row["role"] == "similar"
    ]
    assert len(pairs) >= 15  # half of 60, give or take
    for one, other in pairs:
        names = [[(item.shape, item.colour) for item in scene.objects] for scene in (one, other)]
        assert names[0] == names[1]
        assert one.background.kind == other.background.kind
        assert [item.x for item in one.objects] != [item.x for item in other.objects]


def test_a_reference_is_the_object_that_the_template_leaves_out(small: Artifact) -> None:
    rows = {row["key"]: row for row in rows_of(small)}
    references = [row for row in rows.values() if row["role"] == "reference"]
    assert len(references) >= 10
    for row in references:
        (alone,) = scene_from_json(row["scene"]).objects
        target = rows[row["parent_key"]]
        assert target["template"].count("<image>") == 1
        article = "an" if alone.colour[0] in "aeiou" else "a"
        whole = target["template"].replace("<image>", f"{article} {alone.colour} {alone.shape}")
        # With the object's name in the mark's place the template says the whole scene again.
        said = {(colour, shape) for _, colour, shape in parse(whole).groups}
        scene = scene_from_json(target["scene"])
        assert said == {(item.colour, item.shape) for item in scene.objects}


def test_captions_are_one_sentence_first_and_dense_second_and_true(small: Artifact) -> None:
    for row in rows_of(small):
        scene = scene_from_json(row["scene"])
        names = sorted((item.colour, item.shape) for item in scene.objects)
        assert len(row["captions"]) == 2
        for caption in row["captions"]:
            facts = parse(caption)
            said = sorted((c, s) for number, c, s in facts.groups for _ in range(number))
            assert said == names and facts.background == scene.background.kind
        assert row["captions"][0].count(".") == 0 and row["captions"][1].count(".") >= 2


def test_every_picture_has_different_questions_with_answers(small: Artifact) -> None:
    for row in rows_of(small):
        assert len(row["qa"]) == 4
        assert len({pair["question"] for pair in row["qa"]}) == 4
        assert all(pair["answer"] for pair in row["qa"])


def test_what_is_recorded_leaves_out_a_kind_that_older_artifacts_did_not_have(
    tmp_path: Path,
) -> None:
    """Artifacts that were begun before can be gone on with."""
    plans = [
        RenderPlan(out=tmp_path, overrides=[f"prompt.reworded={weight}"]) for weight in (0, 0.5)
    ]
    assert [plan.recorded["prompt"].get("reworded") for plan in plans] == [None, 0.5]


def test_the_weights_choose_the_kind_of_prompt(tmp_path: Path) -> None:
    dense = ["prompt.g0=0", "prompt.g1=0", "prompt.g2=1"]
    artifact = RenderPlan(out=tmp_path / "dense", overrides=[*SMALL, *dense]).run()
    assert all(row["prompt"].endswith(".") for row in rows_of(artifact))
    short = ["prompt.g0=2", "prompt.g1=0", "prompt.g2=0"]
    artifact = RenderPlan(out=tmp_path / "short", overrides=[*SMALL, *short]).run()
    prompts = [row["prompt"] for row in rows_of(artifact)]
    assert all(
        text.startswith("a photo of a") or text.split()[3] in "two three four five"
        for text in prompts
    )
    assert not any("background" in text for text in prompts)
    related = ["prompt.g0=0", "prompt.g1=0", "prompt.g2=0", "prompt.related=1"]
    artifact = RenderPlan(out=tmp_path / "related", overrides=[*SMALL, *related]).run()
    states = {True: 0, False: 0}
    for row in rows_of(artifact):
        possible = g0_captions(scene_from_json(row["scene"]))
        can = any("position" in told["include"][-1] for told in possible)
        assert bool(parse(row["prompt"]).relations) == can
        states[can] += 1
    assert min(states.values()) > 20
    placed = ["prompt.g0=0", "prompt.g1=0", "prompt.g2=0", "prompt.placed=1"]
    artifact = RenderPlan(out=tmp_path / "placed", overrides=[*SMALL, *placed]).run()
    assert any(row["prompt"].endswith("the middle") for row in rows_of(artifact))
    with pytest.raises(
        UserError, match="one of g0, g1, g2, placed, related, reworded must be above 0"
    ):
        zeros = ["prompt.g0=0", "prompt.g1=0", "prompt.g2=0"]
        RenderPlan(out=tmp_path / "none", overrides=zeros).run()


def test_the_weights_choose_the_kind_of_question(tmp_path: Path) -> None:
    kinds = set(QuestionWeights.model_fields)
    assert kinds == set(questions.SHARES)
    only = [f"question.{kind}=0" for kind in kinds - {"existence", "caption"}]
    artifact = RenderPlan(out=tmp_path / "asked", overrides=[*SMALL, *only, "questions=2"]).run()
    asked = [pair["question"] for row in rows_of(artifact) for pair in row["qa"]]
    existence = [text for text in asked if text.startswith("is there ")]
    assert set(asked) - set(existence) == {questions.DESCRIBE}
    assert 0.7 < len(existence) / len(asked) < 1  # 20 parts of 23
    with pytest.raises(UserError, match="one kind of question must be above 0"):
        RenderPlan(out=tmp_path / "none", overrides=[f"question.{kind}=0" for kind in kinds]).run()
    # A picture has one caption, and that is all there is to ask for.
    alone = [f"question.{kind}=0" for kind in kinds - {"caption"}]
    for num_workers in (1, 2):
        few = [*SMALL, *alone, "questions=2", f"num_workers={num_workers}"]
        with pytest.raises(UserError, match="too few questions of these kinds: only 1 of 2"):
            RenderPlan(out=tmp_path / f"few{num_workers}", overrides=few).run()


def test_training_holds_no_held_out_picture_and_the_heldout_split_nothing_else(
    small: Artifact, tmp_path: Path
) -> None:
    assert not any(holds_held_out_picture(scene_from_json(r["scene"])) for r in rows_of(small))
    overrides = [*SMALL, "split=heldout", "similar_share=0", "reference_share=0"]
    other = RenderPlan(out=tmp_path / "heldout", overrides=overrides).run()
    assert all(holds_held_out_picture(scene_from_json(row["scene"])) for row in rows_of(other))
    assert {row["split"] for row in rows_of(other)} == {"heldout"}


def test_splits_and_seeds_share_no_picture(small: Artifact, tmp_path: Path) -> None:
    test = RenderPlan(out=tmp_path / "test", overrides=[*SMALL, "split=test"]).run()
    seed = RenderPlan(out=tmp_path / "seed", overrides=[*SMALL, "seed=1"]).run()
    scenes = [{row["scene"] for row in rows_of(artifact)} for artifact in (small, test, seed)]
    assert not scenes[0] & scenes[1] and not scenes[0] & scenes[2] and not scenes[1] & scenes[2]


def test_one_process_two_processes_and_two_ranks_make_the_same_bytes(
    small: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = RenderPlan(out=tmp_path / "two", overrides=[*SMALL, "num_workers=2"]).run()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        ranks = RenderPlan(out=tmp_path / "ranks", overrides=SMALL).run()
    assert fingerprints(small.path) == fingerprints(two.path) == fingerprints(ranks.path)
    assert len(fingerprints(small.path)) == 1 + 2 * 3  # the manifest, 3 tars, 3 indexes


def test_a_limited_run_is_the_beginning_of_the_whole_one(small: Artifact, tmp_path: Path) -> None:
    part = RenderPlan(out=tmp_path / "part", overrides=SMALL, limit=30).run()
    assert part.settings["count"] == 30
    whole = [row for row in rows_of(small) if row["group"] < "00001-000010"]
    assert rows_of(part) == whole
    assert fingerprints(part.path)["00000.tar"] == fingerprints(small.path)["00000.tar"]
    with pytest.raises(UserError, match=r"\(count: 30 there, 60 now\)"):
        RenderPlan(out=part.path, overrides=SMALL).run()


def test_a_preview_counts_and_writes_nothing(small: Artifact, tmp_path: Path) -> None:
    counts = RenderPlan(out=tmp_path / "new", overrides=["count=45", "shard_size=20"]).preview()
    assert counts == {"targets": 45, "shards": 3, "shards_to_make": 3}
    assert not (tmp_path / "new").exists()
    assert RenderPlan(out=small.path, overrides=SMALL).preview()["shards_to_make"] == 0


KILLED = """
import multiprocessing, os, signal, sys
from pathlib import Path
from tarkit.curate import render

draw = render._group

def deadly(config, key):
    if key == KEY:
        parent = multiprocessing.parent_process()
        os.kill(parent.pid if parent else os.getpid(), signal.SIGKILL)
    return draw(config, key)

render._group = deadly  # in the workers too: they import this file
if __name__ == "__main__":
    render.RenderPlan(out=Path(sys.argv[1]), overrides=sys.argv[2:]).run()
"""


@pytest.mark.parametrize(
    ("num_workers", "key"),
    # Before anything is written, in the middle of the third shard, and with two processes, where
    # worker 1 makes shards 1, 3 and 5, in its second one; there the parent alone is killed.
    [(1, "00000-000000"), (1, "00002-000013"), (2, "00003-000007")],
)
def test_a_killed_run_goes_on_to_the_bytes_of_an_uninterrupted_one(
    tmp_path: Path, num_workers: int, key: str
) -> None:
    overrides = ["count=120", "shard_size=20"]
    whole = RenderPlan(out=tmp_path / "whole", overrides=[*overrides, "num_workers=1"]).run()
    overrides.append(f"num_workers={num_workers}")
    out = tmp_path / "killed"
    script = tmp_path / "killed.py"
    script.write_text(KILLED.replace("KEY", repr(key)))
    command = [sys.executable, str(script), str(out), *overrides]
    process = subprocess.run(command, capture_output=True)
    assert process.returncode == -signal.SIGKILL
    assert key[:5] in open_artifact(out).missing()
    if num_workers == 1:  # what was begun lies there half written
        assert [path.name.split(".")[1] for path in out.glob(".*.tmp")] == [key[:5]]
    resumed = RenderPlan(out=out, overrides=overrides).run()
    assert not resumed.missing()
    assert fingerprints(out) == fingerprints(whole.path)
