"""`bitnet bench serve`: put load on a server that speaks as OpenAI's does, and measure what its users feel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

from bitnet.cli.bench import split, whole
from bitnet.cli.loading import StatusLine
from bitnet.errors import ParameterError

if TYPE_CHECKING:
    from bitnet.bench.serving.load import Load
    from bitnet.bench.serving.summary import Summary

Words = list[str]
RATES, BOUNDS, NONE = ["inf"], ["0"], list[str]()
LENGTHS = '128, 64-256, "normal:128,32", "lognormal:128,0.8" or "exponential:128".'


def command(
    base_url: Annotated[str, typer.Option("--base-url", help="Where the server is.")] = "http://127.0.0.1:8080",
    served_model: Annotated[
        str, typer.Option("--served-model", help="The model, as the server calls it; absent: its first one.")
    ] = "",
    api_key: Annotated[str, typer.Option("--api-key", help="Sent as `Authorization: Bearer KEY`.")] = "",
    endpoint: Annotated[str, typer.Option("--endpoint", help='"completions" or "chat".')] = "completions",
    num_prompts: Annotated[int, typer.Option("--num-prompts", "-n", min=1, help="Requests in all.")] = 100,
    request_rate: Annotated[
        Words, typer.Option("--request-rate", "-r", help='Requests a second, such as "1,2,4"; inf: all at once.')
    ] = RATES,
    max_concurrency: Annotated[
        Words,
        typer.Option("--max-concurrency", "-c", help='Requests under way at most, such as "1,16"; 0: no bound.'),
    ] = BOUNDS,
    burstiness: Annotated[
        float, typer.Option("--burstiness", help="Of arrivals: 1 as chance has it (Poisson), inf at a constant rate.")
    ] = 1.0,
    input_len: Annotated[str, typer.Option("--input-len", "-p", help=f"Tokens of prompts: {LENGTHS}")] = "128",
    output_len: Annotated[str, typer.Option("--output-len", help="Tokens of answers, in the same way.")] = "64",
    prefix_len: Annotated[
        int, typer.Option("--prefix-len", min=0, help="Further tokens before them that prompts share.")
    ] = 0,
    num_prefixes: Annotated[int, typer.Option("--num-prefixes", min=1, help="How many such beginnings.")] = 1,
    slo: Annotated[
        Words, typer.Option("--slo", help='Objectives in ms: "ttft=500,tpot=50,itl=200,e2el=9000"; tells goodput.')
    ] = NONE,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos/--no-ignore-eos", help="Have answers of full length, where the server can.")
    ] = True,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="Of the answers.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0, help="Draws the same load again.")] = 0,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds of silence until one fails.")] = 600.0,
    output: Annotated[str, typer.Option("--output", "-o", help="md, json or jsonl.")] = "md",
    detailed: Annotated[bool, typer.Option("--detailed", help="With JSON: also what each request took.")] = False,
) -> None:
    try:
        import httpx  # noqa: F401
    except ImportError as missing:
        raise ParameterError(f"This needs {missing.name}.", "pip install 'bitnet[serve]'") from missing
    from bitnet.bench.serving.load import Load
    from bitnet.bench.serving.report import FORMATS
    from bitnet.bench.serving.shapes import Lengths

    if output not in FORMATS:
        raise ParameterError(f"--output is {output!r}.", f"Known: {', '.join(FORMATS)}.")
    loads = [
        Load(
            base_url=base_url,
            api_key=api_key,
            model=served_model,
            endpoint=endpoint,
            num_prompts=num_prompts,
            request_rate=rate,
            max_concurrency=bound,
            burstiness=burstiness,
            input_len=Lengths.parse(input_len),
            output_len=Lengths.parse(output_len),
            prefix_len=prefix_len,
            num_prefixes=num_prefixes,
            slo=objectives(split(slo)),
            options={"temperature": temperature, **({"ignore_eos": True} if ignore_eos else {})},
            seed=seed,
            timeout=timeout,
        )
        for rate, bound in product(numbers(request_rate), whole(max_concurrency))
    ]
    known: list[Summary] = []
    for line in FORMATS[output](kept(measured(loads), known), detailed):
        print(line, flush=True)
    if any(summary.fields["failed"] for summary in known):
        raise typer.Exit(1)


def measured(loads: list[Load]) -> Iterator[Summary]:
    from bitnet.bench.serving.load import run

    status = StatusLine()
    for load in loads:
        try:
            found = run(load, status.show)
        finally:
            status.clear()
        yield found


def kept(summaries: Iterator[Summary], known: list[Summary]) -> Iterator[Summary]:
    for summary in summaries:
        known.append(summary)
        yield summary


def numbers(given: Words) -> list[float]:
    try:
        return [float(word) for word in split(given)]
    except ValueError:
        raise ParameterError(f"{','.join(given)} is no list of numbers.", "Write them as 1,2.5,inf.") from None


def objectives(given: Words) -> dict[str, float]:
    found = {}
    for word in given:
        name, _, bound = word.replace(":", "=").partition("=")
        try:
            found[name.strip().lower()] = float(bound)
        except ValueError:
            found[name] = math.nan  # refused with the names that there are
    return found
