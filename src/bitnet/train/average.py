"""The mean of runs that went on from the same model: often better than each (Wortsman et al., arXiv:2203.05482).

python -m bitnet.train.average OUT RUN=0.3 OTHER=0.7
bitnet export OUT --gguf model.gguf
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnet.errors import ParameterError
from bitnet.train import checkpoint
from bitnet.train.export import TOKENIZER


def average(runs: Mapping[Path, float], out: Path) -> None:
    """Write the mean of the runs' last masters, by these weights, and the first one's tokenizer as a run that can be
    exported or trained on. ParameterError where the runs are of different models, or weights do not add up to one."""
    if abs(sum(runs.values()) - 1) > 1e-6:
        raise ParameterError(f"The weights add up to {sum(runs.values()):g}, not to 1.")
    states = [checkpoint.latest(run) for run in runs]
    first = states[0]
    for run, state in zip(runs, states, strict=True):
        if state["about"] != first["about"]:
            raise ParameterError(f"{run} is of another model than {next(iter(runs))}.")
    parts: list[tuple[Mapping[str, Any], float]] = [
        (state["model"], weight) for state, weight in zip(states, runs.values(), strict=True)
    ]
    model = {name: sum(part[name] * weight for part, weight in parts) for name in first["model"]}
    shutil.copytree(next(iter(runs)) / TOKENIZER, out / TOKENIZER, dirs_exist_ok=True)
    checkpoint.save(out, 0, {"about": first["about"], "model": model}, keep=1)


def parse(text: str) -> tuple[Path, float]:
    path, _, weight = text.rpartition("=")
    return Path(path), float(weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=parse, nargs="+", metavar="RUN=WEIGHT")
    given = parser.parse_args()
    average(dict(given.runs), given.out)


if __name__ == "__main__":
    main()
