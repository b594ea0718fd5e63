"""The engine behind HTTP: the routes that other tools expect, and what a server needs around them."""
