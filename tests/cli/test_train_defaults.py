"""A training without a TOML takes a recipe that fits what it is given, and says what it takes."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tarkit.artifacts.artifact import begin_artifact
from tarkit.cli.app import app
from tarkit.curate.render import RenderPlan
from tarkit.recipes import recipe_file
from tarkit.train import defaults
from tarkit.train import forecast as module
from tarkit.train.forecast import forecast

MINIMAL = "steps = 1000\nbatch_size = 8\nlearning_rate = 1e-4\n"


def tarkit(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def weights(folder: Path, num_bytes: int) -> Path:
    """A model whose weights are so large, and take no space."""
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(num_bytes)
    return folder


def chats(folder: Path, *tasks: str) -> Path:
    artifact = begin_artifact(folder, "chats", settings={}, shards=["00000"])
    row: dict[str, Any] = {"split": None, "messages": [], "images": [], "error": None}
    rows = [{**row, "key": str(n), "task": t, "status": "ok"} for n, t in enumerate(tasks)]
    artifact.write("00000", rows)
    return folder


def test_settings_fit_the_size_of_what_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = weights(tmp_path / "small", 20 << 20), weights(tmp_path / "large", 1 << 30)
    t2i, hub = chats(tmp_path / "chats", "t2i", "i2t"), Path("google/siglip2")
    tar = weights(tmp_path / "tar", 1 << 30)  # a large model, whose words are pictures too
    (tar / "tokenizer.json").touch()
    monkeypatch.setattr(defaults, "has_visual_tokens", lambda lm: lm == tar)
    chosen = [
        defaults.vqvae_defaults(lpips=(), start=None),
        defaults.vqvae_defaults(lpips=(), start=large),
        defaults.vqvae_defaults(lpips=[tmp_path], start=None),
        defaults.tokenizer_defaults(images=[t2i], encoder=small, lm=small),
        defaults.tokenizer_defaults(images=[t2i, t2i, t2i], encoder=hub, lm=large),
        defaults.ar_dtok_defaults(tokenizer=small, vqvae=small, start=None),
        defaults.ar_dtok_defaults(tokenizer=large, vqvae=small, start=None),
        defaults.dif_dtok_defaults(sana=small),
        defaults.dif_dtok_defaults(sana=Path("owner/sana")),
        defaults.mllm_defaults(chats=[t2i], tokenizer=None, lm=None),
        defaults.mllm_defaults(chats=[t2i], tokenizer=small, lm=small),
        defaults.mllm_defaults(chats=[t2i], tokenizer=large, lm=large),
        defaults.mllm_defaults(chats=[t2i], tokenizer=large, lm=tar),
        defaults.grpo_defaults(chats=[]),
        defaults.encoder_defaults(),
    ]
    assert [(each.recipe, *each.overrides) for each in chosen] == [
        ("mini/vqvae.toml",),
        ("paper/vqvae.toml",),
        ("paper/vqvae.toml",),
        ("mini/tokenizer.toml",),
        ("paper/tokenizer.toml", "images_weights=[1, 1, 1]"),
        ("mini/ar_dtok.toml",),
        ("paper/ar_dtok_256.toml",),
        ("dif_dtok/dif_dtok.toml",),
        ("paper/dif_dtok_512.toml",),
        ("mini/lm.toml",),
        ("mini/mllm.toml", "ratio.i2i=0", "ratio.ti2i=0", "ratio.text=0"),
        ("paper/mllm_pretrain.toml", "ratio.i2i=0", "ratio.ti2i=0", "ratio.text=0"),
        ("finetune/mllm.toml",),
        ("grpo/grpo.toml", "chats_size=0"),
        ("mini/encoder.toml",),
    ]
    assert all(recipe_file(each.recipe).is_file() for each in chosen)


def test_a_training_without_a_toml_says_which_settings_and_what_they_take(tmp_path: Path) -> None:
    pictures = RenderPlan(out=tmp_path / "pictures", overrides=["count=8"]).run().path
    words = ["train", "vqvae", "--images", str(pictures), "--out", str(tmp_path / "vqvae")]
    words += ["--set", "steps=1", "--set", "batch_size=2"]
    done = tarkit(*words)
    assert done.exit_code == 0, done.output
    first, second, third = done.stderr.splitlines()[:3]
    assert first == (
        "no TOML was given: the settings are those of mini/vqvae.toml (steps = 4500, batch_size = "
        "32, learning_rate = 0.001); tarkit cat mini/vqvae.toml prints them"
    )
    assert second.startswith("vqvae: about 1.85 M parameters are trained, which takes about ")
    assert "for 1 step, at 40 % of the " in second and "FLOP/s measured here" in second
    # 16 bytes a value: 1,851,704 x 16 = 29.6 MB.
    assert third == (
        "vqvae: trains 1,851,704 of 1,851,704 parameters, 0.03 GB with gradients and moments"
    )
    assert "steps = 1\n" in (tmp_path / "vqvae" / "run.toml").read_text()
    # Again it is finished, and says nothing of costs.
    assert "measured here" not in tarkit(*words).stderr


def test_a_few_lines_that_make_a_model_of_published_size_are_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "products_per_s", lambda *given, **named: 1e11)
    monkeypatch.setattr(module, "memory_bytes", lambda device: 2 << 30)
    (tmp_path / "ar_dtok.toml").write_text(MINIMAL)
    expected = forecast("ar_dtok", tmp_path / "ar_dtok.toml")
    assert expected is not None
    budget = expected.budget
    # 8 pictures a step, 1,000 steps, at 40 % of 100 GFLOP/s.
    flops = 1000 * (budget.flops_per_step + budget.frozen_flops_per_step)
    assert expected.seconds == pytest.approx(flops / 4e10)
    text = expected.in_words()
    assert text.startswith("about 654 M parameters are trained (651 M more are frozen), which")
    assert "days for 1,000 steps, at 40 % of the 100 GFLOP/s measured here on " in text
    assert text.endswith(". It has 2.1 GB of memory: this will not fit")


def test_what_is_wrong_is_left_to_the_training(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("stepz = 3\n")
    assert forecast("mllm", tmp_path / "c.toml") is None
    (tmp_path / "c.toml").write_text(MINIMAL)
    assert forecast("mllm", tmp_path / "c.toml", lm=tmp_path / "none") is None
    assert forecast("vqvae", tmp_path / "c.toml", images=[tmp_path / "none"]) is None
    done = tarkit("train", "mllm", "--chats", str(tmp_path / "no"), "--out", str(tmp_path / "out"))
    assert done.exit_code == 1 and "next: " in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1, "1 second"), (119, "119 seconds"), (120, "2 minutes"), (3 * 86400, "3 days")],
)
def test_a_time_has_a_unit_that_a_person_would_choose(seconds: float, text: str) -> None:
    assert module.time_in_words(seconds) == text


def test_a_recipe_s_toml_needs_no_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--gpus", "64", "--gpu", "h100", "--json"]
    named = CliRunner().invoke(app, ["plan", "paper/ar_dtok_256.toml", *words])
    path = str(recipe_file("paper/ar_dtok_256.toml"))
    assert named.stdout == CliRunner().invoke(app, ["plan", path, *words]).stdout != ""
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper/ar_dtok_256.toml").write_text("no key")  # one's own file comes first
    assert CliRunner().invoke(app, ["plan", "paper/ar_dtok_256.toml", *words]).exit_code == 1
    for wrong, hint in (("pipelines/paper/vqvae.toml", "recipe's is paper/vqvae"), ("x.toml", "")):
        done = CliRunner().invoke(app, ["plan", wrong])
        said = " ".join(done.stderr.replace("│", " ").split())
        assert done.exit_code == 2 and "does not exist" in said and hint in said
