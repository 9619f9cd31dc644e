"""Model folders of the models of a run, with their cards."""

__all__: list[str] = []
