"""`bitnet convert`: write a model as another file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet.cli.loading import Progress
from bitnet.cli.options import AsJson, Backend

if TYPE_CHECKING:
    from bitnet.convert import Conversion

TYPE = "Type of the ternary weights in a GGUF file: i2_s, tq2_0, tq1_0, q2_0 ...; absent: as they are, or i2_s."
TABLE = "f32, f16, bf16, q8_0, q6_k or q4_k; absent: as it is."


def command(
    source: Annotated[Path, typer.Argument(help="GGUF file or Hugging Face folder.")],
    out: Annotated[Path, typer.Argument(help="FILE.gguf, or a folder for packed safetensors.")],
    file_type: Annotated[str | None, typer.Option("--type", help=TYPE)] = None,
    head: Annotated[
        str | None, typer.Option("--head", envvar="BITNET_FILE_HEAD", help=f"Type of the output head: {TABLE}")
    ] = None,
    embeddings: Annotated[str | None, typer.Option("--embeddings", help=f"Type of the embedding: {TABLE}")] = None,
    to: Annotated[str | None, typer.Option("--to", help='"gguf" or "safetensors"; absent: by the name of OUT.')] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Run both models, compare them and write OUT.verify.md; exit 1 if they differ."),
    ] = False,
    backend: Backend = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.")] = False,
    as_json: AsJson = False,
) -> None:
    from bitnet.convert import convert

    progress = Progress("converting")
    kinds: Any = {"weights": file_type, "embeddings": embeddings, "head": head}
    lower = {name: value and value.lower() for name, value in kinds.items()}
    try:
        done = convert(source, out, to=to, force=force, progress=progress, **lower)
    finally:
        progress.clear()
    found = {**asdict(done), "source": str(source), "target": str(out), "lossless": done.lossless}
    passed, report = compare(done, backend, found) if verify else (True, "")
    if as_json:
        print(json.dumps(found))
    else:
        print("\n".join(summary(done)))
        print(report, end="")
    if not passed:
        raise typer.Exit(1)


def compare(done: Conversion, backend: str, found: dict[str, Any]) -> tuple[bool, str]:
    """Whether source and result agree, and the report on it, which is also written beside the result."""
    from bitnet.convert.verify import verify

    loading = Progress("verifying")
    try:
        result = verify(done.source, done.target, backend=backend, progress=loading)
    finally:
        loading.clear()
    passed, text = result.passed(done.lossless), result.markdown(done.source, done.target, done.notes, done.lossless)
    done.target.with_name(f"{done.target.name}.verify.md").write_text(text, "utf-8")
    found["verify"] = {**asdict(result), "passed": passed}
    return passed, f"\n{text}"


def summary(done: Conversion) -> list[str]:
    types = ", ".join(f"{count} {dtype}" for dtype, count in sorted(done.types.items(), key=lambda each: -each[1]))
    rate = done.nbytes / max(done.seconds, 1e-9) / 1e6
    lines = [
        f"{done.target}  {done.nbytes:,} bytes  {done.seconds:.1f} s  {rate:.0f} MB/s written",
        f"tensors: {types}",
    ]
    return lines + (list(done.notes) or ["Nothing was rounded: it is the same model."])
