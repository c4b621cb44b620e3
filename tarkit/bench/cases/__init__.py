"""The pieces of work that are measured: a file for each subject of `tarkit bench`.

Such a file has `cases(settings)`, which yields `tarkit.bench.case.Case` objects. A new subject is a
file here and its name below.
"""

from enum import StrEnum


class Subject(StrEnum):
    """What can be measured, by the name of its module."""

    ENCODE = "encode"
    CONDITION = "condition"
    DECODE = "decode"
    SAMPLE = "sample"
    DRAW = "draw"
    TRAIN = "train"
    DATA = "data"
    START = "start"
