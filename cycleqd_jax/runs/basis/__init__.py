"""The experts' singular directions, decomposed once and kept in the cache."""

__all__: list[str] = []
