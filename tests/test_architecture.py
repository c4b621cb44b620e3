"""The house's walls: who imports whom, what opens files, what importing the command line costs."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import typer

from tarkit.cli.app import app

PACKAGE = Path(__file__).resolve().parents[1] / "tarkit"

# A room is a folder or a file of tarkit/. Each may import itself, what its line names, and LEAVES.
# From the top of the house to the ground: a line names only rooms of later lines, so no circle.
LEAVES = {"config", "errors", "images", "progress", "seeds", "terminal", "vocab"}
ROOMS: dict[str, set[str]] = {
    "cli": {"bench", "curate", "encode", "train", "eval", "inference", "report", "demo"}
    | {"scoring", "llm", "checkpoints", "models", "artifacts", "shapes", "recipes", "doctor"}
    | {"finetune"},
    # runs the commands of the others, and compares two models
    "finetune": {"train", "eval", "report", "scoring", "checkpoints", "models", "artifacts"}
    | {"recipes"},
    # measures the others
    "bench": {"train", "inference", "checkpoints", "models", "artifacts"},
    # looks at the machine
    "doctor": {"train", "checkpoints", "artifacts"},
    # shows them to a person
    "demo": {"report", "inference", "checkpoints"},
    # the stages
    "curate": {"scoring", "inference", "llm", "checkpoints", "models", "artifacts", "shapes"},
    "train": {"scoring", "inference", "checkpoints", "models", "artifacts"},
    "eval": {"scoring", "inference", "llm", "checkpoints", "models", "artifacts", "shapes"},
    "report": {"scoring", "checkpoints", "models", "artifacts"},
    "encode": {"checkpoints", "models", "artifacts"},
    # the libraries: what two stages share
    "scoring": {"inference", "checkpoints", "models", "artifacts", "shapes"},
    "inference": {"llm", "checkpoints", "models", "artifacts"},
    "llm": {"checkpoints", "artifacts"},
    "checkpoints": {"models", "artifacts"},
    "models": set(),
    "recipes": {"artifacts"},
    "artifacts": set(),
    "shapes": set(),
    # the ground
    "vocab": {"errors"},
    "images": {"errors"},
    "config": {"seeds", "errors"},
    "progress": {"errors"},
    "seeds": set(),
    "terminal": set(),
    "errors": set(),
}
# Commands. Nothing but the command line imports them, so none of them knows another.
STAGE_VERBS = {
    "curate": "render ingest prompts download caption split synthesize score judge chats",
    "train": "vqvae encoder tokenizer ar_dtok dif_dtok mllm grpo budget",
    "inference": "generate describe reconstruct",
    "eval": "prepare generate answer score export collect shapes reflect fid selftest lmms",
    "report": "report inspect verify dialect",
    "bench": "bench",
    "finetune": "finetune compare",
    "demo": "demo",
    "checkpoints": "assemble convert export_hf push",
}
VERBS = {"tarkit.encode", "tarkit.doctor"} | {
    f"tarkit.{room}.{verb}" for room, verbs in STAGE_VERBS.items() for verb in verbs.split()
}

# The drawn world outside its room: its verbs, and nouns named `shapes_...`. What is for
# everybody imports neither its room nor these; a table may name them as "module:function".
DRAWN_WORLD = {
    "tarkit.curate.render",
    "tarkit.curate.shapes_judge",
    "tarkit.eval.shapes",
    "tarkit.eval.reflect",
    "tarkit.eval.selftest",  # proves every scorer right, so that of the drawn world too
    "tarkit.eval.shapes_pools",
    "tarkit.eval.shapes_samples",
    "tarkit.eval.shapes_scores",
    "tarkit.eval.shapes_items",
    "tarkit.eval.shapes_proof",
    "tarkit.eval.metrics.shapes_captions",
    "tarkit.eval.metrics.shapes_classifier",
    "tarkit.scoring.shapes_detector",
    "tarkit.scoring.shapes_scorer",
}

HEAVY = ("torch", "transformers", "diffusers", "webdataset", "accelerate", "pyarrow", "PIL")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


KNOWN = {name_of(path) for path in modules()}


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every module of tarkit that a file imports, at its top or in a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("tarkit."))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert node.level == 0, f"a relative import of {module!r}"
            if module.split(".")[0] == "tarkit":
                for alias in node.names:
                    full = f"{module}.{alias.name}"
                    yield full if full in KNOWN else module


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "tarkit"


def is_drawn_world(module: str) -> bool:
    return room_of(module) == "shapes" or module in DRAWN_WORLD


def faults(module: str, imported: set[str]) -> list[str]:
    """What is wrong with a module's imports, in words."""
    room = room_of(module)
    found = []
    for other in sorted(imported - {module}):
        if room_of(other) not in ROOMS.get(room, set()) | LEAVES | {room}:
            found.append(f"{room} may not import {room_of(other)}: {module} imports {other}")
        if other in VERBS and room != "cli":
            found.append(f"nothing but the command line imports a verb: {module} imports {other}")
        if is_drawn_world(other) and not (room == "cli" or is_drawn_world(module)):
            found.append(f"{module} is for everybody and imports the drawn world's {other}")
    return found


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    module = name_of(path)
    assert module == "tarkit" or room_of(module) in ROOMS, f"{module} is in no room of the table"
    if module != "tarkit":
        assert not faults(module, set(imports_of(ast.parse(path.read_text()))))


def test_the_table_has_no_circle_and_names_what_is_there() -> None:
    floors = list(ROOMS)
    for number, (room, below) in enumerate(ROOMS.items()):
        assert below <= set(floors[number + 1 :]), f"{room} imports a room above it"
    assert {room_of(module) for module in KNOWN} - {"tarkit"} == set(ROOMS)
    assert VERBS <= KNOWN


def test_the_drawn_world_is_known_by_its_names() -> None:
    nouns = {module for module in KNOWN if module.split(".")[-1].startswith("shapes_")}
    assert nouns == DRAWN_WORLD - VERBS
    assert DRAWN_WORLD <= KNOWN


def test_no_module_imports_itself_by_a_circle() -> None:
    # Imports in functions and under TYPE_CHECKING count: a circle of words is a circle to a reader.
    graph = {
        name_of(path): set(imports_of(ast.parse(path.read_text()))) - {name_of(path)}
        for path in modules()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_a_wrong_direction_is_noticed() -> None:
    assert faults("tarkit.eval.metrics.summaries", {"tarkit.shapes.scene"})
    assert faults("tarkit.eval.metrics.summaries", {"tarkit.eval.metrics.shapes_captions"})
    assert not faults("tarkit.eval.shapes", {"tarkit.eval.metrics.shapes_captions"})
    assert faults("tarkit.curate.chats", {"tarkit.encode"})
    assert faults("tarkit.curate.chats", {"tarkit.curate.caption"})
    assert faults("tarkit.models.ta_tok", {"tarkit.checkpoints.load"})
    assert faults("tarkit.artifacts.artifact", {"tarkit.models.ta_tok"})
    assert faults("tarkit.vocab", {"tarkit.cli.app"})
    assert faults("tarkit.train.mllm", {"tarkit.train.vqvae"})
    assert not faults("tarkit.train.mllm", {"tarkit.train.loop", "tarkit.vocab"})
    assert not faults("tarkit.scoring.geneval", {"tarkit.errors"})


def test_no_two_classes_have_one_name() -> None:
    # `_Name` in one module and `Name` in another are one name to a reader.
    places: dict[str, list[str]] = {}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name.lstrip("_"), []).append(name_of(path))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def private_names(module: str, tree: ast.AST) -> set[str]:
    """Private names of other modules that a file imports, or reads from a module it imports."""
    aliases: dict[str, str] = {}
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tarkit":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                aliases[alias.asname or alias.name] = full
                if alias.name.startswith("_") and node.module != module:
                    names.add(full)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = aliases.get(ast.unparse(node.value))
            if owner in KNOWN and not node.attr.startswith("__"):
                names.add(f"{owner}.{node.attr}")
    return names


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_private_name_stays_in_its_module(path: Path) -> None:
    assert private_names(name_of(path), ast.parse(path.read_text())) == set()


def test_a_private_name_of_another_module_is_noticed() -> None:
    imported = ast.parse("from tarkit.seeds import _mix")
    read = ast.parse("from tarkit import seeds\nseeds._mix(seeds.__doc__)")
    assert private_names("tarkit.encode", imported) == {"tarkit.seeds._mix"}
    assert private_names("tarkit.encode", read) == {"tarkit.seeds._mix"}
    assert private_names("tarkit.seeds", imported) == set()


def test_no_module_is_named_utils_or_helpers() -> None:
    names = {path.stem for path in modules()}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


OPENERS = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "load_file", "save_file"}
DISK_MODULES = {"os", "pathlib", "io", "safetensors", "shutil", "tempfile", "pickle"}


def disk_use(tree: ast.AST) -> set[str]:
    """Names by which a module could reach the disk."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] in DISK_MODULES}
        elif isinstance(node, ast.ImportFrom):
            found |= {m for m in [node.module or ""] if m.split(".")[0] in DISK_MODULES}
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            name = node.func.id if isinstance(node.func, ast.Name) else name
            found |= {name} & (OPENERS | {"from_pretrained", "save_pretrained"})
            if ast.unparse(node.func) in ("torch.load", "torch.save"):
                found.add(ast.unparse(node.func))
    return found


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").glob("*.py")), ids=name_of)
def test_models_open_no_files(path: Path) -> None:
    assert not disk_use(ast.parse(path.read_text()))


def test_opening_a_file_would_be_noticed() -> None:
    assert disk_use(ast.parse("from pathlib import Path"))
    assert disk_use(ast.parse("torch.load(place)"))
    assert disk_use(ast.parse("AutoModel.from_pretrained(place)"))


def run_python(code: str) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    answer: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_help_loads_no_heavy_package() -> None:
    code = f"""
import contextlib, io, json, sys
import tarkit.cli
imported = [name for name in {HEAVY} if name in sys.modules]
sys.argv = ["tarkit", "--help"]
text = io.StringIO()
with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
    tarkit.cli.main()
asked = [name for name in {HEAVY} if name in sys.modules]
words = [word for word in ("generate", "curate", "train") if word in text.getvalue()]
print(json.dumps({{"imported": imported, "asked": asked, "words": words}}))
"""
    answer = run_python(code)
    assert answer == {"imported": [], "asked": [], "words": ["generate", "curate", "train"]}


@pytest.mark.parametrize("words", [["train"], ["curate"], ["eval"], ["generate"], ["bench"]])
def test_help_of_a_group_or_command_loads_neither_pydantic_nor_a_heavy_package(
    words: list[str],
) -> None:
    # pydantic alone would make it half as slow again.
    code = f"""
import contextlib, io, json, sys
from tarkit.cli import main
sys.argv = ["tarkit", *{words}, "--help"]
text = io.StringIO()
with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
    main()
loaded = [name for name in {(*HEAVY, "pydantic")} if name in sys.modules]
print(json.dumps({{"loaded": loaded, "usage": text.getvalue().split()[:1]}}))
"""
    assert run_python(code) == {"loaded": [], "usage": ["Usage:"]}


def test_a_group_that_is_imported_later_offers_its_commands() -> None:
    group = typer.main.get_group(app).commands["curate"]
    assert {"ingest", "render", "chats"} <= set(group.commands)  # type: ignore[attr-defined]


def test_drawing_one_picture_loads_no_package_that_it_does_not_need(tmp_path: Path) -> None:
    # Each of these takes a tenth of a second to half a second; accelerate is read by transformers.
    unneeded = ("pyarrow", "webdataset", "diffusers", "torchvision", "torchaudio", "openai", "peft")
    code = f"""
import contextlib, io, json, sys
from tarkit.cli import main
sys.argv = ["tarkit", "generate", "a red circle", "--out", {str(tmp_path / "a.png")!r}]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
print(json.dumps({{"loaded": [name for name in {unneeded} if name in sys.modules]}}))
"""
    assert run_python(code) == {"loaded": []}
    assert (tmp_path / "a.png").exists()


def test_help_takes_less_than_half_a_second_of_processor_time() -> None:
    code = """
import contextlib, io, json, os, sys
import tarkit.cli
sys.argv = ["tarkit", "--help"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    tarkit.cli.main()
print(json.dumps({"seconds": [str(sum(os.times()[:2]))]}))
"""
    # Processor and not wall time, so that a busy machine does not decide; 0.11 s where written.
    assert float(run_python(code)["seconds"][0]) < 0.5


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = f"""
import json, sys
import tarkit
print(json.dumps({{"heavy": [name for name in {HEAVY} if name in sys.modules]}}))
"""
    assert run_python(code) == {"heavy": []}


def test_nothing_imports_click() -> None:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(a.name.split(".")[0] == "click" for a in node.names), path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "click", path
