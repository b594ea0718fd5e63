"""How good a model is."""

from bitnet.evaluate.perplexity import Perplexity, perplexity, score_text

__all__ = ["Perplexity", "perplexity", "score_text"]
