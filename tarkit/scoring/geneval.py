"""GenEval's verdict on one picture: one checker for every detector.

Source: djghosh13/geneval, `evaluation/evaluate_images.py` (MIT), restated over a list of
detections, so that the checker which scores the drawn world is the one which scores photographs.

A prompt's metadata follows GenEval's schema: `{"tag", "include": [{"class", "count", "color"?,
"position"?: [relation, index of an earlier clause]}], "exclude"?: [{"class", "count"}]}`.
Surplus objects fail a prompt in counting only, through `exclude`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tarkit.errors import UserError

LEFT, RIGHT, ABOVE, BELOW = "left of", "right of", "above", "below"
RELATIONS = (LEFT, RIGHT, ABOVE, BELOW)
_CLAUSE_KEYS = frozenset({"class", "count", "color", "position"})

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """One object: class name, (x0, y0, x1, y1) in pixels, score in [0, 1], colour name."""

    cls: str
    box: Box
    score: float
    colour: str | None = None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The thresholds for a detector's scores, and the slack of the relation test.

    `position_slack` is a share of the two objects' sizes.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    position_slack: float = 0.1


OFFICIAL_RULES = Rules()  # GenEval's constants, for Mask2Former's class probabilities
# ShapesDetector has a template threshold of its own, so no score is too low here.
SHAPES_RULES = Rules(threshold=0.0, counting_threshold=0.0)


@dataclass(frozen=True)
class Verdict:
    """Whether a picture fulfils its prompt, the reason, and each clause (includes, excludes)."""

    correct: bool
    reason: str
    clauses: tuple[bool, ...]


def check(
    metadata: Mapping[str, Any],
    detections: Sequence[Detection],
    *,
    rules: Rules = SHAPES_RULES,
) -> Verdict:
    """Judge the detections of one picture against one prompt, as GenEval's `evaluate` does.

    Raises UserError for metadata that is not GenEval's schema.
    """
    threshold = rules.counting_threshold if metadata.get("tag") == "counting" else rules.threshold
    by_class = _by_class(detections, threshold=threshold, max_objects=rules.max_objects)
    reasons: list[str] = []
    groups: list[list[Detection] | None] = []
    for index, clause in enumerate(_clauses(metadata, "include")):
        _require_position(clause, index)
        group = by_class.get(clause["class"], [])[: clause["count"]]
        fault = _fault(clause, group, groups, rules.position_slack)
        groups.append(group if fault is None else None)
        if fault is not None:
            reasons.append(fault)
    clauses = [group is not None for group in groups]
    for clause in _clauses(metadata, "exclude"):
        num_found = len(by_class.get(clause["class"], []))
        clauses.append(num_found < clause["count"])
        if num_found >= clause["count"]:
            reasons.append(
                f"expected fewer than {clause['count']} {clause['class']}, found {num_found}"
            )
    if not clauses:
        raise UserError(f"the prompt's metadata asks for nothing: {dict(metadata)!r}")
    return Verdict(not reasons, "; ".join(reasons) or "every clause holds", tuple(clauses))


def relations_between(a: Box, b: Box, *, slack: float = 0.1) -> frozenset[str]:
    """The relations in which box `a` stands to box `b`: none, one or two of the four.

    The offset of the centres is shortened by `slack` of the summed sizes on each axis, then
    divided by its *unshortened* length: o' / |o|, beyond .5 on an axis names that direction.
    """
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    sizes = [a[i + 2] - a[i] + b[i + 2] - b[i] for i in (0, 1)]
    shortened = [
        math.copysign(max(abs(o) - slack * size, 0.0), o)
        for o, size in zip(offset, sizes, strict=True)
    ]
    if all(abs(k) < 1e-3 for k in shortened):
        return frozenset()
    dx, dy = (k / math.hypot(*offset) for k in shortened)
    holds = {LEFT: dx < -0.5, RIGHT: dx > 0.5, ABOVE: dy < -0.5, BELOW: dy > 0.5}
    return frozenset(name for name, true in holds.items() if true)


def _by_class(
    detections: Sequence[Detection], *, threshold: float, max_objects: int
) -> dict[str, list[Detection]]:
    """Detections above the threshold, most confident first, at most `max_objects` a class."""
    groups: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > threshold:
            groups.setdefault(detection.cls, []).append(detection)
    return {cls: group[:max_objects] for cls, group in groups.items()}


def _fault(
    clause: Mapping[str, Any],
    group: list[Detection],
    groups: list[list[Detection] | None],
    slack: float,
) -> str | None:
    """The reason why `group` does not fulfil the clause, or None where it does."""
    name, count = clause["class"], clause["count"]
    if len(group) < count:
        return f"expected at least {count} {name}, found {len(group)}"
    if "color" in clause:
        colours = [d.colour for d in group]
        if colours.count(clause["color"]) < count:
            actual = ", ".join(str(c) for c in colours)
            return f"expected {count} {clause['color']} {name}, found {actual}"
    if "position" in clause:
        relation, target = clause["position"]
        others = groups[target]
        if others is None:
            return f"expected {name} {relation} another object, which itself was not found"
        for one in group:
            for other in others:
                relations = relations_between(one.box, other.box, slack=slack)
                if relation not in relations:
                    actual = " and ".join(sorted(relations)) or "no clear relation to"
                    return f"expected {name} {relation} {other.cls}, found {actual} it"
    return None


def _clauses(metadata: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The clauses under a name; raises UserError unless each has a class and a count."""
    clauses = metadata.get(name, [])
    if not isinstance(clauses, list):
        raise UserError(f"{name} of the prompt's metadata is {clauses!r:.80}, not a list")
    for index, clause in enumerate(clauses):
        types = {"class": str, "count": int, "color": str, "position": list | tuple}
        if (
            not isinstance(clause, dict)
            or not {"class", "count"} <= clause.keys() <= _CLAUSE_KEYS
            or not all(isinstance(value, types[key]) for key, value in clause.items())
        ):
            raise UserError(
                f"clause {index} of the prompt's metadata is not GenEval's: {clause!r:.200}; "
                f"it needs class and count, and may have color and position"
            )
    return clauses


def _require_position(clause: Mapping[str, Any], index: int) -> None:
    """Raise UserError unless an include clause has the position of an earlier object, or none."""
    if "position" in clause:
        relation, target = (*clause["position"], None, None)[:2]
        known = len(clause["position"]) == 2 and relation in RELATIONS and type(target) is int
        if not known or not 0 <= target < index:
            raise UserError(
                f"clause {index} of the prompt's metadata has position {clause['position']!r}: "
                f"the relation must be one of {', '.join(RELATIONS)}, "
                f"the target an earlier clause"
            )
