"""One worker per tool; each runs in the tool's own process and environment."""
