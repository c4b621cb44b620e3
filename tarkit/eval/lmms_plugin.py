"""The entry point `lmms_eval.models`, by which lmms-eval finds the model named `tar`.

`tarkit eval lmms` runs it; `python -m lmms_eval --model tar --model_args model=mini` does as well.
"""

from __future__ import annotations

from typing import Any


def manifests() -> list[Any]:
    """lmms-eval's manifests of `tar`, as a chat model and as a simple one."""
    # Imported here, so that importing this module needs no lmms-eval.
    from lmms_eval.models.registry_v2 import ModelManifest

    place = "tarkit.eval.lmms_model"
    return [
        ModelManifest(
            model_id="tar",
            chat_class_path=f"{place}.TarChat",
            simple_class_path=f"{place}.TarSimple",
        )
    ]
