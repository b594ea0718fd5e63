"""`bitnet train`: train a model as a YAML file says."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from bitnet.errors import ParameterError


def command(
    config: Annotated[Path, typer.Argument(help="The YAML file; see examples/.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Another value than the file's: training.steps=100.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run; a killed run goes on from it.")] = None,
) -> None:
    given = [*(settings or []), *([f"out={out}"] if out else [])]
    if not config.is_file():
        raise ParameterError(f"There is no file {config}.")
    read, launch = training("config"), training("launch")
    made = read.read(config, given)
    if not launch.run(made):
        typer.echo(f"Stopped; the same command goes on from {made.out}.", err=True)
        raise typer.Exit(130)
    typer.echo(f"Trained: {made.out}. Write a model file with: bitnet export {made.out} --gguf model.gguf", err=True)


def training(name: str) -> Any:
    """A module of train/, which needs torch; named here, so that no other command can come to need it."""
    try:
        return import_module(f"bitnet.train.{name}")
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "yaml"):
            raise
        raise ParameterError(f"Training needs {error.name}.", "pip install bitnet[train]") from error
