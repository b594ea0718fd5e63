"""Measures which settings suit this machine and this model, and keeps them for later runs. They change no result."""

from bitnet.tune.options import Options
from bitnet.tune.profile import Found, Profile, find

__all__ = ["Found", "Options", "Profile", "find"]
