"""`tarkit demo`: a page in the browser on which a person tries a model."""

from typing import Annotated

import typer

from tarkit.cli.command import command
from tarkit.cli.options import ModelOptions
from tarkit.cli.output import device_of

group = typer.Typer()


@command(group, "demo", recorded_in=None)
def demo(
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65535, help="Port on this computer; 0: any free one."),
    ] = 7860,
    *,
    model_options: ModelOptions,
) -> int:
    """Show a page in the browser to draw, ask, edit and look into pictures.

    It is served to this computer alone, until Ctrl-C. It needs pip install 'tarkit[demo]'.
    """
    from tarkit.demo import demo as verb

    verb.run(
        model=model_options.model,
        port=port,
        device=device_of(model_options.device),
        precision=model_options.precision,
    )
    return 0
