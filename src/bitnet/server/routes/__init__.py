"""One file per group of routes. They translate between a dialect and the engine, and do nothing else."""

from bitnet.server.routes import chat, models, status

ROUTERS = (chat.router, models.router, status.router)
