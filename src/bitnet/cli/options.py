"""Options that several commands share, and those that are read off SamplingParams.

A command writes `**sampling: Any` where it wants the sampling options; `complete` puts them in its place.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from bitnet.cli.failures import forget_output

Model = Annotated[
    Path | None,
    typer.Option(
        "--model", "-m", help="GGUF file, Hugging Face folder, or a name: org/name:QUANT; absent: the built-in model."
    ),
]
Threads = Annotated[int, typer.Option("--threads", "-t", min=0, max=1024, help="Processors to use; 0: all allowed.")]
CtxSize = Annotated[int, typer.Option("--ctx-size", "-c", min=0, help="Tokens of context; 0: the model's own.")]
KV = Annotated[str, typer.Option("--kv", help='Type of the cached keys and values, "f16", "f32" or "int8".')]
Head = Annotated[
    str,
    typer.Option(
        "--head", help='"screen" finds the likeliest tokens in a copy of the output head, exactly; "full"; "auto".'
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        "--device",
        help='"cpu", "cuda" (an NVIDIA GPU), or "reference" for the slow definition in NumPy.',
    ),
]
Weights = Annotated[
    str, typer.Option("--weights", help='Keep ternary weights at "2bit" or "1.6bit"; "auto": what is faster here.')
]
Kernel = Annotated[
    str, typer.Option("--kernel", help='"i2_s" multiplies, "tl1" and "tl2" look up, with the same results; "auto".')
]
Force = Annotated[bool, typer.Option("--force", help="Load what seems too large for the memory; replace files.")]
Profile = Annotated[
    bool, typer.Option("--profile/--no-profile", help="Use what `bitnet tune` found for this model, where it was run.")
]
AsJson = Annotated[bool, typer.Option("--json", envvar="BITNET_JSON", help="Print JSON.")]
Stats = Annotated[bool, typer.Option("--stats/--no-stats", help="Print the statistics line on stderr.")]
Offline = Annotated[bool, typer.Option("--offline", help="Use what is in the cache; fetch nothing.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="lookup|MODEL",
        help="Guess at tokens, from repetitions in the text or with a smaller model; the answer stays the same.",
    ),
]
DraftTokens = Annotated[int, typer.Option("--draft-tokens", min=1, help="Guesses in a step at most.")]
CtxOverflow = Annotated[
    str,
    typer.Option(
        "--ctx-overflow",
        help='A full context: "error" ends the answer; "slide" lets go of what is between the first and latest tokens.',
    ),
]
CtxKeep = Annotated[int, typer.Option("--ctx-keep", min=0, help="First tokens that stay when the context slides.")]

# Spellings beside the field's own name.
SPELLINGS = {
    "max_tokens": ("-n",),
    "temperature": ("--temp",),
    "repetition_penalty": ("--repeat-penalty",),
    "seed": ("-s",),
}
KINDS: dict[Any, str] = {str: "TEXT", Path: "PATH", int: "N", float: "X"}  # what --help calls a value
NOT_HERE = ("logprobs", "logit_bias")  # fields that only the library and the server use


def complete(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as typer wants it: the sampling options in place of `**sampling`, --offline and --debug."""
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        wanted = sampling_options() if parameter.kind is inspect.Parameter.VAR_KEYWORD else [parameter]
        parameters += [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in wanted]
    # main() looks for --debug itself, as it must know of it even where the arguments cannot be parsed.
    for name, annotation in (("offline", Offline), ("debug", Debug)):
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation))
    name_values(parameters)

    def call(offline: bool, debug: bool, **values: Any) -> None:
        if offline:
            os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported
        try:
            command(**values)
        except BrokenPipeError:
            raise typer.Exit(forget_output()) from None

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {}
    return call


def name_values(parameters: Iterable[inspect.Parameter]) -> None:
    """What --help calls the values: arguments by their names, those of options by their kind."""
    for parameter in parameters:
        kind, info = get_args(parameter.annotation)[:2]
        if info.metavar is None:
            kinds = (kind, *get_args(kind))
            named = next((word for known, word in KINDS.items() if known in kinds), None)
            info.metavar = parameter.name.upper() if isinstance(info, typer.models.ArgumentInfo) else named


def read_lines(option: Any, context: Any) -> list[str] | None:
    """The environment variable of an option that may be repeated has a value on each line."""
    text = option.resolve_envvar_value(context)
    return None if text is None else [line for line in text.splitlines() if line]


def sampling_options() -> list[inspect.Parameter]:
    """One option for each field of SamplingParams: its name, help, bounds and default are the field's."""
    from bitnet.engine import SamplingParams

    types = get_type_hints(SamplingParams)
    fields = SamplingParams.__dataclass_fields__.values()
    return [option(field, types[field.name]) for field in fields if field.name not in NOT_HERE]


def option(field: Any, kind: Any) -> inspect.Parameter:
    several, help = kind == tuple[str, ...], field.metadata["help"]
    info = typer.Option(
        f"--{field.name.replace('_', '-')}",
        *SPELLINGS.get(field.name, ()),
        help=f"{help[0].upper()}{help[1:]}{'; may be repeated; in the environment, one a line' if several else ''}.",
        min=bound(field.metadata["low"], kind),
        max=bound(field.metadata["high"], kind),
    )
    annotation: Any = Annotated[list[str] if several else kind, info]
    default = list(field.default) if several else field.default
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def bound(value: float, kind: Any) -> float | None:
    """A bound as typer wants it: None where infinite, an int for whole numbers."""
    if math.isinf(value):
        return None
    return value if kind is float else int(value)
