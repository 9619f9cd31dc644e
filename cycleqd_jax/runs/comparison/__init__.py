"""Comparisons of several runs at an equal budget."""

__all__: list[str] = []
