"""A plan: one run of a verb that makes shards, as an object.

A verb's plan takes the verb's arguments once. `preview` and `run` follow from them, so that a dry
run describes the run that happens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from tarkit.artifacts.artifact import Artifact, Source, begin_artifact, open_artifact
from tarkit.artifacts.resume import first_rows, to_make
from tarkit.errors import UserError

LIMIT_HINT = "what was begun with one --limit ends with it: give another --limit another --out"


@dataclass(frozen=True, kw_only=True)
class ShardPlan(ABC):
    """The arguments that all these verbs have; a verb adds its own and defines its shards.

    `out` is the artifact to make. `config` is a TOML file and `overrides` are its `key=value`
    changes. `limit` keeps only the first rows of the input.
    """

    out: Path
    config: Path | None = None
    overrides: Sequence[str] = ()
    limit: int | None = None

    kind: ClassVar[str]
    """The kind of the artifact."""

    @property
    @abstractmethod
    def recorded(self) -> Mapping[str, Any]:
        """The settings in the manifest; a later run with other settings is refused."""

    @property
    @abstractmethod
    def shards(self) -> Sequence[str] | Mapping[str, int]:
        """The names of the shards, with their numbers of rows where these are known beforehand."""

    @property
    def parents(self) -> Mapping[str, Artifact | Path]:
        """The inputs in the manifest, by name."""
        return {}

    @property
    def source(self) -> Source | None:
        """The input whose shard of the same name each shard is made from; None without one."""
        return None

    @property
    def counts(self) -> Mapping[str, int]:
        """What a preview counts besides shards."""
        return {}

    @abstractmethod
    def make(self, artifact: Artifact) -> None:
        """Write the shards of this process that are missing or out of date."""

    def preview(self) -> dict[str, int]:
        """What `run` would make, as counts; writes nothing.

        Raises UserError where `out` was begun with another number of shards.
        """
        num_shards = len(self.shards)
        num_to_make = to_make(self.out, num_shards, self.source)
        return {**self.counts, "shards": num_shards, "shards_to_make": num_to_make}

    def run(self) -> Artifact:
        """Make the artifact `out`, or what is still missing of it.

        Raises UserError where there are no rows, and where `out` was begun with other settings,
        shards or inputs.
        """
        if not self.shards:
            raise UserError(
                f"there is nothing to make {self.out} of: the input has no rows",
                hint="tarkit inspect shows what an artifact holds",
            )
        artifact = begin_artifact(
            self.out,
            self.kind,
            settings=self.recorded,
            shards=self.shards,
            parents=self.parents,
            hint="" if self.limit is None else LIMIT_HINT,
        )
        self.make(artifact)
        return artifact


@dataclass(frozen=True)
class RowPlan(ShardPlan):
    """A plan that makes each shard from the rows of the input shard with the same name.

    `input_path` is the input artifact. With `retry_failed` the failed rows of finished shards are
    made again as well.
    """

    input_path: Path
    _: KW_ONLY
    retry_failed: bool = False

    input_kind: ClassVar[str]
    """The kind of the input, and its name in the manifest."""

    @cached_property
    def source(self) -> Artifact:
        return open_artifact(self.input_path, self.input_kind)

    @cached_property
    def rows_of(self) -> dict[str, int]:
        """The number of rows taken from each input shard."""
        return first_rows(self.source, self.limit)

    @property
    def shards(self) -> Sequence[str]:
        return list(self.rows_of)

    @property
    def parents(self) -> Mapping[str, Artifact | Path]:
        return {self.input_kind: self.source}

    @property
    def max_tries(self) -> int | None:
        """The most questions to a language model about one row; None where none is used."""
        return None

    @property
    def counts(self) -> Mapping[str, int]:
        num_rows = sum(self.rows_of.values())
        calls = {} if self.max_tries is None else {"calls_at_most": num_rows * self.max_tries}
        return {"rows": num_rows, **calls}
