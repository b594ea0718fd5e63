"""`bitnet inspect`: show what a model file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bitnet.cli.options import AsJson


def command(
    file: Annotated[Path, typer.Argument(help="GGUF file, Hugging Face folder, or a name: org/name:QUANT.")],
    tensors: Annotated[bool, typer.Option("--tensors/--no-tensors", help="List every tensor.")] = True,
    histogram: Annotated[
        bool, typer.Option("--histogram", help="Count -1, 0 and +1 in the ternary tensors; reads all of them.")
    ] = False,
    sha256: Annotated[bool, typer.Option("--sha256", help="Hash the files.")] = False,
    as_json: AsJson = False,
) -> None:
    import bitnet.formats
    from bitnet import hub
    from bitnet.cli.inspection import inspect

    file = hub.locate(file)
    with bitnet.formats.open(file) as checkpoint:
        found = inspect(checkpoint, file, histogram, sha256)
    if as_json:
        print(json.dumps(found if tensors else {**found, "tensors": []}))
        return
    from bitnet.cli.inspection_tables import show

    show(found, tensors)
