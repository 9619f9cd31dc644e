"""A Ray cluster of this machine."""

from ...local_cluster import local_cluster

__all__ = ["local_cluster"]
