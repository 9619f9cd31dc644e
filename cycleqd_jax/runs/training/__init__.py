"""What a run trains: base, experts, baselines, and merging coefficients."""

__all__: list[str] = []
