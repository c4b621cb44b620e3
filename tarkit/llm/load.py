"""Loads a language model by its name: on a server, or on this machine."""

from __future__ import annotations

from tarkit.llm.base import AssistantConfig, ProbabilityAssistant


def load(
    model: str,
    *,
    config: AssistantConfig,
    server: str | None = None,
    sees: bool = False,
    device: str = "cpu",
    precision: str = "float32",
) -> ProbabilityAssistant:
    """The model `model` of a server; without a server the folder or hub id, by transformers.

    `sees` is True for questions with pictures. Raises UserError when it cannot be loaded.
    """
    if server is not None:
        from tarkit.llm.server import ServerAssistant

        return ServerAssistant(model, server, config)
    from tarkit.llm.local import load_local

    return load_local(model, config=config, sees=sees, device=device, precision=precision)
