"""What the machine is, what it lets this process have, and whether the kernels compute rightly on it."""

from bitnet.machine.facts import Machine, look

__all__ = ["Machine", "look"]
