"""`bitnet export`: a trained model as a file that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitnet.cli.train import training
from bitnet.errors import ParameterError


def command(
    run: Annotated[Path, typer.Argument(help="Folder of a run of bitnet train.")],
    gguf: Annotated[Path | None, typer.Option("--gguf", help="GGUF file to write.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Hugging Face folder with packed weights to write.")
    ] = None,
    file_type: Annotated[
        str | None,
        typer.Option(
            "--type", help="Type of the ternary weights in the GGUF file; absent: one that fits their scales."
        ),
    ] = None,
    embeddings: Annotated[
        str, typer.Option("--embeddings", help="Type of embedding and output head: f16, f32, bf16; GGUF: q8_0, q6_k.")
    ] = "f16",
) -> None:
    if gguf is None and folder is None:
        raise ParameterError("Nothing to write.", "Give --gguf FILE, --folder DIR or both.")
    for path in (gguf, folder):
        if path is not None and path.exists():
            raise ParameterError(f"{path} exists.", "Name another one.")
    notes = training("export").export(
        run, gguf=gguf, folder=folder, weights=file_type and file_type.lower(), embeddings=embeddings.lower()
    )
    for path in (gguf, folder):
        if path is not None:
            print(path)
    print("\n".join(notes) or "Nothing was rounded: it is the trained model.")
