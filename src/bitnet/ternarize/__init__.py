"""Float models made ternary without training: by a rule, or with thresholds that are searched for."""

from bitnet.ternarize.checkpoint import Choice, Ternarized, projections, stored_type

__all__ = ["Choice", "Ternarized", "projections", "stored_type"]
