"""`bitnet plan`: how much memory a model will take, before it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet.cli.options import KV, AsJson, CtxSize, Head, Kernel, Weights
from bitnet.errors import ResourceError

if TYPE_CHECKING:
    from bitnet.engine import EngineConfig
    from bitnet.formats import Checkpoint

GIB, MIB = 2**30, 2**20


def command(
    model: Annotated[
        str | None, typer.Argument(help="GGUF file, Hugging Face folder, or a name that is in the cache.")
    ] = None,
    synthetic: Annotated[str, typer.Option("--synthetic", help='A model of this shape, such as "2B-4T".')] = "",
    ctx_size: CtxSize = 4096,
    sequences: Annotated[
        int, typer.Option("--parallel", "-np", "--sequences", min=1, help="Sequences at once, each with a context.")
    ] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Tokens in a step at most.")] = 512,
    kv: KV = "f16",
    head: Head = "auto",
    weights: Weights = "auto",
    kernel: Kernel = "auto",
    draft: Annotated[str, typer.Option("--draft", help="A smaller model that drafts, in memory beside it.")] = "",
    force: Annotated[bool, typer.Option("--force", help="End with 0 even if it does not fit.")] = False,
    as_json: AsJson = False,
) -> None:
    from bitnet.engine import EngineConfig

    engine = EngineConfig(ctx_size=ctx_size, max_sequences=sequences, chunk=batch_size, kv=kv, head=head)
    with opened(model, synthetic) as checkpoint:
        found = planned(checkpoint, draft, engine, weights, kernel)
    if as_json:
        print(json.dumps(found))
    else:
        for name, text in lines(found):
            print(f"{name:<28} {text:>14}")
    if not found["fits"] and not force:
        raise ResourceError(
            f"{found['path']} needs {found['total'] / GIB:.2f} GiB of memory; {found['available'] / GIB:.2f} GiB are "
            "free.",
            advice(found),
        )


def opened(model: str | None, synthetic: str) -> Checkpoint:
    import bitnet.formats
    from bitnet.api import builtin_model
    from bitnet.cli.show import here
    from bitnet.models.synthetic import SyntheticCheckpoint

    if synthetic:
        return SyntheticCheckpoint(synthetic)
    return bitnet.formats.open(builtin_model() if model is None else here(model))


def planned(checkpoint: Checkpoint, draft: str, engine: EngineConfig, weights: str, kernel: str) -> dict[str, Any]:
    from bitnet.backends.cpu import CPU
    from bitnet.backends.packing import asked
    from bitnet.engine.footprint import footprint
    from bitnet.models.hyperparameters import read_config
    from bitnet.models.memory import available_bytes

    ops = CPU(asked(weights, kernel))
    main = footprint(checkpoint, ops, engine)
    second = None
    if draft not in ("", "lookup"):
        with opened(draft, "") as smaller:
            second = footprint(smaller, ops, engine)
    available = available_bytes()
    beside = second.total if second else 0
    longest = read_config(checkpoint).max_position_embeddings
    return {
        "path": str(checkpoint.path),
        "architecture": checkpoint.architecture,
        **main.to_json(),
        "kv": engine.kv,
        "draft": second.to_json() if second else None,
        "total": main.total + beside,
        "available": available,
        "fits": main.total + beside <= available,
        "largest_context": main.largest_context(available - beside, longest),
        "longest_context": longest,
    }


def lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from parts(found)
    if found["draft"]:
        yield "draft model", amount(found["draft"]["total"])
    yield "total", amount(found["total"])
    yield "available", amount(found["available"])
    yield "fits", "yes" if found["fits"] else "no"
    yield "largest context that fits", f"{found['largest_context']:,} of {found['longest_context']:,}"


def parts(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, nbytes in found["weights"].items():
        yield f"weights, {name}" + (f" ({found['packing']})" if name == "ternary" else ""), amount(nbytes)
    times = "" if found["sequences"] == 1 else f"{found['sequences']} x "
    yield f"cache, {times}{found['context']} tokens", amount(found["cache"])
    yield "cache, per 1000 tokens", amount(1000 * found["cache_per_token"])
    for name, nbytes in found["step"].items():
        yield f"step, {name}", amount(nbytes)


def amount(nbytes: int) -> str:
    return f"{nbytes / MIB:,.2f} MiB"


def advice(found: dict[str, Any]) -> str:
    if found["largest_context"]:
        return f"A context of {found['largest_context']} tokens fits: --ctx-size {found['largest_context']}."
    return "Take a smaller model, --weights 1.6bit or --head full."
