"""Which parameters a training trains: patterns of names choose them; and how many they are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar, NamedTuple

from torch import nn

from tarkit.config import Config
from tarkit.errors import UserError


class ParametersConfig(Config):
    """Which of a model's parameters are trained. Default: all that its trainer trains."""

    freeze: tuple[str, ...] = ()
    """Patterns of names of parameters that are not trained, such as "*.mlp.*". A pattern must match
    a whole name; "*" stands for any characters, "?" for one, "[12]" for one of these. Frozen
    parameters are in no optimizer, and their values never change."""
    train_only: tuple[str, ...] = ()
    """Patterns of names of the only parameters that are trained; `freeze` is applied after it.
    Pre-alignment of new embeddings (paper Table 3) is a run with train_only = ["*embed_tokens*",
    "*lm_head*"], from which a second run starts."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset({"freeze", "train_only"})


class ParameterCounts(NamedTuple):
    """Values of a model's parameters; a shared one counts once."""

    trained: int
    total: int


def freeze_parameters(model: nn.Module, config: ParametersConfig) -> ParameterCounts:
    """Freeze what the patterns of `config` say, in place; the counts of what is left.

    Call it before the optimizers are made. A tied parameter is matched by each of its names.
    Raises UserError for a pattern that matches nothing, and where no parameter is left to train.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    if config.train_only:
        kept = {
            id(parameters[name]) for name in _matching("train_only", config.train_only, trained)
        }
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in kept)
    for name in _matching("freeze", config.freeze, list(parameters)):
        parameters[name].requires_grad_(False)
    counts = count_parameters(model)
    if not counts.trained:
        raise UserError(
            f"none of the {counts.total:,} parameters is left to train",
            hint="name fewer in freeze, or more in train_only",
        )
    return counts


def count_parameters(model: nn.Module) -> ParameterCounts:
    """How many values of a model are trained, and how many it has."""
    parameters = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return ParameterCounts(trained, sum(parameter.numel() for parameter in parameters))


def _matching(key: str, patterns: Iterable[str], names: Sequence[str]) -> set[str]:
    """The names that any of the patterns matches; UserError for a pattern without a match."""
    matching: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            raise name_nearest(key, pattern, names, "parameter of this training")
        matching |= matches
    return matching


def save_trained_only(module: nn.Module) -> None:
    """Leave the parameters and buffers that are frozen now out of the module's state dict.

    They come from what the training starts from: a checkpoint holds the rest alone, and can be
    loaded without them.
    """
    state = module.state_dict(keep_vars=True)
    frozen = {name for name, tensor in state.items() if not tensor.requires_grad}

    def drop(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for name in frozen:
            del state[prefix + name]

    def expect_none(module: nn.Module, keys: Any) -> None:
        keys.missing_keys[:] = [key for key in keys.missing_keys if key not in frozen]

    module.register_state_dict_post_hook(drop)
    module.register_load_state_dict_post_hook(expect_none)


def name_nearest(key: str, pattern: str, names: Sequence[str], kind: str) -> UserError:
    """The error for a pattern of a setting that matches none of the names."""
    nearest = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
    return UserError(
        f"the pattern {pattern!r} of {key} matches no {kind}; the nearest names are "
        f"{', '.join(nearest)}",
        hint=f"--set {key}='[\"{nearest[0]}\"]', or a pattern with * in place of a part",
    )


def recorded_counts(counts: ParameterCounts, config: ParametersConfig) -> dict[str, Any]:
    """The counts as a manifest holds them: only where the settings choose parameters.

    A training that was begun before these settings existed can thus be resumed.
    """
    return {"parameters": counts._asdict()} if config.freeze or config.train_only else {}
