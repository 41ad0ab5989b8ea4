"""A shop: messages, handlers and the container that wires them. It never asks where they run."""
