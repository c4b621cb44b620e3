"""The bias of attention's keys, which attention ignores: all scores of a query grow by the same.

Its true gradient is zero. What is computed is rounding, of which Adam makes whole steps, so that
two trainings of the same rows end with other biases.
"""

from __future__ import annotations

from torch import Tensor


def without_gradient(bias: Tensor) -> Tensor:
    """The same values, whose gradient is exactly zero.

    The parameter stays one that is trained: optimizers and checkpoints of published and of older
    models have it.
    """
    return bias.detach() + 0 * bias
