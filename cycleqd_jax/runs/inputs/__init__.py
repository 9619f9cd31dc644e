"""What a run works on: models and tasks, resolved from the config before weights are read, and then opened."""

__all__: list[str] = []
