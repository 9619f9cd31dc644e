"""Logs of a search for other programs."""

__all__: list[str] = []
