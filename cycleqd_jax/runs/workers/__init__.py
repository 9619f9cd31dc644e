"""What scores the genomes of a run: groups of devices in this process, workers on a Ray cluster, other processes."""

__all__: list[str] = []
