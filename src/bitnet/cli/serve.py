"""`bitnet serve`: the HTTP server."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from bitnet.cli.options import option
from bitnet.cli.served_models import openers, taken, with_options
from bitnet.cli.text import note
from bitnet.errors import ParameterError
from bitnet.server.settings import Settings


def command(
    api_key_file: Annotated[Path | None, typer.Option("--api-key-file", help="Read API keys, one a line.")] = None,
    **given: Any,
) -> None:
    try:
        from bitnet.server.app import create_app
        from bitnet.server.listen import run
        from bitnet.server.registry import Registry
    except ImportError as missing:
        raise ParameterError(f"The server needs {missing.name}.", "pip install 'bitnet[serve]'") from missing

    engine = taken(given)
    settings = make_settings(given, api_key_file)
    models = openers(**engine)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    run(create_app(Registry(models, settings), settings), settings, lambda url: note(f"Listening on {url}"))


def make_settings(given: dict[str, Any], api_key_file: Path | None) -> Settings:
    keys = list(given.pop("api_key"))
    if api_key_file is not None:
        keys += [line.strip() for line in api_key_file.read_text("utf-8").splitlines() if line.strip()]
        if not keys:
            raise ParameterError(f"{api_key_file} has no API key.", "Write one a line.")
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return Settings(api_key=tuple(keys), **{**given, **lists})


TYPES = get_type_hints(Settings)
FIELDS = Settings.__dataclass_fields__.values()
command = with_options(command, *(option(field, TYPES[field.name]) for field in FIELDS))
