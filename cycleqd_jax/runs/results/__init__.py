"""The results of a run: the choice of the final model, the results table, other tasks, and pictures."""

__all__: list[str] = []
