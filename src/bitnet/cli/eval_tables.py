"""What `bitnet eval` found, for people and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitnet.evaluate.choice import Accuracy
from bitnet.evaluate.writing import Closeness


def to_json(model: Path, found: dict[Path, Accuracy | Closeness], results: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"model": str(model), "tasks": [of_file(file, each) for file, each in found.items()]}
    if results is not None:
        values["lm_eval"] = {name: results[name] for name in ("results", "n-shot", "n-samples", "versions")}
    return values


def of_file(file: Path, found: Accuracy | Closeness) -> dict[str, Any]:
    """With the names that lm-evaluation-harness gives to its results."""
    if isinstance(found, Accuracy):
        shares = {"acc": found.acc, "acc_norm": found.acc_norm}
        errors = {f"{name}_stderr": found.error(share) for name, share in shares.items()}
        values: dict[str, Any] = {"n": found.questions, **shares, **errors, "chance": found.chance}
    else:
        values = {"n": len(found.written), "bleu": found.bleu, "bleu_signature": found.bleu_signature}
        values |= {"chrf": found.chrf, "chrf_signature": found.chrf_signature, "written": list(found.written)}
    return {"task": file.stem, "file": str(file), **values}


def lines(found: dict[Path, Accuracy | Closeness], results: Any) -> list[str]:
    """A table for each kind of result."""
    shown = []
    chosen = [(file.stem, each) for file, each in found.items() if isinstance(each, Accuracy)]
    written = [(file.stem, each) for file, each in found.items() if not isinstance(each, Accuracy)]
    if chosen:
        shown.append(table([("task", "questions", "acc", "acc_norm", "chance"), *map(chosen_row, chosen)]))
    if written:
        shown.append(table([("task", "prompts", "BLEU", "chrF"), *map(written_row, written)]))
        signatures = ((f"BLEU: {each.bleu_signature}", f"chrF: {each.chrf_signature}") for _, each in written)
        shown[-1] += "\n" + "\n".join(dict.fromkeys(line for pair in signatures for line in pair))
    if results is not None:
        from lm_eval.utils import make_table

        kinds = [kind for kind in ("results", "groups") if results.get(kind)]
        shown += [make_table(results, kind).strip() for kind in kinds]
    return "\n\n".join(shown).splitlines()


def chosen_row(named: tuple[str, Accuracy]) -> tuple[str, ...]:
    name, each = named
    shares = (f"{100 * share:.1f} ± {100 * each.error(share):.1f} %" for share in (each.acc, each.acc_norm))
    return (name, f"{each.questions:,}", *shares, f"{100 * each.chance:.1f} %")


def written_row(named: tuple[str, Closeness]) -> tuple[str, ...]:
    name, each = named
    return (name, f"{len(each.written):,}", f"{each.bleu:.2f}", f"{each.chrf:.2f}")


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
