"""The folder that `tarkit generate --prompts` makes: DIR/00000/0000.png (prompt row, sample)."""

from pathlib import Path

from tarkit.artifacts.manifest import MANIFEST, read_manifest

SAMPLES = "samples"
SAMPLE_RECORDS = "samples.jsonl"
"""A line for each picture: its file, prompt, seed, model and sampling settings."""
SAMPLE_SHEET = "sheet.png"


def is_samples(path: Path) -> bool:
    """Whether `path` is such a folder; UserError for a damaged manifest."""
    return (path / MANIFEST).is_file() and read_manifest(path)["kind"] == SAMPLES


def sample_files(path: Path) -> list[Path]:
    """The pictures of such a folder, by prompt row and sample."""
    return sorted(path.glob("*/*.png"))
