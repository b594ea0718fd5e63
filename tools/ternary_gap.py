"""How much a ternary model loses to a float one, and how much of that distillation wins back: a study to reproduce.

python tools/ternary_gap.py --text stories.txt more.txt --out runs/gap --steps 2000 --seeds 0 1 2
python tools/ternary_gap.py --text stories.txt more.txt --out runs/gap --steps 2000 --report

Arms, each with every seed, on T tokens or on 2 T:

float      T    from nothing, nothing rounded (Llama)
float2     2 T  the same
ternary    T    from nothing, ternary (Llama with sub-norms, which is BitNet)
ternary2   2 T  the same
continual  2 T  the float model of T of the same seed, trained on as a ternary one
distilled  2 T  the same with sub-norms put in, a quarter of T on plain text, then with that float model as the teacher

Equal tokens means two things here, and the report has both, paired by seed, with 95 % intervals. All that a model has
cost: continual and distilled took 2 T with their float model, so they are compared with float2, as ternary2 is. Or the
float model is there already and only what follows counts: they took T more, and are compared with it, as ternary is.

Every run is a folder of `bitnet train`: killed, the study goes on where it was. Documents of the texts stand between
lines of <|endoftext|>, or a file is one; every document that is there twice counts once, and some are held out.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

SHAPE = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True,
}  # fmt: skip
FLOAT = {"mixed": {".*": 16}}
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # 97.5 %, by the number of seeds
# By which float models the loss of an arm is measured.
COMPARED = {
    "ternary": ("float",), "ternary2": ("float2",), "continual": ("float", "float2"), "distilled": ("float", "float2"),
}  # fmt: skip
TOKENS = {"float": "T", "float2": "2 T", "ternary": "T", "ternary2": "2 T", "continual": "T + T", "distilled": "T + T"}
TRAIN, HELD_OUT, SEPARATOR = "train.txt", "held_out.txt", "<|endoftext|>"
ARMS = ("float", "float2", "ternary", "ternary2", "continual", "distilled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", type=Path, nargs="+", required=True, help="text files")
    add("--held-out", type=int, default=300, help="documents")
    add("--out", type=Path, required=True)
    add("--steps", type=int, default=2000)
    add("--rows", type=int, default=16)
    add("--length", type=int, default=256)
    add("--hidden", type=int, default=256)
    add("--layers", type=int, default=4)
    add("--vocabulary", type=int, default=2048)
    add("--seeds", type=int, nargs="+", default=(0, 1, 2))
    add("--logits", type=float, default=1.0, help="weight of the teacher's logits")
    add("--attention", type=float, default=1.0, help="weight of its attention relations")
    add("--temperature", type=float, default=1.0)
    add("--arms", nargs="+", choices=ARMS, default=ARMS)
    add("--eager", action="store_true", help="without torch.compile")
    add("--report", action="store_true", help="only write the report of what has been trained")
    given = parser.parse_args()
    if not given.report:
        split(given.text, given.held_out, given.out)
        for seed in given.seeds:
            for arm in given.arms:
                for name, config in runs(arm, seed, given):
                    train(given.out / name, config)
    report(given.out, given.seeds)


def split(texts: Sequence[Path], held_out: int, out: Path) -> None:
    """The documents of the texts as two files, shuffled; once."""
    if (out / TRAIN).exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    pieces = [piece.strip() for text in texts for piece in text.read_text("utf-8").split(SEPARATOR)]
    documents = list(dict.fromkeys(piece for piece in pieces if piece))
    random.Random(0).shuffle(documents)
    for name, part in ((HELD_OUT, documents[:held_out]), (TRAIN, documents[held_out:])):
        (out / name).write_text(f"\n{SEPARATOR}\n".join(part), "utf-8")


def runs(arm: str, seed: int, given: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """The runs of an arm, in their order, the measured one last; each has the arm and the seed in its name."""
    teacher, tokenizer = str(given.out / f"float-{seed}"), str(given.out / f"float-{given.seeds[0]}")
    shape = {**SHAPE, "hidden_size": given.hidden, "intermediate_size": 2 * given.hidden}
    shape |= {"num_hidden_layers": given.layers, "num_attention_heads": given.hidden // 64}
    shape |= {"num_key_value_heads": max(1, given.hidden // 128)}
    new = {"model_type": "llama" if arm.startswith("float") else "bitnet", **shape}
    first = given.steps // 4
    fresh = {"task": "pretrain", "model": {"config": new}}
    steps = given.steps * (2 if arm.endswith("2") else 1)
    if arm.startswith("float"):
        return [(f"{arm}-{seed}", base({**fresh, "recipe": FLOAT}, seed, steps, given, tokenizer))]
    if arm.startswith("ternary"):
        return [(f"{arm}-{seed}", base(fresh, seed, steps, given, tokenizer))]
    if arm == "continual":
        tuned = {"task": "finetune", "model": {"path": teacher}}
        return [(f"{arm}-{seed}", base(tuned, seed + 1000, given.steps, given, tokenizer))]
    refined = {"task": "finetune", "model": {"path": teacher, "sub_norms": True}}
    distilled = {
        "task": "distill",
        "model": {"path": str(given.out / f"refined-{seed}")},
        "teacher": {
            "path": teacher,
            "logits": given.logits,
            "attention": given.attention,
            "temperature": given.temperature,
        },
    }
    return [
        (f"refined-{seed}", base(refined, seed + 1000, first, given, tokenizer)),
        (f"{arm}-{seed}", base(distilled, seed + 2000, given.steps - first, given, tokenizer)),
    ]


def base(config: dict[str, Any], seed: int, steps: int, given: argparse.Namespace, tokenizer: str) -> dict[str, Any]:
    """With the data and the tokenizer that all runs share; the first run makes the tokenizer."""
    own = config.get("recipe") == FLOAT and seed == given.seeds[0] and steps == given.steps
    return {
        **config,
        "tokenizer": {"vocabulary": given.vocabulary} if own else {"path": tokenizer},
        "data": {
            "train": [{"path": str(given.out / TRAIN)}],
            "held_out": [{"path": str(given.out / HELD_OUT)}],
            "length": given.length,
        },
        "training": {
            "steps": steps, "rows": given.rows, "seed": seed, "compile": not given.eager,
            "log_every": max(1, steps // 100), "evaluate_every": 1e9, "keep": 1,
        },
    }  # fmt: skip


def train(out: Path, config: dict[str, Any]) -> None:
    if final(out) is not None:
        return
    print(f"== {out.name}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    command = "from bitnet.cli.main import main; main()"
    subprocess.run([sys.executable, "-c", command, "train", str(path), "--out", str(out)], check=True)


def metrics(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def final(out: Path) -> float | None:
    """The held-out loss at the end of a run, nats per token; None while it has not ended."""
    return next((line["held_out"] for line in metrics(out) if line.get("final")), None)


def interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of the mean; 0 for one value, which has none."""
    if len(values) < 2:
        return 0.0
    return STUDENT_T.get(len(values), 2.0) * statistics.stdev(values) / math.sqrt(len(values))


def gaps(out: Path, arm: str, floats: str, seeds: Sequence[int]) -> list[float]:
    """What an arm loses beside the float models of another, by seed."""
    pairs = [(final(out / f"{arm}-{seed}"), final(out / f"{floats}-{seed}")) for seed in seeds]
    return [a - b for a, b in pairs if a is not None and b is not None]


def report(out: Path, seeds: Sequence[int]) -> None:
    table: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        losses = [loss for seed in seeds if (loss := final(out / f"{arm}-{seed}")) is not None]
        if losses:
            table[arm] = {"seeds": len(losses), "loss": statistics.mean(losses), "loss_interval": interval(losses)}
            for floats in COMPARED.get(arm, ()):
                if found := gaps(out, arm, floats, seeds):
                    table[arm] |= {
                        f"above_{floats}": statistics.mean(found),
                        f"above_{floats}_interval": interval(found),
                    }
    lines = [
        "| arm | tokens | seeds | held-out nats per token | above float | above float2 |",
        "|---|---|---|---|---|---|",
    ]
    for arm, row in table.items():
        told = [
            f"{row[name]:.4f}" + f" ± {row[f'{name}_interval']:.4f}" * (row["seeds"] > 1) if name in row else ""
            for name in ("loss", "above_float", "above_float2")
        ]
        lines.append(f"| {arm} | {TOKENS[arm]} | {row['seeds']} | {' | '.join(told)} |")
    both = (("ternary2", "float2", "2 T altogether"), ("ternary", "float", "T beyond the float model"))
    for scratch, floats, what in both:
        name = f"above_{floats}"
        if name in table.get("distilled", {}) and table.get(scratch, {}).get(name):
            share = table["distilled"][name] / table[scratch][name]
            lines += ["", f"{what}: the gap of distilled is {share:.2f} of that of {scratch}."]
    print("\n".join(lines))
    (out / "gap.md").write_text("\n".join(lines) + "\n")
    (out / "gap.json").write_text(json.dumps(table, indent=2) + "\n")
    plot(out, table, seeds)


def plot(out: Path, table: dict[str, dict[str, Any]], seeds: Sequence[int]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {"svg.hashsalt": "gap", "font.size": 9}
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for number, arm in enumerate(ARMS):
        for seed in seeds:
            lines = [line for line in metrics(out / f"{arm}-{seed}") if "loss" in line and arm != "distilled"]
            smooth = [statistics.mean(line["loss"] for line in lines[max(0, i - 9) : i + 1]) for i in range(len(lines))]
            label = arm if seed == seeds[0] and lines else None
            tokens = [line["tokens"] / 1e6 for line in lines]
            left.plot(tokens, smooth, color=f"C{number}", alpha=0.7, lw=1, label=label)
    left.set(xlabel="million tokens of the run", ylabel="training loss, nats per token (mean of ten)")
    left.legend()
    for shift, floats in ((-0.1, "float"), (0.1, "float2")):
        name = f"above_{floats}"
        arms = [arm for arm in table if name in table[arm]]
        right.errorbar(
            [ARMS.index(arm) + shift for arm in arms], [table[arm][name] for arm in arms],
            [table[arm][f"{name}_interval"] for arm in arms], fmt="o", capsize=4, label=f"above {floats}",
        )  # fmt: skip
    right.set(xticks=range(len(ARMS)), xticklabels=ARMS, ylabel="held-out loss above float models, 95 %")
    right.axhline(0, color="grey", lw=0.8)
    right.legend()
    figure.savefig(out / "gap.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
