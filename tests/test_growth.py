"""How time and memory grow with the size of what is read: `pytest -m slow -s tests/test_growth.py`.

Each case runs in a process of its own at a size and at four times that size. Time must not grow
more than linearly (with room for noise), and memory must stay flat. The figures are printed.
TARKIT_GROWTH scales the sizes: 1 is what the tests promise, 0.1 takes a tenth of the time.

The chain from pictures to chats is run with 1,000, 10,000 and 100,000 small pictures, and with so
small a tokenizer that what stands around it counts.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import parts

SCALE = float(os.environ.get("TARKIT_GROWTH", "1"))

HEAD = """
import io, json, os, resource, sys, tarfile, time
from pathlib import Path
folder, size = Path(sys.argv[1]), int(sys.argv[2])
import numpy as np
from tarkit.images import png_bytes
child = os.fork()  # so that what making the data takes is not counted
if child == 0:
    exec(SETUP)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
TAIL = """
before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
work()
seconds = time.perf_counter() - begin
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""

FOLDER = """
blob = png_bytes(np.zeros((20, 20, 3), np.uint8))
for number in range(size):
    (folder / f"{number:06d}.png").write_bytes(blob)
    (folder / f"{number:06d}.txt").write_text("a photo")
# work
from tarkit.curate.sources import list_source
def work():
    assert len(list_source(folder).items) == size
"""
TAR = """
blob = os.urandom(1_000_000)
with tarfile.open(folder / "a.tar", "w") as tar:
    for number in range(size):
        member = tarfile.TarInfo(f"{number:06d}.png")
        member.size = len(blob)
        tar.addfile(member, io.BytesIO(blob))
# work
from tarkit.curate.sources import list_source
def work():
    items = list_source(folder / "a.tar").items
    assert sum(len(item.read()) for item in items) == size * 1_000_000
"""
GZIP_TAR = TAR.replace("a.tar", "a.tar.gz").replace('"w")', '"w:gz", compresslevel=1)')
PARQUET = """
import pyarrow as pa, pyarrow.parquet as pq
blob = os.urandom(100_000)
schema = pa.schema([("image", pa.binary()), ("text", pa.string())])
batches = (pa.record_batch([[blob] * 100, ["x"] * 100], schema=schema) for _ in range(size // 100))
reader = pa.RecordBatchReader.from_batches(schema, batches)
import pyarrow.dataset as ds
ds.write_dataset(reader, folder / "d", format="parquet", max_rows_per_group=1 << 20,
    min_rows_per_group=size, file_options=ds.ParquetFileFormat().make_write_options(
    use_dictionary=False))
# work
from tarkit.curate.sources import list_source
def work():
    items = list_source(next((folder / "d").glob("*.parquet"))).items
    assert sum(len(item.read()) for item in items) == size * 100_000
"""
PROMPTS = """
with open(folder / "p.txt", "w") as file:
    file.writelines(f"a photo of thing number {n} with a hat in a garden\\n" for n in range(size))
# work
from tarkit.curate.prompts import PromptsPlan
def work():
    plan = PromptsPlan(folder / "p.txt", out=folder / "o", overrides=["shard_size=1000"])
    plan.run()
"""
SHARDS = """
# work
from tarkit.artifacts.artifact import begin_artifact, open_artifact
names = [f"{number:05d}" for number in range(size)]
row = {"key": "0", "prompt": "x", "status": "ok"}
row |= dict.fromkeys(["parent_key", "template", "phrase", "source", "licence", "error"])
def work():
    artifact = begin_artifact(folder / "a", "prompts", settings={}, shards=names)
    for name in names:
        artifact.write(name, [row | {"key": f"{name}-000000"}])
    assert not open_artifact(folder / "a").missing()
"""
LINE = """
with open(folder / "a.jsonl", "w") as file:
    file.write(json.dumps({"image": "a.png", "text": "x" * size}) + "\\n")
# work
from tarkit.artifacts.tables import read_rows
def work():
    (row,) = read_rows(folder / "a.jsonl")
    assert len(row.values["text"]) == size
"""

CASES = {
    # script, the larger of the two sizes, what counts, MB that memory may grow between them
    "pictures in a folder": (FOLDER, 20_000, 100),
    "prompts of a text file": (PROMPTS, 200_000, 200),
    "shards of an artifact": (SHARDS, 5_000, 50),
    "MB of a tar": (TAR, 1_000, 30),
    "MB of a compressed tar": (GZIP_TAR, 1_000, 30),
    "pictures of one Parquet row group": (PARQUET, 10_000, 150),
    "characters of a line": (LINE, 100_000_000, 500),
}


def measure(script: str, folder: Path, size: int) -> tuple[float, float]:
    """Seconds and MB that the work of a script took."""
    folder.mkdir(parents=True)
    setup, work = script.split("# work")
    command = [
        sys.executable,
        "-c",
        f"SETUP = {setup!r}\n{HEAD}{work}{TAIL}",
        str(folder),
        str(size),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds, kilobytes = done.stdout.split()[-2:]
    return float(seconds), float(kilobytes) / 1024


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", CASES)
def test_time_is_linear_and_memory_flat(name: str, tmp_path: Path) -> None:
    script, full, allowed_mb = CASES[name]
    sizes = [max(100, int(full * SCALE * part) // 100 * 100) for part in (0.25, 1)]
    (less, less_mb), (more, more_mb) = (
        measure(script, tmp_path / str(size), size) for size in sizes
    )
    print(
        f"\n{sizes[0]:>11,} and {sizes[1]:>11,} {name}: {less:.2f} and {more:.2f} s, "
        f"{less_mb:.0f} and {more_mb:.0f} MB"
    )
    # Four times as much of a quadratic part takes sixteen times as long.
    assert more < 8 * less + 2
    assert more_mb - less_mb < allowed_mb


PICTURES = """
import io, sys
from pathlib import Path
import numpy as np
from PIL import Image
folder, size = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir()
for number in range(size):
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
    picture.save(folder / f"{number:06d}.jpg")
    (folder / f"{number:06d}.txt").write_text(f"a photo of thing number {number}")
"""


# In a small process of its own: a command's peak is at least the memory of the one that starts it.
COST = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "tarkit.cli", *sys.argv[1:]], stdout=2)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(done.returncode)
"""


def cost(words: list[object]) -> tuple[float, float]:
    """Processor seconds and peak MB of a command of tarkit."""
    command = [sys.executable, "-c", COST, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    seconds, kilobytes = done.stdout.split()
    return float(seconds), float(kilobytes) / 1024


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_pictures_become_chats_in_linear_time_and_flat_memory(tmp_path: Path) -> None:
    tokenizer = parts.save_ta_tok(tmp_path / "ta_tok")
    costs: dict[str, dict[int, tuple[float, float]]] = {}
    for size in (1_000, 10_000, 100_000):
        size = max(100, int(size * SCALE))
        at = tmp_path / str(size)
        at.mkdir()
        subprocess.run([sys.executable, "-c", PICTURES, at / "raw", str(size)], check=True)
        stages = {
            "ingest": ["curate", "ingest", at / "raw", "--set", "num_workers=1"],
            "encode": ["encode", at / "ingest", "--tokenizer", tokenizer, "--device", "cpu"],
            "chats": ["curate", "chats", at / "encode"],
        }
        for stage, words in stages.items():
            costs.setdefault(stage, {})[size] = cost([*words, "--out", at / stage])
            seconds, megabytes = costs[stage][size]
            print(f"{size:>9,} {stage}: {seconds:.1f} s, {megabytes:.0f} MB", flush=True)
        shutil.rmtree(at)
    for stage, by_size in costs.items():
        (_, _), (less, less_mb), (more, more_mb) = by_size.values()
        # Ten times as much of a quadratic part takes a hundred times as long.
        assert more < 15 * less + 2, stage
        # The files of a folder are sorted in memory, 2.6 kB each; all else is flat.
        assert more_mb - less_mb < (300 if stage == "ingest" else 30), stage
