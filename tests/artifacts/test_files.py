"""Single files: a complaint names the file, and a file is written whole or not at all."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tarkit.artifacts.files import (
    read_lines,
    sweep,
    whole_file,
    whole_folder,
    write_once,
    write_whole,
)
from tarkit.errors import UserError
from tarkit.images import png_bytes, read_picture, require_png


def test_a_picture_is_read_as_rgb(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_bytes(np.full((2, 3, 3), 7, np.uint8)))
    picture = read_picture(tmp_path / "a.png")
    assert (picture.size, picture.mode, picture.getpixel((0, 0))) == ((3, 2), "RGB", (7, 7, 7))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("text.png", "not a picture"), (".", "it is a folder")],
)
def test_what_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "text.png").write_text("words")
    with pytest.raises(UserError, match=f"the picture .* cannot be read: {reason}"):
        read_picture(tmp_path / name)


def test_a_file_is_replaced_whole_and_folders_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "new" / "a.bin"
    write_whole(place, b"first")
    write_whole(place, b"second")
    assert place.read_bytes() == b"second"

    def torn(self: Path, data: bytes) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", torn)
    with pytest.raises(OSError, match="disk full"):
        write_whole(place, b"third")
    assert [path.name for path in place.parent.iterdir()] == ["a.bin"]
    assert place.read_bytes() == b"second"


def test_what_fails_halfway_leaves_what_was_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.bin", b"first")
    with pytest.raises(RuntimeError, match="halfway"):
        with whole_file(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"sec")
            raise RuntimeError("halfway")
    with pytest.raises(RuntimeError, match="halfway"):
        with whole_folder(tmp_path / "folder") as temporary:
            write_whole(temporary / "in" / "b.bin", b"x")
            raise RuntimeError("halfway")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"first"


def test_a_file_and_its_name_are_on_the_disk_before_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def fsync(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append("sync the folder" if place.is_dir() else f"sync {place.read_bytes()!r}")

    def replace(old: Path, new: Path) -> None:
        steps.append(f"rename to {new.name}")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_whole(tmp_path / "a.bin", b"all")
    assert steps == ["sync b'all'", "rename to a.bin", "sync the folder"]


def test_what_is_written_once_is_not_replaced(tmp_path: Path) -> None:
    assert write_once(tmp_path / "plan", b"mine")
    assert not write_once(tmp_path / "plan", b"another's")
    assert (tmp_path / "plan").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def test_what_dead_processes_left_of_a_name_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, living = socket.gethostname(), os.getppid()
    (tmp_path / f".a[1].{host}.{dead.pid}.tmp").write_bytes(b"half")
    (tmp_path / f".out.{host}.{dead.pid}.tmp").mkdir()
    (tmp_path / f".out.{host}.{dead.pid}.tmp" / "b").write_bytes(b"half")
    kept = [f".a[1].{host}.{living}.tmp", f".a[1].another.{dead.pid}.tmp", f".b.{host}.1.tmp"]
    for name in kept:
        (tmp_path / name).write_bytes(b"half")
    write_whole(tmp_path / "a[1]", b"all")
    with whole_folder(tmp_path / "out") as temporary:
        write_whole(temporary / "b", b"all")
    assert {path.name for path in tmp_path.iterdir()} == {"a[1]", "out", *kept}


SAVES_AND_IS_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from tarkit.artifacts.files import whole_file

def kill(event, arguments):
    if event == "os.rename":
        os.kill(os.getpid(), signal.SIGKILL)

with whole_file(Path(sys.argv[1])) as weights:
    save_file({"a": torch.zeros(3)}, weights)
    (weights.parent / ".library-x1").touch()  # libraries write beside what they save
    sys.addaudithook(kill)
"""


def test_what_a_library_left_beside_a_file_of_a_killed_process_goes_too(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAVES_AND_IS_KILLED, str(tmp_path / "model.safetensors")]
    subprocess.run(command, check=False)
    assert [path.name[:7] for path in tmp_path.iterdir()] == [".model."]
    write_whole(tmp_path / "config.json", b"{}")  # another name in the same folder
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_weights_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    with whole_file(tmp_path / "model.safetensors") as weights:
        save_file({"a": torch.zeros(3)}, weights)
    with whole_folder(tmp_path / "export") as folder:
        (folder / "in").mkdir()
        save_file({"a": torch.zeros(3)}, folder / "in" / "model.safetensors")
    os.umask(0o077)
    write_whole(tmp_path / "private", b"x")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"export": 0o755, "in": 0o755, "model.safetensors": 0o644, "private": 0o600}


def test_a_link_under_a_temporary_name_is_removed_and_not_followed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "kept").write_bytes(b"x")
    link = tmp_path / f".a.{socket.gethostname()}.{dead.pid}.tmp"
    link.symlink_to(tmp_path / "far")
    sweep(tmp_path)
    assert not link.is_symlink() and (tmp_path / "far" / "kept").exists()


def test_only_a_png_is_a_name_for_a_picture(tmp_path: Path) -> None:
    require_png(tmp_path / "a.PNG")
    with pytest.raises(UserError, match=r"a\.jpg: pictures are written as PNG"):
        require_png(tmp_path / "a.jpg")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        require_png(tmp_path / "b.png")


def test_a_line_ends_where_its_file_says_and_not_within_a_text(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes('"a\u2028b"\r\n\n"c\u0085d"'.encode())
    assert [(n, json.loads(line)) for n, line in read_lines(file)] == [
        (1, "a\u2028b"),
        (3, "c\u0085d"),
    ]
