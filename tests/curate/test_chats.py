"""Codes and words become chats: which, how many, with whose codes, and the same again."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tarkit.artifacts.artifact import Artifact, begin_artifact, shard_names
from tarkit.curate.chat_inputs import WORD_COLUMNS, MinScore
from tarkit.curate.chats import ChatsPlan
from tarkit.curate.picture_chats import DESCRIBE, LEFT_OUT, Chat, ChatsConfig, chats_of_pictures
from tarkit.errors import UserError
from tests import parts

# A grid of 4: 16, 4 and 1 codes.
SIDES = {"1": 4, "2": 2, "3": 1}


def word_row(number: int = 0, **known: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(WORD_COLUMNS)
    row |= {"key": f"00000-{number:06d}", "role": "target", "split": "train", "status": "ok"}
    return row | known


def made(rows: Sequence[dict[str, Any]], **settings: Any) -> list[Chat]:
    return list(chats_of_pictures(rows, ChatsConfig(**settings)))


def of_task(found: Sequence[Chat], task: str) -> list[Chat]:
    return [chat for chat in found if chat.task == task]


def test_a_picture_is_drawn_from_its_prompt_and_its_captions_in_order() -> None:
    row = word_row(prompt="a ring", captions=["a red ring", " ", "a ring", "one red ring on grey"])
    drawn = of_task(made([row], t2i_per_picture=2), "t2i")
    # The blank and the repeated caption are no texts: prompt, "a red ring", "one red ring on grey".
    assert [chat.turns for chat in drawn] == [
        (("user", "a ring"), ("assistant", "<image>")),
        (("user", "a red ring"), ("assistant", "<image>")),
    ]
    assert {chat.pictures for chat in drawn} == {(0,)}
    assert len(of_task(made([row], t2i_per_picture=9), "t2i")) == 3


def test_describe_the_image_is_answered_by_the_first_caption() -> None:
    row = word_row(prompt="a ring", captions=["a red ring", "one red ring on grey"])
    found = of_task(made([row], captions_per_picture=9, plain_question_share=1), "i2t")
    assert {chat.turns for chat in found} == {
        (("user", "<image>\nDescribe the image."), ("assistant", "a red ring")),
        (
            ("user", "<image>\nDescribe the image in detail."),
            ("assistant", "one red ring on grey"),
        ),
        (("user", "<image>\nWrite a short prompt for the image."), ("assistant", "a ring")),
    }
    assert found[0].turns[1] == ("assistant", "a red ring"), "the plain description comes first"


def test_without_captions_the_prompt_is_the_description() -> None:
    (chat,) = of_task(made([word_row(prompt="a ring")], plain_question_share=1), "i2t")
    assert chat.turns == (("user", "<image>\nDescribe the image."), ("assistant", "a ring"))


def test_the_plain_question_has_its_share() -> None:
    rows = [word_row(number, prompt="a ring") for number in range(2000)]
    asked = Counter(
        chat.turns[0][1] for chat in made(rows, t2i_per_picture=0, plain_question_share=0.7)
    )
    # 2000 x .7 = 1400 with a standard deviation of sqrt(2000 x .7 x .3) = 20.5; five of them.
    assert abs(asked["<image>\nDescribe the image."] - 1400) < 103
    assert len(asked) == len(DESCRIBE)


def test_questions_are_drawn_without_repetition_and_share_a_chat_when_asked_to() -> None:
    qa = [{"question": f"q{n}?", "answer": f"a{n}"} for n in range(5)]
    found = made([word_row(qa=qa)], qa_per_picture=4)
    assert len(found) == 4
    assert len({chat.turns for chat in found}) == 4
    assert all(chat.turns[0][1].startswith("<image>\nq") for chat in found)
    # Four questions, three to a chat: 3 + 1, the picture once in each.
    first, second = made([word_row(qa=qa)], qa_per_picture=4, qa_turns=3)
    assert [len(first.turns), len(second.turns)] == [6, 2]
    assert "".join(text for _, text in first.turns).count("<image>") == 1
    for user, assistant in zip(first.turns[::2], first.turns[1::2], strict=True):
        assert user[1].removeprefix("<image>\n")[1:-1] == assistant[1][1:], "q3? is answered by a3"


def test_a_similar_picture_of_the_group_and_split_is_imitated() -> None:
    rows = [
        word_row(0, group="7", prompt="a"),
        word_row(1, group="7", role="similar", prompt="a"),
        word_row(2, group="7", role="reference", prompt="b"),
        word_row(3, group="8", prompt="a"),
        word_row(4, group="7", split="test", prompt="a"),
        word_row(5, group="7", status="failed", error="torn"),
    ]
    found = of_task(made(rows, i2i_per_picture=9), "i2i")
    assert [chat.pictures for chat in found] == [(1, 0), (0, 1)]
    assert found[0].turns == (
        ("user", "Generate an image similar to <image>."),
        ("assistant", "<image>"),
    )


def test_the_reference_stands_at_the_mark_of_the_template() -> None:
    rows = [
        word_row(0, group="7", prompt="a ring and a heart", template="a ring and <image>"),
        word_row(1, group="7", role="reference", prompt="a heart"),
    ]
    (chat,) = of_task(made(rows), "ti2i")
    assert chat.turns == (("user", "a ring and <image>"), ("assistant", "<image>"))
    assert chat.pictures == (1, 0), "the reference first, then the picture to draw"


def test_two_marks_take_the_two_references_in_their_order() -> None:
    rows = [
        word_row(0, group="7", role="reference"),
        word_row(1, group="7", template="<image> above <image>"),
        word_row(2, group="7", role="reference"),
    ]
    (chat,) = of_task(made(rows), "ti2i")
    assert chat.pictures == (0, 2, 1)


def test_a_template_without_its_reference_is_a_failed_row_with_the_numbers() -> None:
    rows = [word_row(0, group="7", prompt="x", template="<image> above <image>")]
    rows.append(word_row(1, group="7", role="reference", prompt="y"))
    (chat,) = of_task(made(rows), "ti2i")
    assert chat.error == "its template has 2 <image> marks, its group 1 usable references"
    assert chat.turns == ()


def test_a_failed_row_is_one_failed_chat() -> None:
    (chat,) = made([word_row(3, status="failed", error="truncated picture")])
    assert (chat.key, chat.task) == ("00000-000003-00", None)
    assert chat.error == "its tokens row failed: truncated picture"


def test_a_picture_about_which_nothing_is_known_fails_and_says_so() -> None:
    (chat,) = made([word_row()])
    assert chat.error == "no prompt, caption, question or group"


def test_a_strangers_image_mark_fails_its_chat_and_shifts_no_picture() -> None:
    row = word_row(prompt="a ring", captions=["see <image>"])
    by_task = Counter((chat.task, chat.error is None) for chat in made([row]))
    # Drawn from "a ring" and described in short by it: sound; both uses of the caption: failed.
    assert by_task == {
        ("t2i", True): 1,
        ("t2i", False): 1,
        ("i2t", True): 1,
        ("i2t", False): 1,
    }


def test_drawn_choices_depend_on_the_key_and_the_seed_alone() -> None:
    qa = [{"question": f"q{n}?", "answer": "yes"} for n in range(50)]
    rows = [word_row(number, qa=qa) for number in range(3)]
    whole = made(rows)
    assert made(rows[:2]) == whole[:8]
    assert made(rows, seed=1) != whole
    assert whole[0].turns != whole[4].turns, "two rows draw differently"


# ---- artifacts ----------------------------------------------------------------------------------


def tokens_artifact(path: Path, *, num_shards: int = 2, num_rows: int = 6) -> Artifact:
    """Rows of codes that tell their row: all codes of row r of shard s are 10 s + r."""
    artifact = begin_artifact(
        path,
        "tokens",
        settings={
            "tokenizer_sha256": "f00d",
            "codebook_size": 64,
            "sides": SIDES,
            "resize": "squash",
            "dtype": "float32",
        },
        shards=shard_names(num_shards),
    )
    for shard, name in enumerate(artifact.shards):
        write_tokens(artifact, name, shard, num_rows)
    return artifact


def write_tokens(
    artifact: Artifact, name: str, shard: int, num_rows: int, prompt: str = "a ring"
) -> None:
    rows = []
    for number in range(num_rows):
        code = 10 * shard + number
        known = {"key": f"{name}-{number:06d}", "role": "target", "split": "train"}
        if number == 4:
            rows.append(artifact.failed_row(known["key"], "torn", split="train"))
            continue
        codes = {f"codes_{s}": np.full(side**2, code) for s, side in SIDES.items()}
        blank = dict.fromkeys(artifact.schema.names)
        words = {"prompt": f"{prompt} {number}", "status": "ok", "group": str(number // 2)}
        rows.append(blank | known | codes | words)
    artifact.write(name, rows)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_chat_carries_the_codes_of_its_pictures_at_every_scale(tmp_path: Path) -> None:
    tokens_artifact(tmp_path / "tokens")
    artifact = ChatsPlan(tmp_path / "tokens", out=tmp_path / "chats").run()
    rows = artifact.rows("00001")
    similar = next(row for row in rows if row["task"] == "i2i")
    # Rows 0 and 1 are group 0: row 0 is drawn from row 1, whose codes are 10 x 1 + 1 = 11.
    assert similar["images"] == [
        {"codes_1": [11] * 16, "codes_2": [11] * 4, "codes_3": [11]},
        {"codes_1": [10] * 16, "codes_2": [10] * 4, "codes_3": [10]},
    ]
    assert {row["split"] for row in rows} == {"train"}
    for row in rows:
        marks = sum(message["content"].count("<image>") for message in row["messages"])
        assert marks == len(row["images"])
    # 6 rows a shard: 5 sound ones each with a t2i and an i2t, 4 with a partner, 1 failed.
    assert Counter(row["task"] for row in rows) == {"t2i": 5, "i2t": 5, "i2i": 4, None: 1}
    assert artifact.settings["tokenizer_sha256"] == "f00d"
    assert artifact.settings["sides"] == SIDES


def test_scales_that_are_not_stored_are_null(tmp_path: Path) -> None:
    settings = {"tokenizer_sha256": "f", "codebook_size": 64, "resize": "", "dtype": ""}
    artifact = begin_artifact(
        tmp_path / "tokens", "tokens", settings={**settings, "sides": {"2": 2}}, shards=["00000"]
    )
    row = dict.fromkeys(artifact.schema.names) | {"key": "0", "role": "target", "prompt": "a"}
    artifact.write("00000", [row | {"status": "ok", "codes_2": np.arange(4)}])
    made_chats = ChatsPlan(tmp_path / "tokens", out=tmp_path / "chats").run().rows("00000")
    assert made_chats[0]["images"] == [{"codes_1": None, "codes_2": [0, 1, 2, 3], "codes_3": None}]


def test_killed_and_run_again_the_bytes_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens_artifact(tmp_path / "tokens", num_shards=3)
    (tmp_path / "text.txt").write_text("".join(f"document {n}\n" for n in range(7)))
    ChatsPlan(tmp_path / "tokens", text=tmp_path / "text.txt", out=tmp_path / "whole").run()
    write = Artifact.write

    def killed(self: Artifact, name: str, *args: Any, **kwargs: Any) -> None:
        if name == "00001":
            raise KeyboardInterrupt
        write(self, name, *args, **kwargs)

    monkeypatch.setattr(Artifact, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        ChatsPlan(tmp_path / "tokens", text=tmp_path / "text.txt", out=tmp_path / "again").run()
    monkeypatch.undo()
    assert [path.name for path in sorted((tmp_path / "again").glob("0*"))] == ["00000.parquet"]
    ChatsPlan(tmp_path / "tokens", text=tmp_path / "text.txt", out=tmp_path / "again").run()
    assert all_bytes(tmp_path / "again") == all_bytes(tmp_path / "whole")


def test_only_the_shard_whose_tokens_changed_is_made_again(tmp_path: Path) -> None:
    tokens = tokens_artifact(tmp_path / "tokens")
    ChatsPlan(tmp_path / "tokens", out=tmp_path / "chats").run()
    before = all_bytes(tmp_path / "chats")
    write_tokens(tokens, "00001", 1, 6, prompt="a heart")
    ChatsPlan(tmp_path / "tokens", out=tmp_path / "chats").run()
    after = all_bytes(tmp_path / "chats")
    assert {name for name in after if after[name] != before[name]} == {"00001.parquet"}


def test_the_limit_is_a_prefix_of_the_whole(tmp_path: Path) -> None:
    tokens_artifact(tmp_path / "tokens", num_shards=3)
    whole = ChatsPlan(tmp_path / "tokens", out=tmp_path / "whole").run()
    part = ChatsPlan(tmp_path / "tokens", out=tmp_path / "part", limit=8).run()
    # 8 rows are the 6 of shard 0 and the first 2 of shard 1; both shards' groups are whole.
    assert part.shards == ("00000", "00001")
    assert part.rows("00000") == whole.rows("00000")
    rows = part.rows("00001")
    assert rows == whole.rows("00001")[: len(rows)]
    assert len({row["key"][:12] for row in rows}) == 2
    with pytest.raises(UserError, match="limit: 8 there, none now"):
        ChatsPlan(tmp_path / "tokens", out=tmp_path / "part").run()


def test_two_workers_share_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens_artifact(tmp_path / "tokens", num_shards=3)
    whole = ChatsPlan(tmp_path / "tokens", out=tmp_path / "whole").run()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, names in ((1, ["00000", "00002"]), (0, [])):
        monkeypatch.setenv("RANK", str(rank))
        shared = ChatsPlan(tmp_path / "tokens", out=tmp_path / "shared").run()
        assert shared.missing() == names
    assert all_bytes(shared.path) == all_bytes(whole.path)


def test_text_is_dealt_over_the_shards_of_the_tokens(tmp_path: Path) -> None:
    tokens_artifact(tmp_path / "tokens", num_shards=3)
    (tmp_path / "text.txt").write_text("".join(f"document {n}\n" for n in range(7)))
    artifact = ChatsPlan(
        tmp_path / "tokens", text=tmp_path / "text.txt", out=tmp_path / "chats"
    ).run()
    dealt = [
        [row["messages"] for row in artifact.rows(name) if row["task"] == "text"]
        for name in artifact.shards
    ]
    # 7 documents over 3 shards are cut at 7 x 1 // 3 = 2 and 7 x 2 // 3 = 4.
    assert [len(rows) for rows in dealt] == [2, 2, 3]
    assert dealt[2][0] == [{"role": "assistant", "content": "document 4"}]
    keys = [row["key"] for name in artifact.shards for row in artifact.rows(name)]
    assert len(keys) == len(set(keys))


def test_text_alone_makes_chats_without_pictures(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"text": "a stranger's <image> mark"}, {"body": "three"}]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    artifact = ChatsPlan(
        text=tmp_path / "text.jsonl",
        out=tmp_path / "chats",
        overrides=["documents_per_shard=2"],
    ).run()
    assert artifact.shards == ("00000", "00001")
    good, marked, empty = [row for name in artifact.shards for row in artifact.rows(name)]
    assert (good["status"], good["images"], good["split"]) == ("ok", [], None)
    assert marked["error"] == "a text contains the mark <image>: 1 marks, 0 images"
    assert empty["error"] == "line 3 has neither text nor messages"
    assert artifact.settings["codebook_size"] is None


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    tokens_artifact(tmp_path / "tokens", num_shards=3)
    plan = ChatsPlan(tmp_path / "tokens", out=tmp_path / "chats").preview()
    assert plan == {"shards": 3, "shards_to_make": 3}
    assert not (tmp_path / "chats").exists()
    ChatsPlan(tmp_path / "tokens", out=tmp_path / "chats").run()
    (tmp_path / "chats/00002.parquet").unlink()
    assert ChatsPlan(tmp_path / "tokens", out=tmp_path / "chats").preview()["shards_to_make"] == 1


def test_mistakes_are_told_with_the_next_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a tokens artifact nor a text source"):
        ChatsPlan(out=tmp_path / "chats").run()
    tokens = tokens_artifact(tmp_path / "tokens")
    manifest = tokens.path / "manifest.json"
    sound = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(sound) | {"shards": [], "counts": {}}))
    with pytest.raises(UserError, match="the input has no rows"):
        ChatsPlan(tmp_path / "tokens", out=tmp_path / "chats").run()
    manifest.write_text(sound)
    scores = beside(tmp_path / "scores", "scores", [], columns=[])
    with pytest.raises(UserError, match="has no columns"):
        ChatsPlan(
            tmp_path / "tokens", out=tmp_path / "chats", min_score=MinScore(scores, 0.5)
        ).run()
    tokens.shard_path("00001").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of its 2 shards \(00001\)"):
        ChatsPlan(tmp_path / "tokens", out=tmp_path / "chats").run()
    with pytest.raises(UserError, match=r"unknown key qa_turn .did you mean qa_turns"):
        ChatsPlan(tmp_path / "tokens", out=tmp_path / "chats", overrides=["qa_turn=3"]).run()


# ---- what stands beside the tokens --------------------------------------------------------------


def beside(folder: Path, kind: str, values: Sequence[Any], **settings: Any) -> Path:
    """An artifact of `kind` with a row for each key of the one-shard tokens; None: a failed row."""
    artifact = begin_artifact(folder, kind, settings=settings, shards=["00000"])
    rows = []
    for number, value in enumerate(values):
        key = f"00000-{number:06d}"
        row = artifact.failed_row(key, "nothing")
        if value is not None:
            row |= {"status": "ok", "error": None} | value
        rows.append(row)
    artifact.write("00000", rows)
    return folder


def texts_of(artifact: Artifact, task: str) -> list[str]:
    rows = [row for row in artifact.rows("00000") if row["task"] == task]
    return [row["messages"][task == "i2t"]["content"] for row in rows]


def test_written_captions_join_the_pictures_own_texts(tmp_path: Path) -> None:
    tokens_artifact(tmp_path / "tokens", num_shards=1, num_rows=3)
    written = [{"prompt": "one thin ring"}, None, {"prompt": "a ring 2"}]
    captions = beside(tmp_path / "captions", "prompts", written)
    inputs: dict[str, Any] = {"tokens": tmp_path / "tokens", "captions": [captions]}
    found = ChatsPlan(**inputs, out=tmp_path / "chats", overrides=["captions_per_picture=1"]).run()
    # A failed caption leaves the picture its own, and one that says the same adds nothing.
    assert texts_of(found, "t2i") == ["a ring 0", "one thin ring", "a ring 1", "a ring 2"]
    assert texts_of(found, "i2t") == ["one thin ring", "a ring 1", "a ring 2"]


def test_pictures_below_the_score_take_no_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens_artifact(tmp_path / "tokens", num_shards=1, num_rows=4)
    values = [{"cosine": 0.3}, {"cosine": 0.2}, None, {"cosine": 0.25}]
    scores = beside(tmp_path / "scores", "scores", values, columns=["cosine"])
    inputs: dict[str, Any] = {"tokens": tmp_path / "tokens", "min_score": MinScore(scores, 0.25)}
    found = ChatsPlan(**inputs, out=tmp_path / "chats").run()
    assert texts_of(found, "t2i") == ["a ring 0", "a ring 3"]
    assert not texts_of(found, "i2i"), "a partner that is left out is no partner"
    assert parts.status_counts(found)["failed"] == 0
    said = capsys.readouterr().err
    assert "1 pictures left out: cosine below 0.25" in said
    assert "1 pictures left out: no score" in said


def test_a_template_whose_reference_is_left_out_is_no_failure(tmp_path: Path) -> None:
    rows = [
        word_row(0, prompt="a ring", template="<image> on grey", group="g"),
        word_row(1, role="reference", group="g", status="ok"),
    ]
    left_out = [rows[0], rows[1] | {"status": LEFT_OUT}]
    assert [chat.task for chat in made(rows)] == ["t2i", "i2t", "ti2i"]
    assert [chat.task for chat in made(left_out)] == ["t2i", "i2t"]


def test_what_changed_beside_the_tokens_is_made_again(tmp_path: Path) -> None:
    tokens_artifact(tmp_path / "tokens", num_shards=1, num_rows=2)
    captions = beside(tmp_path / "captions", "prompts", [{"prompt": "one"}, {"prompt": "two"}])
    inputs: dict[str, Any] = {"tokens": tmp_path / "tokens", "captions": [captions]}
    ChatsPlan(**inputs, out=tmp_path / "chats").run()
    beside(captions, "prompts", [{"prompt": "one"}, {"prompt": "three"}])
    found = ChatsPlan(**inputs, out=tmp_path / "chats").run()
    assert "three" in texts_of(found, "t2i") and "two" not in texts_of(found, "t2i")


@pytest.mark.parametrize(
    ("values", "column", "said"),
    [
        ([{"a": 1.0, "b": 1.0}], "a", "has no row 00000-000001"),
        ([{"a": 1.0, "b": 1.0}] * 2, None, "has the columns a, b"),
        ([{"a": 1.0, "b": 1.0}] * 2, "c", "has the columns a, b"),
    ],
)
def test_scores_that_do_not_fit_are_an_error(
    tmp_path: Path, values: list[Any], column: str | None, said: str
) -> None:
    tokens_artifact(tmp_path / "tokens", num_shards=1, num_rows=2)
    scores = beside(tmp_path / "scores", "scores", values, columns=["a", "b"])
    inputs: dict[str, Any] = {
        "tokens": tmp_path / "tokens",
        "min_score": MinScore(scores, 0.5, column),
    }
    with pytest.raises(UserError, match=said):
        ChatsPlan(**inputs, out=tmp_path / "chats").run()


def test_captions_of_fewer_shards_are_an_error(tmp_path: Path) -> None:
    tokens_artifact(tmp_path / "tokens", num_shards=2)
    captions = beside(tmp_path / "captions", "prompts", [None] * 6)
    with pytest.raises(UserError, match="no shard '00001'"):
        ChatsPlan(tmp_path / "tokens", captions=[captions], out=tmp_path / "chats").run()


def test_judgements_become_questions_as_many_no_as_yes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens_artifact(tmp_path / "tokens", num_shards=1, num_rows=6)
    yes = {"prompt": "a ring", "verdict": "yes"}
    no = {"prompt": "a fox", "verdict": "no", "reason": "There is no fox."}
    # The picture of row 4 failed, so three yes stand against one no.
    judged = beside(tmp_path / "judged", "judgements", [yes, no, yes, None, no, yes])
    inputs: dict[str, Any] = {"tokens": tmp_path / "tokens", "judgements": judged}
    found = ChatsPlan(**inputs, out=tmp_path / "chats").run().rows("00000")
    asked = [
        tuple(message["content"] for message in row["messages"])
        for row in found
        if row["task"] == "i2t" and "match" in row["messages"][0]["content"]
    ]
    assert sorted(asked) == [
        ('<image>\ndoes this image match "a fox"?', "no. There is no fox."),
        ('<image>\ndoes this image match "a ring"?', "yes"),
    ]
    assert "2 judgements left out: more yes than its opposite" in capsys.readouterr().err
