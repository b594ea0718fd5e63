"""What gpu.py measured, as Markdown for docs/gpu.md."""

from __future__ import annotations

from typing import Any

Found = dict[str, Any]
UNKNOWN = "not measured"


def value_of(found: Found, *path: str) -> float | None:
    at: Any = found
    for name in path:
        at = at.get(name) if isinstance(at, dict) else None
    return float(at) if isinstance(at, (int, float)) else None


def number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}" if abs(value) >= 1 else f"{value:.2g}"


def share(value: float | None, whole: float | None) -> str:
    return f"{value / whole:.0%}" if value is not None and whole else "?"


def peak(found: Found) -> float | None:
    """The card's int8 products, TOP/s: what its clock allows."""
    return value_of(found, "limits", "int8 peak by the clock, TOP/s")


def bar(found: Found) -> list[tuple[str, str, str, str]]:
    """What is asked for: (what, measured, asked for, how near to the card's limits)."""
    copy = value_of(found, "limits", "copy, GB/s")

    def decoded(section: str, case: str, goal: str) -> tuple[str, str, str, str]:
        speed, read = (value_of(found, section, case, name) for name in ("tok/s on the device", "GB/s"))
        host = value_of(found, section, case, "tok/s with the host")
        if speed is None or read is None or host is None:
            return case, UNKNOWN, goal, ""
        measured = f"{number(speed)} tok/s ({number(host)} with the host)"
        return f"decode, {case}", measured, goal, f"{number(read)} GB/s, {share(read, copy)} of a copy"

    def against(peer: str, goal: str) -> tuple[str, str, str, str]:
        ours = value_of(found, "decode", "batch 1 context 512", "tok/s with the host")
        theirs = value_of(found, "peers", peer, "tok/s")
        measured = UNKNOWN if ours is None or not theirs else f"{ours / theirs:.1f} times"
        return f"batch 1, against {peer}", measured, goal, "" if theirs is None else f"{number(theirs)} tok/s"

    speed = value_of(found, "prompts", "2048 tokens", "tok/s")
    sums = value_of(found, "prompts", "2048 tokens", "int8 TOP/s")
    near = "" if sums is None else f"{number(sums)} TOP/s, {share(sums, peak(found))} of the int8 peak"
    return [
        decoded("decode", "batch 1 context 512", "2,100 tok/s"),
        decoded("batches", "batch 64 context 512", "50,000 tok/s"),
        decoded("sampled", "batch 64 context 512, drawn on the card", "as greedy"),
        ("prompt of 2048 tokens", UNKNOWN if speed is None else f"{number(speed)} tok/s", "150,000 tok/s", near),
        against("transformers, BitNet", "5 times"),
        against("torch, dense bf16 in a CUDA graph", "ahead"),
        against("transformers, dense bf16, static cache and graphs", "ahead"),
    ]


def markdown(found: Found) -> str:
    about = found["environment"]
    versions = ", ".join(f"{name} {about[name]}" for name in ("cuda-bindings", "triton", "torch") if about.get(name))
    checks = list(found.get("check", {}).values())
    right = sum(verdict.startswith("as the CPU") for verdict in checks)
    card = f"{about['date']}, {about['gpu']} (compute capability {about['compute capability']}; {versions})"
    lines = [f"{card}; {right} of {len(checks)} checks right", ""]
    lines += table(("", "measured", "the bar (H200)", "of the card"), bar(found))
    for name in ("limits", "kernels", "decode", "batches", "sampled", "prompts", "peers"):
        if name in found:
            lines += ["", *of_section(name, found)]
    return "\n".join(lines) + "\n"


def of_section(name: str, found: Found) -> list[str]:
    """A row for each result; one that failed, or was left out, says so."""
    results = {key: value for key, value in found[name].items() if key != "seconds"}
    units = list(dict.fromkeys(unit for value in results.values() if isinstance(value, dict) for unit in value))
    shares = [unit for unit in units if unit.startswith(("GB/s", "int8 TOP/s"))]
    head = (name, *units, *("% of a copy" if unit.startswith("GB/s") else "% of int8 peak" for unit in shares))
    rows = []
    for key, value in results.items():
        if not isinstance(value, dict):
            text = ", ".join(map(str, value)) if isinstance(value, list) else number(value)
            rows.append((key, text, *[""] * (len(head) - 2)))
            continue
        wholes = [value_of(found, "limits", "copy, GB/s") if unit[0] == "G" else peak(found) for unit in shares]
        parts = [share(value_of(value, unit), whole) for unit, whole in zip(shares, wholes, strict=True)]
        rows.append((key, *(number(value.get(unit, "")) for unit in units), *parts))
    return table(head if len(head) > 1 else (name, ""), rows)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    line = "| {} |".format
    return [line(" | ".join(head)), "|" + "---|" * len(head), *(line(" | ".join(row)) for row in rows)]
