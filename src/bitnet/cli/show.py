"""`bitnet show`: what is known of a model in the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bitnet.cli.options import AsJson


def command(
    name: Annotated[str, typer.Argument(help="A model in the cache, or the path of one.")],
    as_json: AsJson = False,
) -> None:
    from bitnet.cli.text import printable

    found = card(here(name), name)
    if as_json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        if key != "files":
            print(f"{key.replace('_', ' '):<16} {printable(shown(key, value))}")
    for file in found["files"]:
        print(f"{'file':<16} {printable(file['name'])}  ({file['bytes']:,} bytes)")


def here(name: str) -> Path:
    """Where the model is; NotFoundError where that is not on this machine."""
    from bitnet import hub
    from bitnet.errors import NotFoundError
    from bitnet.hub import cache
    from bitnet.hub.locate import there

    if there(Path(name)):
        return Path(name)
    known = hub.parse(name)
    path = None if known is None else cache.find(known)
    if path is None:
        raise NotFoundError(
            f"{name} is not in {cache.folder()}, and no path either.",
            f"Fetch it: bitnet pull {known}" if known else "See `bitnet list` and `bitnet list --known`.",
        )
    return path


def card(path: Path, name: str) -> dict[str, Any]:
    import bitnet.formats
    from bitnet.cli.inspection import why_not
    from bitnet.cli.summary import described
    from bitnet.hub import cache
    from bitnet.hub.choice import File
    from bitnet.models.hyperparameters import read_config

    with bitnet.formats.open(path) as checkpoint:
        about = {**described(checkpoint), "runs": why_not(checkpoint)}
        if about["runs"] == "yes":
            about["context"] = read_config(checkpoint).max_position_embeddings
        about["chat_template"] = has_chat_template(checkpoint, path)
        about["license"] = licence(checkpoint, path)
    files = cache.files(path) if path.is_dir() else [File(path.name, path.stat().st_size)]
    listing = [{"name": file.name, "bytes": file.size} for file in files]
    return {"name": name, "path": str(path), "bytes": sum(file.size for file in files), **about, "files": listing}


def has_chat_template(checkpoint: Any, path: Path) -> bool:
    if checkpoint.kind == "gguf":
        return "tokenizer.chat_template" in checkpoint.metadata
    from bitnet.errors import BitNetError
    from bitnet.formats.huggingface import read_json

    if any((path / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        return bool(read_json(path / "tokenizer_config.json").get("chat_template"))
    except BitNetError:
        return False


def licence(checkpoint: Any, path: Path) -> str | None:
    """As the file says, or the card beside it."""
    said = checkpoint.metadata.get("general.license")
    if isinstance(said, str):
        return said
    card = (path if path.is_dir() else path.parent) / "README.md"
    if not card.is_file():
        return None
    from huggingface_hub import metadata_load

    try:
        found = (metadata_load(card) or {}).get("license")
    except Exception:  # a card is prose, and YAML by courtesy
        return None
    return found if isinstance(found, str) else None


def shown(key: str, value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key in ("bytes", "parameters", "context"):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
