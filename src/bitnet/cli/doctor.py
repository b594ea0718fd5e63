"""`bitnet doctor`: say what the machine is, what was chosen for it, and whether it computes rightly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bitnet.cli.loading import opened
from bitnet.cli.options import AsJson, Model
from bitnet.errors import HubError, ModelError


def command(
    model: Model = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The port that a server would use.")] = 8080,
    bandwidth: Annotated[
        bool, typer.Option("--bandwidth/--no-bandwidth", help="Measure how fast memory is read.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    from bitnet.machine.doctor import examine

    found = examine(port, bandwidth)
    found["model"], code = model_here(model, found["machine"]["available"])
    if as_json:
        print(json.dumps(found))
    else:
        from bitnet.cli.doctor_tables import show

        show(found)
    raise typer.Exit(code if found["self_test"]["passed"] else 1)


def model_here(model: Path | None, available: int | None) -> tuple[dict[str, Any], int]:
    """What there is to say of the model, and the exit code: a file that cannot be opened keeps nothing else back."""
    from bitnet.cli.prospects import prospects

    try:
        with opened(model, "") as checkpoint:
            return prospects(checkpoint, available), 0
    except (ModelError, HubError) as error:
        return {"path": str(model), "error": str(error)}, error.exit_code
