"""The dense peer is the model that is asked for: its shape, in bfloat16, reading every token once."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bitnet.bench import peers
from bitnet.bench.engines import parameters
from bitnet.bench.peers import transformers_engine
from bitnet.models.load import open_model
from bitnet.models.synthetic import SyntheticCheckpoint


@pytest.mark.parametrize("model, tied", [("bitnet", True), ("llama", True), ("llama", False)])
def test_the_dense_peer_has_the_shape_and_the_precision(model: str, tied: bool, tmp_path: Path) -> None:
    act = "relu2" if model == "bitnet" else "silu"
    checkpoint = SyntheticCheckpoint("tiny", model_type=model, tie_word_embeddings=tied, hidden_act=act)
    job = peers.Job(checkpoint, open_model(checkpoint)[1], 40, 8, tmp_path, lambda done, total: None)
    (offer,) = [make() for make in peers.transformers(job)]
    engine = transformers_engine.Engine(offer.request)
    weights = list(engine._model.parameters())
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    assert sum(weight.numel() for weight in weights) == parameters(checkpoint)
    for _ in range(2):
        engine.reset(1)
        engine.read([1, 2, 3])
        engine.read([4])
        assert engine._cache.get_seq_length() == 4
        keys = engine._cache.layers[0].keys
        assert keys.dtype == torch.bfloat16 and keys.isfinite().all() and keys.std() > 0
