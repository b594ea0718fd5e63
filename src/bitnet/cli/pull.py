"""`bitnet pull`: fetch a model by its name."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bitnet.cli.options import AsJson
from bitnet.errors import ParameterError


def command(
    name: Annotated[
        str, typer.Argument(help="org/name, org/name:QUANT, or a short name out of `bitnet list --known`.")
    ],
    as_json: AsJson = False,
) -> None:
    from bitnet import hub

    known = hub.parse(name)
    if known is None:
        raise ParameterError(
            f"{name} is no name of a model on a hub.", "Write org/name, or a short name: `bitnet list --known`."
        )
    path = hub.pull(known)
    print(json.dumps({"name": str(known), "path": str(path)}) if as_json else path)
