"""The devices of a run: groups of devices, and processes that divide the models between them."""

__all__: list[str] = []
