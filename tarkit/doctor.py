"""`tarkit doctor`: whether this machine can run tarkit, and the command that mends what it cannot.

Each check looks at what is there: the versions that pip recorded, packages as they import, a file
as it is written, the hub's cache as it is read. No check opens a connection but that of `hub`, and
none changes anything: the file that tries a disk has no name and is gone at once.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tarkit.errors import explained

State = Literal["ok", "note", "broken"]
"""`note`: something is not there that tarkit may never need."""

PACKAGE = "tarkit"
DEVELOPERS = ("test", "dev")
"""Extras that a user does not need."""
FULL_BYTES, SMALL_BYTES = 1 << 30, 10 << 30
"""Less free space than the first is a fault: a checkpoint of a small model does not fit. The second
is what a published model takes."""
PROBE_BYTES = 1 << 20
HUB_TIMEOUT_S = 5.0
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class CheckResult:
    """What one check found: a sentence, and the command that mends or adds it."""

    check: str
    state: State
    text: str
    fix: str = ""


def run(*, hub: bool = False) -> list[CheckResult]:
    """Every result, in the order of the checks; with `hub` the hub is asked for one page."""
    checks: list[Callable[[], Iterator[CheckResult]]] = [
        _python,
        _requirements,
        _extras,
        _torch,
        _torchvision,
        _processor,
        _gpus,
        _disks,
        _cache,
        _embedded,
        _published,
    ]
    if hub:
        checks.append(_hub)
    results: list[CheckResult] = []
    for check in checks:
        try:
            results += check()
        except (
            Exception
        ) as error:  # a check of a broken machine: the others still say what they see
            name = check.__name__.lstrip("_")
            results.append(
                CheckResult(name, "broken", f"this check ended early: {_sentence(error)}")
            )
    return results


def _sentence(error: BaseException) -> str:
    """An error in one line."""
    told = explained(error) if isinstance(error, Exception) else None
    text = told.message if told else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


# ---- packages ------------------------------------------------------------------------------------


def _python() -> Iterator[CheckResult]:
    version = _version(PACKAGE) or "of a source tree"
    place = Path(__file__).resolve().parent
    system = f"{platform.system()} {platform.machine()}"
    yield CheckResult("tarkit", "ok", f"{version}, in {place}")
    yield CheckResult("python", "ok", f"{platform.python_version()}, {sys.executable}, {system}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _required(extra: str | None) -> Iterator[tuple[Any, str | None]]:
    """(requirement, installed version) of what tarkit needs, or of what an extra adds."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires(PACKAGE) or ():
        requirement = Requirement(line)
        wanted = _applies(requirement, extra or "")
        if extra is not None:
            wanted = wanted and not _applies(requirement, "")
        if wanted and requirement.name != PACKAGE:
            yield requirement, _version(requirement.name)


def _applies(requirement: Any, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _requirements() -> Iterator[CheckResult]:
    if _version(PACKAGE) is None:
        yield CheckResult(
            "packages",
            "note",
            "tarkit is not installed here, so that what it requires is not known",
            "pip install .",
        )
        return
    shown = []
    for requirement, version in _required(None):
        fix = f"pip install '{requirement.name}{requirement.specifier}'"
        if version is None:
            yield CheckResult(requirement.name, "broken", "it is not installed", fix)
        elif not requirement.specifier.contains(version, prereleases=True):
            text = f"{version} is installed, and tarkit needs {requirement.specifier}"
            yield CheckResult(requirement.name, "broken", text, fix)
        else:
            shown.append(f"{requirement.name} {version}")
    yield CheckResult("packages", "ok", ", ".join(shown))


def _extras() -> Iterator[CheckResult]:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        names = importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or ()
        for name in sorted(set(names) - set(DEVELOPERS)):
            yield _extra(name)


def _extra(name: str) -> CheckResult:
    missing, wrong, there = [], [], []
    for requirement, version in _required(name):
        if version is None:
            missing.append(requirement.name)
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} (needs {requirement.specifier})")
        else:
            there.append(f"{requirement.name} {version}")
    check, fix = f"extra {name}", f"pip install '{PACKAGE}[{name}]'"
    if missing:
        also = f"; other versions: {', '.join(wrong)}" if wrong else ""
        return CheckResult(check, "note", f"not installed: {', '.join(missing)}{also}", fix)
    if wrong:
        return CheckResult(check, "broken", f"wrong versions: {', '.join(wrong)}", fix)
    return CheckResult(check, "ok", ", ".join(there))


def _torch() -> Iterator[CheckResult]:
    try:
        import torch
    except Exception as error:
        yield CheckResult(
            "torch", "broken", _sentence(error), "pip install --force-reinstall --no-deps torch"
        )
        return
    cuda = torch.version.cuda
    build = f"built for CUDA {cuda}" if cuda else "built without CUDA"
    if torch.version.hip:
        build = f"built for ROCm {torch.version.hip}"
    yield CheckResult("torch", "ok", f"{torch.__version__}, {build}")


def _torchvision() -> Iterator[CheckResult]:
    """A torchvision of another torch is worse than none: transformers then fails to import."""
    if importlib.util.find_spec("torchvision") is None:
        yield CheckResult("torchvision", "ok", "not installed, and not needed")
        return
    remove = "pip uninstall torchvision"
    try:
        importlib.import_module("torchvision")
        import torch

        _ = torch.ops.torchvision.nms  # an operator of its own library, which another torch refuses
    except Exception as error:
        yield CheckResult(
            "torchvision", "broken", f"it does not import: {_sentence(error)}", remove
        )
        return
    for line in importlib.metadata.requires("torchvision") or ():
        from packaging.requirements import Requirement

        requirement, version = Requirement(line), _version("torch")
        if requirement.name == "torch" and not requirement.specifier.contains(
            (version or "0").split("+")[0], prereleases=True
        ):
            text = f"it is made for torch{requirement.specifier}, and torch {version} is installed"
            yield CheckResult("torchvision", "broken", text, remove)
            return
    yield CheckResult("torchvision", "ok", str(_version("torchvision")))


# ---- the machine ---------------------------------------------------------------------------------


def _processor() -> Iterator[CheckResult]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{_processor_name()}, {cores} cores"
    with contextlib.suppress(Exception):  # without torch there is nothing to measure with
        import torch

        from tarkit.train.machine import memory_bytes, products_per_s

        cpu = torch.device("cpu")
        text += f", {memory_bytes(cpu) / 1e9:.1f} GB of memory; measured: "
        text += f"{products_per_s(cpu, torch.float32) / 1e9:,.0f} GFLOP/s in float32, on "
        num_threads = torch.get_num_threads()
        text += "1 thread" if num_threads == 1 else f"{num_threads} threads"
    yield CheckResult("cpu", "ok", text)


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpus() -> Iterator[CheckResult]:
    has_driver = DRIVER.exists() or shutil.which("nvidia-smi") is not None
    try:
        import torch

        from tarkit.train.machine import products_per_s
    except Exception:  # said by its own check
        return
    if not torch.cuda.is_available():
        build = "https://pytorch.org/get-started/locally"
        if not has_driver:
            yield CheckResult("gpu", "note", "no NVIDIA GPU: models run on the CPU")
        elif torch.version.cuda is None:
            text = "there is an NVIDIA driver, and this torch is built without CUDA"
            yield CheckResult("gpu", "broken", text, f"install a build with CUDA: {build}")
        else:
            yield CheckResult(
                "gpu",
                "broken",
                f"torch is built for CUDA {torch.version.cuda}, and the driver refuses it: "
                f"{_cuda_refusal(torch)}",
                f"update the driver, or install a build for its CUDA: {build}",
            )
        return
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        architecture = f"sm_{facts.major}{facts.minor}"
        text = f"{facts.name}, {facts.total_memory / 1e9:.0f} GB, {architecture}"
        try:
            speed = products_per_s(torch.device("cuda", number), torch.bfloat16)
        except Exception as error:
            known = ", ".join(torch.cuda.get_arch_list())
            text += f": it does not compute: {_sentence(error)} (this torch has {known})"
            yield CheckResult(f"gpu {number}", "broken", text, "install a torch that has it")
            continue
        measured = f"measured: {speed / 1e12:,.0f} TFLOP/s in bfloat16"
        yield CheckResult(f"gpu {number}", "ok", f"{text}; {measured}")


def _cuda_refusal(torch: Any) -> str:
    try:
        torch.cuda.init()
    except Exception as error:
        return _sentence(error)
    return "it shows no device (CUDA_VISIBLE_DEVICES?)"


# ---- disks, cache, models ------------------------------------------------------------------------


def _cache_dir() -> Path:
    from tarkit.checkpoints.hub import cache_dir

    return cache_dir().expanduser()


def _disks() -> Iterator[CheckResult]:
    places = {
        "this folder": Path.cwd(),
        "the hub's cache": _cache_dir(),
        "temporary files": Path(tempfile.gettempdir()),
    }
    for name, place in places.items():
        yield _disk(name, place)


def _disk(name: str, place: Path) -> CheckResult:
    """Whether a file can be written where `place` is, or will be made."""
    check = f"disk of {name}"
    folder = next(each for each in (place, *place.parents) if each.is_dir())
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        told = explained(error)
        fix = told.hint.split(";")[0] if told and told.hint else ""
        return CheckResult(check, "broken", f"{folder} cannot be written: {_sentence(error)}", fix)
    text = f"{free / 1e9:,.1f} GB free at {folder}"
    if free < FULL_BYTES:
        return CheckResult(check, "broken", f"full: {text}", "free some space on this disk")
    if free < SMALL_BYTES:
        return CheckResult(check, "note", f"{text}, less than a published model takes")
    return CheckResult(check, "ok", text)


def _cache() -> Iterator[CheckResult]:
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    place = _cache_dir()
    mend = f"change its permissions, or set HF_HUB_CACHE to another folder; it is {place}"
    try:
        info = scan_cache_dir(place)
        closed = [str(path) for path in _unreadable(place)]
    except CacheNotFound:
        yield CheckResult("cache", "ok", f"{place} is not there yet: nothing was fetched")
        return
    except (OSError, ValueError) as error:
        yield CheckResult("cache", "broken", f"it cannot be read: {_sentence(error)}", mend)
        return
    if closed:
        more = f" and {len(closed) - 1} more" if len(closed) > 1 else ""
        yield CheckResult("cache", "broken", f"{closed[0]}{more} cannot be read", mend)
    for warning in info.warnings:
        yield CheckResult(
            "cache", "broken", _sentence(warning), "remove this folder and fetch again"
        )
    offline = ", offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    size = f"{len(info.repos)} repositories, {info.size_on_disk / 1e9:.1f} GB"
    yield CheckResult("cache", "ok", f"{size} in {place}{offline}")


def _unreadable(place: Path) -> Iterator[Path]:
    """Files and folders of a cache that this user may not read."""
    errors: list[OSError] = []
    for folder, _, files in os.walk(place, onerror=errors.append):
        for name in files:
            path = Path(folder) / name
            if path.exists() and not os.access(path, os.R_OK):
                yield path
    yield from (Path(str(error.filename)) for error in errors)


def _embedded() -> Iterator[CheckResult]:
    from tarkit.artifacts.digests import file_sha256
    from tarkit.artifacts.files import read_object
    from tarkit.checkpoints.hub import EMBEDDED

    reinstall = f"pip install --force-reinstall --no-deps {PACKAGE}"
    for name, folder in EMBEDDED.items():
        check = f"model {name}"
        faults = []
        for part in ("mllm", "ta_tok", "ar_dtok", "vqvae"):
            weights = folder / part / "model.safetensors"
            if not weights.is_file():
                faults.append(f"{weights} is not there")
                continue
            recorded = read_object(folder / part / "config.json").get("weights_sha256")
            if recorded not in (None, file_sha256(weights)):
                faults.append(f"{weights} is damaged")
        if faults:
            yield CheckResult(check, "broken", "; ".join(faults), reinstall)
        else:
            yield CheckResult(check, "ok", f"part of the package, {folder}")


def _published() -> Iterator[CheckResult]:
    from tarkit.checkpoints.hub import LANGUAGE_MODELS, known

    parts = list(known())
    shared = [part for part in parts if part.part not in LANGUAGE_MODELS]
    for name in LANGUAGE_MODELS:
        row = next(part for part in parts if part.part == name)
        if row.path:
            yield CheckResult(f"model {name}", "ok", f"{row.num_bytes / 1e9:.1f} GB, {row.path}")
        else:
            text = "its language model is not in the cache"
            yield CheckResult(f"model {name}", "note", text, f"tarkit models fetch {name}")
    here = [part.part for part in shared if part.path]
    absent = [part.part for part in shared if not part.path]
    texts: Mapping[str, list[str]] = {"in the cache": here, "not in the cache": absent}
    text = "; ".join(f"{where}: {', '.join(names)}" for where, names in texts.items() if names)
    fix = "tarkit models" if absent else ""
    yield CheckResult("published parts", "note" if absent else "ok", text, fix)


def _hub() -> Iterator[CheckResult]:
    """Ask the hub for its first page, once, for a few seconds at the most."""
    from huggingface_hub import constants, get_session

    mend = "HF_ENDPOINT names another hub, HTTPS_PROXY a proxy; models in the cache work without it"
    if constants.HF_HUB_OFFLINE:
        text = "not asked: HF_HUB_OFFLINE forbids it"
        yield CheckResult("hub", "broken", text, "unset HF_HUB_OFFLINE")
        return
    began = time.monotonic()
    try:
        reply = get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # of the HTTP library, of the system: many types
        text = f"{constants.ENDPOINT} does not answer: {_sentence(error)}"
        yield CheckResult("hub", "broken", text, mend)
        return
    took = f"in {time.monotonic() - began:.1f} s"
    if reply.status_code >= 400:
        text = f"{constants.ENDPOINT} answers {reply.status_code}, {took}"
        yield CheckResult("hub", "broken", text, mend)
    else:
        yield CheckResult("hub", "ok", f"{constants.ENDPOINT} answers {took}")


def in_words(results: list[CheckResult]) -> str:
    """The results as lines of text, each fix below what it mends."""
    lines = []
    for each in results:
        state = {"ok": "ok", "note": "-", "broken": "BROKEN"}[each.state]
        lines.append(f"{state:<7} {each.check:<26} {each.text}")
        if each.fix:
            lines.append(f"{'':<35}{each.fix}")
    broken = sum(each.state == "broken" for each in results)
    lines.append(f"{broken} broken" if broken else "nothing is broken")
    return "\n".join(lines)
