"""Runs untrusted Python, SQL servers and shells, fast, without letting them at the host."""

from .base import Completed, InfraError, Isolation, Killed, Limits
from .sandbox import Box, Sandbox, Session, Shell, detect

__all__ = ["Box", "Completed", "InfraError", "Isolation", "Killed", "Limits", "Sandbox", "Session", "Shell", "detect"]
