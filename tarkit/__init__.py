"""tarkit: the whole chain of the Tar paper, in which pictures are words of a language model."""

from typing import Any

__all__ = ["Tar", "load_ar_dtok", "load_ta_tok", "load_vqvae"]


def __getattr__(name: str) -> Any:
    """Imports torch only when one of the names that need it is used."""
    if name == "Tar":
        from tarkit.inference.tar_model import Tar

        return Tar
    if name in __all__:
        from tarkit.checkpoints import load

        return getattr(load, name)
    raise AttributeError(f"module 'tarkit' has no attribute {name!r}")
