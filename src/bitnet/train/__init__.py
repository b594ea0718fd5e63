"""Pretraining with straight-through ternary weights, and the recipe of the built-in model."""
