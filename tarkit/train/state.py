"""The checkpoints of a training in `state/`: what a run that was stopped resumes from.

`state/step-0000500/` holds model and optimizers after 500 steps: safetensors files of torch's
distributed checkpoints, one of each process that had something to write, and state.json, which
names them with their sizes and sha256 and has a sha256 of its own. One process, many with whole
copies (DDP) and many with shards (FSDP2) write the same format, and any number of processes reads
it. Nothing in it is pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.tensor import DTensor

from tarkit.artifacts.digests import file_sha256
from tarkit.artifacts.files import rename_folder, write_whole
from tarkit.errors import UserError
from tarkit.train.processes import num_processes, sum_over_processes

Result = TypeVar("Result")

log = logging.getLogger("tarkit")

STATE = "state.json"
OWN_SHA256 = "state_sha256"
OLD_CHECKPOINT = "checkpoint.pt"
"""The only checkpoint of a training begun by an older version; it is read, and never written."""
PATIENCE = timedelta(days=1)
"""How long processes wait for one that writes a model, where NCCL gives up after ten minutes."""


class Unusable(Exception):
    """Why a checkpoint cannot be resumed from."""


UNREADABLE = (
    CheckpointException,
    SafetensorError,
    OSError,
    ValueError,
    LookupError,
    EOFError,
    UnpicklingError,
    RuntimeError,
    AssertionError,
)
"""What torch and safetensors raise for files that are damaged or of another model."""


class Checkpoints:
    """The checkpoints of one run: written in the background, the last few of them kept.

    Every process of the training has one and calls its methods in the same order.
    """

    def __init__(self, folder: Path, model: nn.Module, *, keep: int) -> None:
        """`model`: the one that is trained, without DDP's wrapper around it."""
        self.folder = folder
        self.model = model
        self.keep = keep
        # One process alone is meant: `no_dist` says so, and torch warns all the same. The other
        # warning is of torch 2.9 about itself.
        for message in ("torch.distributed is disabled, unavailable", "TypedStorage is deprecated"):
            warnings.filterwarnings("ignore", message=message)
        self.latest: Path | None = None
        """What this run would resume from."""
        self.counters: dict[str, float] = {}
        """The numbers that were saved with what `load` loaded."""
        self._writing: tuple[int, Mapping[str, Any], Future[dict[str, str]]] | None = None
        self._hashing = ThreadPoolExecutor(1)
        # The thread that writes has a group for itself, and both are of the CPU, without NCCL.
        self.is_main, self._writers, self._all = True, None, None
        if num_processes() > 1:
            self.is_main = distributed.get_rank() == 0
            self._writers, self._all = (
                distributed.new_group(backend="gloo", timeout=PATIENCE) for _ in range(2)
            )

    def load(self, optimizers: Sequence[torch.optim.Optimizer]) -> int:
        """Load the newest usable checkpoint, if there is any; the first step to take.

        One that is damaged, or holds numbers that are not finite, is passed over with a warning.
        Raises UserError where there are checkpoints and none of them is usable.
        """
        if self.is_main:
            for half_written in self.folder.glob(".step-*.tmp"):
                shutil.rmtree(half_written)
        self.wait_for_all()
        faults = []
        for place in checkpoints_in(self.folder):
            try:
                done = self._load(place, optimizers)
            except Unusable as fault:
                faults.append(f"{place} {fault}")
                continue
            self.latest = place
            if faults and self.is_main:
                log.warning("%s; %s is resumed from instead", "; ".join(faults), place)
            return done
        if faults:
            raise UserError(
                f"no checkpoint can be resumed from: {'; '.join(faults)}",
                hint=f"give another --out, or remove {self.folder} to begin again at step 0",
            )
        return 0

    def save(
        self,
        done: int,
        optimizers: Sequence[torch.optim.Optimizer],
        counters: Mapping[str, float] | None = None,
    ) -> None:
        """Begin to write model, optimizers and counters after `done` steps.

        They are copied to the CPU first; then training may change them while a thread writes.
        Raises UserError where the checkpoint before this one could not be written.
        """
        self.settle()
        self.wait_for_all()  # for the one that hashed the checkpoint before
        tensors = _of_model(self.model) | _of_optimizers(self.model, optimizers)
        writer = HuggingFaceStorageWriter(str(self._temporary(done)), save_distributed=True)
        future = dcp.async_save(
            tensors,
            storage_writer=writer,
            process_group=self._writers,
            no_dist=self._writers is None,
        )
        assert isinstance(future, Future)
        # Some optimizers count their steps in their groups, where no tensor is.
        group_steps = [[g.get("steps", 0) for g in o.param_groups] for o in optimizers]
        rest = {"counters": dict(counters or {}), "group_steps": group_steps}
        self._writing = done, rest, self._hashing.submit(self._written, done, future)

    def _written(self, done: int, future: Future[Any]) -> dict[str, str]:
        """The sha256 of each file of a checkpoint, once all are written; runs in a thread.

        The main process alone reads them again: where many write, that is the same file system.
        """
        future.result()
        files = self._temporary(done).iterdir() if self.is_main else ()
        return {file.name: file_sha256(file) for file in sorted(files)}

    def settle(self, *, wait: bool = True) -> None:
        """Give the checkpoint that was being written its name, and remove those before it.

        Without `wait`, nothing happens while it is still being written. Raises UserError where it
        could not be written.
        """
        if self._writing is None or not (wait or self._writing[2].done()):
            return
        (done, rest, future), self._writing = self._writing, None
        try:
            digests = future.result()
            if self.is_main:
                self._publish(done, rest, digests)
        except UNREADABLE as error:
            raise UserError(
                f"the checkpoint after step {done} could not be written: {_reason(error)}",
                hint=f"make room at {self.folder}; the same command resumes from "
                f"{self.latest or 'step 0'}",
            ) from error
        self.latest = self._place(done)

    def close(self) -> None:
        """Finish writing what was begun."""
        try:
            self.settle()
        finally:
            self._hashing.shutdown()

    def clear(self) -> None:
        """Remove every checkpoint: the trained model is written."""
        self.settle()
        if self.is_main:
            for place in checkpoints_in(self.folder):
                _remove(place)

    def wait_for_all(self) -> None:
        """Wait until every process is here, for as long as one of them may need to write."""
        if self._all is not None:
            distributed.barrier(group=self._all)

    def _place(self, done: int) -> Path:
        return self.folder / f"step-{done:07d}"

    def _temporary(self, done: int) -> Path:
        return self.folder / f".step-{done:07d}.tmp"

    def _publish(self, done: int, rest: Mapping[str, Any], digests: Mapping[str, str]) -> None:
        temporary, place = self._temporary(done), self._place(done)
        sizes = {file.name: file.stat().st_size for file in sorted(temporary.iterdir())}
        state = {"step": done, "processes": num_processes(), **rest, "files": sizes}
        state |= {"sha256": digests}
        state |= {OWN_SHA256: _state_sha256(state)}
        write_whole(temporary / STATE, (json.dumps(state, indent=1) + "\n").encode())
        # This run has been at an earlier step, so it has passed over what is here from later ones.
        for other in checkpoints_in(self.folder):
            if _step_of(other) >= done:
                _remove(other)
        rename_folder(temporary, place)
        for old in checkpoints_in(self.folder)[self.keep :]:
            _remove(old)

    def _load(self, place: Path, optimizers: Sequence[torch.optim.Optimizer]) -> int:
        """Load a checkpoint; the steps it was written after. Unusable on all where on one."""
        if place.is_file():
            state = _on_all(lambda: _load_old(place, self.model, optimizers))
            tensors = _of_model(self.model) | _of_optimizers(self.model, optimizers)
        else:
            # The main process hashes all of it, which can take longer than NCCL waits.
            state = _on_all(lambda: _state_of_whole(place, hashed=self.is_main), self.wait_for_all)
            tensors = _on_all(lambda: _targets(place, self.model, optimizers))
            _on_all(
                lambda: dcp.load(
                    tensors,
                    storage_reader=HuggingFaceStorageReader(str(place)),
                    process_group=self._writers,
                    no_dist=self._writers is None,
                )
            )
        _on_all(lambda: _require_finite(tensors))
        for optimizer, steps in zip(optimizers, state["group_steps"], strict=False):
            for group, count in zip(optimizer.param_groups, steps, strict=True):
                if "steps" in group:
                    group["steps"] = count
        self.counters = state["counters"]
        return int(state["step"])


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    named = [path for path in folder.glob("step-*") if path.name[len("step-") :].isdecimal()]
    places = sorted(named, key=_step_of, reverse=True)
    old = folder / OLD_CHECKPOINT
    return [*places, old] if old.exists() else places


def _step_of(place: Path) -> int:
    """The step in a checkpoint's name; 0 of one of an older version, which comes before all."""
    return 0 if place.name == OLD_CHECKPOINT else int(place.name.removeprefix("step-"))


def _remove(place: Path) -> None:
    """Remove a checkpoint; a process that is killed meanwhile leaves none that looks whole."""
    if place.is_file():
        place.unlink()
    else:
        (place / STATE).unlink(missing_ok=True)
        shutil.rmtree(place)


# ---- tensors by name -----------------------------------------------------------------------------


def _of_model(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the state dict; one that has two names, as tied tables do, under the first."""
    tensors: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[f"model.{name}"] = tensor.detach()
    return tensors


def _of_optimizers(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """What the optimizers keep of each parameter, by the parameter's name.

    Rates and decays are no part of it: they follow from the settings and the step.
    """
    tensors: dict[str, Tensor] = {}
    names = _names(model)
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, tensor in state.items():
                assert isinstance(tensor, Tensor), f"{key} of {type(optimizer).__name__}"
                tensors[f"optimizer.{names[parameter]}.{key}"] = tensor.detach()
    return tensors


def _names(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _targets(
    place: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """The tensors that a checkpoint is read into, those of the optimizers newly made."""
    present = HuggingFaceStorageReader(str(place)).read_metadata().state_dict_metadata.keys()
    _make_states(model, optimizers, present)
    tensors = _of_model(model) | _of_optimizers(model, optimizers)
    if differing := sorted(tensors.keys() ^ present):
        where = "lacks" if differing[0] in tensors else "has"
        raise Unusable(f"is of another model: it {where} {differing[0]}")
    return tensors


def _make_states(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], present: Set[str]
) -> None:
    """Make the states of the parameters that have one in a checkpoint, by a step of rate 0.

    They then have the shapes, devices and shards that each optimizer gives them; their values, and
    those of the parameters, are read afterwards. A parameter that never had a gradient has no
    state.
    """
    names = _names(model)
    with_state = {name.removeprefix("optimizer.").rpartition(".")[0] for name in present}
    for optimizer in optimizers:
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                has_state = names[parameter] in with_state
                parameter.grad = torch.zeros_like(parameter) if has_state else None
        optimizer.step()
        optimizer.zero_grad()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for parameter, state in list(optimizer.state.items()):
            if not any(f"optimizer.{names[parameter]}.{key}" in present for key in state):
                del optimizer.state[parameter]


# ---- checks --------------------------------------------------------------------------------------


def _on_all(attempt: Callable[[], Result], wait: Callable[[], None] = lambda: None) -> Result:
    """The result of what every process tries; Unusable on all of them where one fails.

    `wait` lets processes that are done wait for one that needs long.
    """
    reason, results = "", list[Result]()
    try:
        results.append(attempt())
    except (Unusable, *UNREADABLE) as error:
        reason = _reason(error)
    wait()
    if float(sum_over_processes(torch.tensor(float(not results)))):
        raise Unusable(reason or "cannot be read by another process")
    return results[0]


def _reason(error: BaseException) -> str:
    """The first line of an error, of a distributed checkpoint's that of the first process."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, Unusable):
        return str(error)
    return f"is damaged: {(str(error) or repr(error)).splitlines()[0]}"


def _state_of_whole(place: Path, *, hashed: bool) -> Mapping[str, Any]:
    """The state.json of a checkpoint all of whose files are there, in their sizes.

    With `hashed`, which one process asks for, their bytes are compared too. A state.json without
    sha256 is of an older version.
    """
    state: Any = json.loads((place / STATE).read_text(encoding="utf-8"))
    own = state.pop(OWN_SHA256, None) if isinstance(state, dict) else None
    if not _is_state(state, _step_of(place)) or own not in (None, _state_sha256(state)):
        raise Unusable(f"is damaged: {STATE} is not as a training wrote it")
    digests = state.get("sha256", {})
    for name, size in state["files"].items():
        file = place / name
        if file.parent != place:
            raise Unusable(f"is damaged: {STATE} names a file elsewhere")
        actual = file.stat().st_size
        if actual != size:
            raise Unusable(f"is damaged: {name} has {actual} bytes, and had {size}")
        if hashed and digests.get(name, "") not in ("", file_sha256(file)):
            raise Unusable(f"is damaged: {name} has another sha256 than {STATE} records")
    return dict(state)


def _state_sha256(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _is_state(state: Any, step: int) -> bool:
    """Whether everything in a state.json is of the type that a training writes."""
    if not isinstance(state, dict) or state.get("step") != step:
        return False
    tables = [state.get(key, {}) for key in ("counters", "files", "sha256")]
    counts = state.get("group_steps")
    return (
        {"counters", "files"} <= state.keys()
        and all(isinstance(table, dict) for table in tables)
        and all(type(number) in (int, float) for number in tables[0].values())
        and isinstance(counts, list)
        and all(isinstance(group, list) for group in counts)
        and all(type(count) is int for group in counts for count in group)
    )


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if own.is_floating_point() and not bool(own.isfinite().all()):
            raise Unusable(f"holds numbers that are not finite: {name}")


def _load_old(
    place: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> Mapping[str, Any]:
    """Load a checkpoint of an older version; its step and counters."""
    state = torch.load(place, map_location="cpu", weights_only=True, mmap=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return {"step": int(state["step"]), "counters": state.get("guard", {}), "group_steps": []}
