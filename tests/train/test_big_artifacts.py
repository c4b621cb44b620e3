"""The start of a training on many shards: what it reads does not grow with them."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tarkit.artifacts.artifact import Artifact
from tarkit.train.chat_batches import ChatBatchesConfig, ChatStreams, packed_chats
from tarkit.train.streams import picture_stream
from tarkit.train.vqvae import usable_sizes
from tarkit.vocab import VisualVocabulary, Vocabulary
from tests import parts
from tests.train import big_artifacts

NUM_SHARDS = 40


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a training has read each shard."""
    counts: Counter[str] = Counter()
    for method in ("read", "read_few"):
        real = getattr(Artifact, method)

        def read(self: Artifact, name: str, columns: Any = None, real: Any = real) -> Any:
            counts[name] += 1
            return real(self, name, columns)

        monkeypatch.setattr(Artifact, method, read)
    monkeypatch.setattr(big_artifacts, "SHARD_ROWS", 10)
    return counts


def test_a_resumed_training_reads_only_the_shards_of_its_step(
    tmp_path: Path, reads: Counter[str]
) -> None:
    text = parts.text_tokenizer()
    visual = VisualVocabulary(first_id=text.size, num_codes=parts.K)
    vocabulary = Vocabulary(text=text, visual=visual, system=None)
    chats = big_artifacts.write("chats", tmp_path / "chats", 10 * NUM_SHARDS)
    config = ChatBatchesConfig(ratio={"t2i": 2, "i2t": 2, "text": 1})

    def step(number: int) -> list[Any]:
        streams = ChatStreams([chats], config.ratio, config.seed)
        packed = packed_chats(
            streams, config, vocabulary, first=20 * number, size=20, too_long=None
        )
        return [packed.ids.tolist(), packed.labels.tolist()]

    first_start = step(10**6)
    assert len(reads) == NUM_SHARDS  # each is counted
    reads.clear()
    assert step(10**6) == first_start
    # Four shards of each task at a time, and the next four where the step crosses to them.
    assert 0 < len(reads) <= 3 * 8 and set(reads.values()) == {1}


def test_a_resumed_training_reads_only_the_pictures_of_its_step(
    tmp_path: Path, reads: Counter[str]
) -> None:
    images = big_artifacts.write("images", tmp_path / "images", 10 * NUM_SHARDS)
    first_start = picture_stream(images, seed=0).batch(10**6, 20)
    assert len(reads) == NUM_SHARDS
    reads.clear()
    again = picture_stream(images, seed=0).batch(10**6, 20)
    assert again == first_start
    assert [a.pixels().tolist() for a in again] == [b.pixels().tolist() for b in first_start]
    assert 0 < len(reads) <= 16


def test_the_size_of_the_pictures_is_known_without_a_row(
    tmp_path: Path, reads: Counter[str]
) -> None:
    images = big_artifacts.write("images", tmp_path / "images", 10 * NUM_SHARDS)
    assert usable_sizes(images) == [(16, 16)]
    assert not reads
    other = parts.write_pictures(tmp_path / "other", [["train"], ["test"]], size_px=24)
    assert usable_sizes(other) == [(24, 24)]
