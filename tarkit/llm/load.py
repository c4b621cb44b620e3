"""The language model behind a name: of a server, or loaded here."""

from __future__ import annotations

from tarkit.llm.base import Assistant, AssistantConfig


def load(
    model: str,
    *,
    config: AssistantConfig,
    server: str | None = None,
    sees: bool = False,
    device: str = "cpu",
    precision: str = "float32",
) -> Assistant:
    """The model behind a name: of a server, or loaded here by transformers (a folder or hub id).

    `sees`: it is asked about pictures. Raises UserError where it cannot be had.
    """
    if server is not None:
        from tarkit.llm.server import ServerAssistant

        return ServerAssistant(model, server, config)
    from tarkit.llm.local import load_local

    return load_local(model, config=config, sees=sees, device=device, precision=precision)
