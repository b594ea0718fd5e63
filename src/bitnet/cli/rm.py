"""`bitnet rm`: delete a model from the cache."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from bitnet.cli.options import AsJson
from bitnet.errors import NotFoundError, ParameterError


def command(
    name: Annotated[str, typer.Argument(help="org/name for all of a repository, org/name:QUANT for one file.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    from bitnet import hub
    from bitnet.hub import cache, removal
    from bitnet.hub.choice import amount

    known = hub.parse(name)
    found = None if known is None else removal.plan(known)
    if known is None or found is None:
        raise NotFoundError(f"{name} is not in {cache.folder()}.", "See `bitnet list`.")
    if not yes:
        if not sys.stdin.isatty():
            raise ParameterError(f"Deleting {known} wants a yes.", f"bitnet rm {name} --yes")
        typer.confirm(f"Delete {known} ({amount(found.nbytes)})?", abort=True, err=True)
    found.execute()
    freed = {"name": str(known), "freed": found.nbytes}
    print(json.dumps(freed) if as_json else f"{amount(found.nbytes)} are free.")
