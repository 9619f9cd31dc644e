"""Runs that begin with the individuals of a run of other tasks."""

__all__: list[str] = []
