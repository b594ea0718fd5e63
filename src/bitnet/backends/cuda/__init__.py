"""An NVIDIA GPU as a backend."""
