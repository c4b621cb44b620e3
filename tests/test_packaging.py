"""What is packed: licence, recipes and embedded model are in the wheel, and all of it in the sdist.

The build runs hatchling as it is installed, without a network.
"""

import email
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LICENCE = ROOT / ".github" / "LICENSE"
MINI = "tarkit/checkpoints/mini"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (file,) = built.glob("*.whl")
    return zipfile.ZipFile(file)


def tracked(*folders: str) -> set[str]:
    """Files that a build must hold."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    names = {path.relative_to(ROOT).as_posix() for path in paths}
    return {name for name in names if "__pycache__" not in name and not name.endswith(".tmp")}


def test_the_wheel_holds_the_package_its_recipes_and_its_licence(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    own = {name for name in names if ".dist-info/" not in name}
    assert own == tracked("tarkit") | {f"tarkit/{name}" for name in tracked("pipelines")}
    assert f"{MINI}/mllm/model.safetensors" in own and f"{MINI}/card.md" in own
    for name in ("tarkit/pipelines/mini/run.sh", f"{MINI}/ta_tok/model.safetensors"):
        file = ROOT / name.replace("tarkit/pipelines", "pipelines")
        assert wheel.read(name) == file.read_bytes()
    info = f"tarkit-{PROJECT['version']}.dist-info"
    assert wheel.read(f"{info}/licenses/.github/LICENSE") == LICENCE.read_bytes()
    metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert metadata["License-Expression"] == PROJECT["license"] == "Apache-2.0"
    assert LICENCE.read_text().split()[:3] == ["Apache", "License", "Version"]


def test_an_installed_wheel_lists_and_copies_its_recipes(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    """As from site-packages, without a checkout beside it."""
    wheel.extractall(tmp_path / "site")
    code = (
        "from pathlib import Path; from tarkit import recipes; "
        "print(recipes.__file__, *recipes.recipes()); recipes.copy('emoji', Path('copies'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    place, *names = done.stdout.split()
    assert place == str(tmp_path / "site" / "tarkit" / "recipes.py")
    assert names == sorted(path.name for path in (ROOT / "pipelines").iterdir())
    script = tmp_path / "copies" / "emoji" / "run.sh"
    assert script.stat().st_mode & 0o111  # the zip is unpacked without its permissions
    assert (tmp_path / "copies" / "mini" / "lm.toml").is_file()


def test_the_sdist_holds_all_that_a_wheel_and_the_tests_need(built: Path) -> None:
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    needed = tracked("tarkit", "pipelines", "tests", ".github", ".ci")
    assert needed | {"README.md", "pyproject.toml"} <= names


def test_what_names_the_version_names_the_same_one() -> None:
    citation = (ROOT / ".github" / "CITATION.cff").read_text()
    assert f"\nversion: {PROJECT['version']}\n" in citation
    assert f"\nlicense: {PROJECT['license']}\n" in citation
    assert f"\n## {PROJECT['version']}" in (ROOT / ".github" / "CHANGELOG.md").read_text()
