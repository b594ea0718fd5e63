"""Load for a server that speaks as OpenAI's does, over HTTP, and what its users feel of it."""
