"""A hub id stands for its cached folder, whoever loads it, and nothing opens a connection."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from tarkit.checkpoints.from_transformers import from_transformers
from tarkit.errors import UserError
from tarkit.llm.base import AssistantConfig
from tarkit.llm.local import load_local
from tarkit.scoring.scorers import plan_scorer
from tests.checkpoints.test_hub import snapshot

REPO = "nobody/nothing"


@pytest.mark.parametrize(
    "spoilt",
    [{"image_std": [0.5, 0.5]}, {"image_mean": [[0.5], 0.5, 0.5]}, {"size": {"height": "x"}}],
)
def test_a_processor_that_can_process_no_picture_is_refused(
    spoilt: dict[str, Any], tmp_path: Path
) -> None:
    sound = transformers.SiglipImageProcessorPil(size={"height": 8, "width": 8})
    sound.save_pretrained(tmp_path)
    family = transformers.AutoImageProcessor
    from_transformers(family, tmp_path, backend="pil")
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | spoilt))
    with pytest.raises(UserError, match="cannot be loaded"):
        from_transformers(family, tmp_path, backend="pil")


def local(*, sees: bool) -> Callable[[], Any]:
    config = AssistantConfig()
    return lambda: load_local(REPO, config=config, sees=sees, device="cpu", precision="float32")


@pytest.mark.parametrize(
    "load",
    [
        lambda: from_transformers(transformers.AutoModel, REPO),
        lambda: plan_scorer("clip", REPO).load("cpu"),
        lambda: plan_scorer("classifier", REPO),
        local(sees=True),
        local(sees=False),
    ],
    ids=["model", "clip", "classifier", "judge", "assistant"],
)
def test_a_hub_id_that_was_not_fetched_is_refused_at_once(
    load: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def asked(*args: Any, **_: Any) -> Any:
        raise AssertionError(f"a connection is opened: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    for reason in ("no whole model of that hub id", "cannot be loaded"):
        with pytest.raises(UserError, match=reason) as error:
            load()
        assert f"hf download {REPO}" in error.value.hint
        (snapshot(tmp_path, REPO) / "config.json").write_text("{}")  # the rest did not come
