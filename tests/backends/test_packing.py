"""How ternary weights are kept: what may be asked for, what auto takes, and what a packing cannot have."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import tiny

from bitnet import BitNet, backends, models
from bitnet.backends import packing
from bitnet.backends.packing import BITS, KERNELS, SMALL, WEIGHTS, asked, settled
from bitnet.errors import ParameterError
from bitnet.models import memory
from bitnet.models.synthetic import SyntheticCheckpoint
from bitnet.quant.tensor import TernaryTensor

loading = import_module("bitnet.models.load")
ROOM = 1 << 50
BILLION = 10**9


def timed(ratio: float) -> Callable[[str, int], float]:
    """A measurement in which 1.6 bits are `ratio` times as fast as 2 bits."""
    return lambda packing, count: count / (ratio if packing == "1.6bit" else 1.0)


def unasked(packing: str, count: int) -> float:
    raise AssertionError("measured")


@pytest.mark.parametrize(("ratio", "taken"), [(0.5, "2bit"), (1.0, "2bit"), (1.09, "2bit"), (1.11, "1.6bit")])
def test_auto_takes_fewer_bits_only_where_they_are_clearly_faster(ratio: float, taken: str) -> None:
    assert settled("auto", BILLION, ROOM, timed(ratio)) == taken


def test_what_fits_into_the_second_caches_is_not_measured() -> None:
    assert settled("auto", 4 * SMALL, ROOM, unasked) == "2bit"


def test_a_model_that_fits_at_fewer_bits_alone_gets_them_unmeasured() -> None:
    assert settled("auto", BILLION, BILLION // 4 - 1, unasked) == "1.6bit"
    assert settled("auto", BILLION, BILLION // 5 - 1, timed(0.5)) == "2bit"  # neither fits; the loader says so


def test_a_large_model_is_measured_like_one_of_bounded_size() -> None:
    sizes: list[int] = []
    settled("auto", 100 * BILLION, ROOM, lambda packing, count: sizes.append(count) or 1.0)
    assert max(sizes) == 4 * packing.LARGE


@pytest.mark.parametrize("name", BITS)
def test_what_was_asked_for_stays(name: str) -> None:
    assert settled(name, BILLION, 0, unasked) == name


def test_a_product_is_measured_once_in_a_process() -> None:
    pytest.importorskip("bitnet._core")
    first = packing.measured("1.6bit", 1 << 20)
    assert 0 < first == packing.measured("1.6bit", 1 << 20)


def test_kernels_that_look_up_have_their_own_packing() -> None:
    assert [asked("auto", kernel) for kernel in KERNELS] == ["auto", "auto", "tl1", "tl2"]
    assert [asked(weights, "i2_s") for weights in WEIGHTS] == ["auto", "2bit", "1.6bit"]
    for weights in WEIGHTS[1:]:
        for kernel in ("tl1", "tl2"):
            with pytest.raises(ParameterError, match="packing of its own"):
                asked(weights, kernel)


@pytest.mark.parametrize("options", [{"weights": "3bit"}, {"kernel": "cuda"}, {"weights": "tl1"}])
def test_unknown_names_list_the_known_ones(options: dict[str, str]) -> None:
    with pytest.raises(ParameterError, match="Known: auto, "):
        backends.make("cpu", **options)


def test_the_reference_backend_has_no_packings() -> None:
    assert backends.make("reference", kernel="i2_s").name == "reference"
    with pytest.raises(ParameterError, match="reference"):
        backends.make("reference", weights="1.6bit")


@pytest.mark.parametrize("options", [{"weights": "2bit"}, {"weights": "1.6bit"}, {"kernel": "tl1"}, {"kernel": "tl2"}])
def test_a_model_says_the_same_in_every_packing(tiny_gguf: Path, options: dict[str, str]) -> None:
    core = pytest.importorskip("bitnet._core")
    with BitNet(tiny_gguf) as model, BitNet(tiny_gguf, **options) as other:
        kept = {w.packing for w in other.llm.model.weights.values() if isinstance(w, core.TernaryWeight)}
        assert kept == set(options.values())
        assert other.generate("the", seed=1) == model.generate("the", seed=1)
        assert other.score("the inner thing") == model.score("the inner thing")


def test_groups_of_columns_stay_at_two_bits_where_a_packing_cannot_have_them() -> None:
    pytest.importorskip("bitnet._core")
    from bitnet.backends.cpu import CPU, packings

    codes = np.random.default_rng(0).integers(-1, 2, (32, 256), np.int8)
    whole = TernaryTensor(codes, np.float32(0.5))
    grouped = TernaryTensor(codes, np.full((32, 2), 0.5, np.float32))
    for name, kept in (("1.6bit", "2bit"), ("tl2", "2bit"), ("tl1", "tl1"), ("2bit", "2bit")):
        backend = CPU(name)
        weights = [backend.put(whole), backend.put(whole), backend.put(grouped)]
        assert [w.packing for w in weights] == [name, name, kept]
        assert packings(weights) == (name if kept == name else f"{name}, {kept}")
    assert packings([]) == ""


def test_the_loader_counts_the_bits_that_were_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitnet._core")
    needed: dict[str, int] = {}
    for weights in ("2bit", "1.6bit"):
        monkeypatch.setattr(
            loading, "check_memory", lambda path, total, free, name=weights: needed.update({name: total})
        )
        models.load(SyntheticCheckpoint("tiny"), backends.make("cpu", weights), head="full")
    ternary = sum(np.prod(i.shape) for i in SyntheticCheckpoint("tiny").tensors().values() if i.dtype == "packed")
    assert needed["2bit"] - needed["1.6bit"] == pytest.approx(ternary * 0.4 / 8, abs=20)


def test_scarce_memory_takes_fewer_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    core = pytest.importorskip("bitnet._core")
    free = {}
    monkeypatch.setattr(loading, "check_memory", lambda path, total, _: free.update(total=total))
    models.load(tiny.Synthetic(tiny.VARIANTS["bitnet-silu"]), backends.make("cpu", "2bit"), head="full")
    monkeypatch.setattr(memory, "available_bytes", lambda: free["total"] - 1)
    model = models.load(tiny.Synthetic(tiny.VARIANTS["bitnet-silu"]), backends.make("cpu"), head="full")
    assert {w.packing for w in model.weights.values() if isinstance(w, core.TernaryWeight)} == {"1.6bit"}
