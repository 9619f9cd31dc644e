"""The run folder: its files, its older versions, and what its journal determines."""

__all__: list[str] = []
