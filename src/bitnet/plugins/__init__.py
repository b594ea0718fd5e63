"""This engine inside other programs, which find it by its entry points."""
