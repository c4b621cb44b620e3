"""The house's walls: who imports whom, what opens files, what importing the command line costs."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "tarkit"

ON_DISK = {"artifacts", "manifests", "ranks", "schemas"}
LEAVES = {"config", "errors", "images", "progress", "vocab", "shapes"} | ON_DISK
# A noun and the nouns it may import; a package stands for all its modules.
NOUNS: dict[str, set[str]] = {
    "errors": set(),
    **{leaf: {"errors"} for leaf in LEAVES - {"errors", "shapes"}},
    "artifacts": {"errors", "manifests", "ranks", "schemas"},
    "shapes": {"errors", "shapes", "vocab"},
    "assistants": {"assistants", "checkpoints", "config", "errors", "images", "mapping"},
    "reflect": {"errors", "scoring", "tar", "vocab", "shapes"},
    "engines": {"config", "errors"},
    "beside": {"artifacts", "errors"},
    "files": {"errors", "images"},
    "plan": {"errors"} | ON_DISK,
    "mapping": {"progress"} | ON_DISK,
    "prompts": {"artifacts", "errors"},
    "processes": {"errors", "progress"},
    "runs": {"errors", "files", "samples"} | ON_DISK,
    "models": {"models", "vocab", "config", "errors"},
    "places": {"errors"},
    "published": {"models"} | LEAVES - {"shapes"},
    "checkpoints": {"models", "places", "published"} | LEAVES - {"shapes"},
    "detokenizers": {"checkpoints", "models", "places", "published", "errors"},
    "tar": {"detokenizers", "checkpoints", "models", "places"} | LEAVES - {"shapes"},
    "scoring": {"scoring", "files", "tar", "places", "checkpoints", "models"} | LEAVES,
}
# Rooms that have their nouns with them already; their own walls come when all have moved.
MOVED = {"report", "curate", "eval"}
VERBS = {"curate", "train", "eval", "encode", "generate", "describe", "reconstruct"}
VERBS |= {"assemble", "convert", "export", "report"}
# The loop and the streams stand in train/ because only trainings share them.
SHARED_BY_TRAININGS = {"tarkit.train.loop", "tarkit.train.data", "tarkit.train.chats"}

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


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else "tarkit"


def faults(module: str, imported: set[str]) -> list[str]:
    """What is wrong with a module's imports, in words."""
    mine = layer(module)
    found = []
    for other in sorted(imported - {module}):
        if mine in ("cli", "tarkit") or (module in SHARED_BY_TRAININGS and layer(other) in NOUNS):
            continue
        if layer(other) == "cli":
            found.append(f"{module} imports the command line")
        elif mine in VERBS and layer(other) in VERBS:
            sibling = other == f"tarkit.{mine}" or (mine == layer(other) and mine in MOVED)
            if not sibling and not (mine == "train" and other in SHARED_BY_TRAININGS):
                found.append(f"the verb {module} imports the verb {other}")
        elif mine in NOUNS and layer(other) not in NOUNS[mine] | MOVED:
            found.append(f"the noun {module} imports {other}")
    return found


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_from_verbs_to_nouns_and_down(path: Path) -> None:
    module = name_of(path)
    tree = ast.parse(path.read_text())
    assert layer(module) in NOUNS.keys() | VERBS | {"cli", "tarkit"}, (
        f"{module} is neither a verb nor a noun of this test's tables"
    )
    assert not faults(module, set(imports_of(tree)))


def test_a_wrong_direction_is_noticed() -> None:
    assert faults("tarkit.curate.chats", {"tarkit.encode"})
    assert faults("tarkit.models.ta_tok", {"tarkit.checkpoints"})
    assert faults("tarkit.artifacts", {"tarkit.images"})
    assert faults("tarkit.vocab", {"tarkit.cli"})
    assert faults("tarkit.train.mllm", {"tarkit.train.vqvae"})
    assert not faults("tarkit.train.mllm", {"tarkit.train.loop", "tarkit.vocab"})
    assert not faults("tarkit.scoring.geneval", {"tarkit.shapes.render"})


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
