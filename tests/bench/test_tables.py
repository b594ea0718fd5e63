"""The tables that people read."""

from __future__ import annotations

from bench.made import result

from bitnet.bench.results import compared
from bitnet.bench.speed import Test
from bitnet.bench.tables import markdown

RESULTS = compared(
    [
        result(Test(0, 2), [1_000_000] * 3),
        result(Test(0, 2), [3_000_000] * 3, engine="llama.cpp", engine_version="0.3", model_type="bitnet 1M TQ2_0"),
        result(Test(0, 2, 64), [1_100_000] * 3, notes=["other processes took 9 % of the processors' time"]),
        result(Test(64, 0), [64_000_000], logits_hash="0a0b0c0d"),
    ]
)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_every_table_is_rectangular_and_aligned() -> None:
    rows = [line for line in markdown(RESULTS) if line.startswith("|")]
    blocks: list[list[str]] = []
    for line in markdown(RESULTS):
        if line.startswith("|"):
            blocks[-1].append(line) if blocks and blocks[-1] else blocks.append([line])
        else:
            blocks.append([])
    for block in filter(None, blocks):
        assert len({len(line) for line in block}) == len({line.count("|") for line in block}) == 1
    assert len(rows) == 6 + 6 + 4 + 3


def test_ratios_latencies_depths_and_notes_are_told() -> None:
    text = "\n".join(markdown(RESULTS))
    ratio = next(cells(line) for line in text.splitlines() if "TQ2_0" in line and "to" in line)
    assert ratio == ["tiny", "2", "tg2", "llama.cpp TQ2_0", "2000.00", "666.67", "3.00", "3.00 to 3.00"]
    latency = next(cells(line) for line in text.splitlines() if cells(line)[:4] == ["tiny", "bitnet", "2", "tg2 @ d64"])
    assert latency[4:] == ["0.55", "0.55", "0.55", "0.55"]
    memory = next(
        cells(line) for line in text.splitlines() if cells(line)[:2] == ["tiny", "bitnet"] and len(cells(line)) == 7
    )
    assert memory == ["tiny", "bitnet", "0.50", "1", "0", "86", "85"]
    assert "tg2 @ d64 takes 1.03 times what its bytes explain" in text
    assert "#0a0b0c0d" in text and "peer: llama.cpp 0.3" in text
    assert "note: other processes took 9 % of the processors' time" in text


def test_nothing_measured_gives_no_table() -> None:
    assert list(markdown([])) == []
