"""All attacks that ``test_attacks.py`` runs under each isolation.

``pytest --collect-only -q -m "" tests/tasks/test_attacks.py`` lists them.
"""

from __future__ import annotations

from .attack import Attack
from .boxes import BOXES
from .programs import PROGRAMS
from .programs_files import PROGRAMS_FILES
from .statements import STATEMENTS
from .verdicts import VERDICTS
from .verdicts_classes import VERDICTS_CLASSES

__all__ = ["ATTACKS", "Attack"]

ATTACKS = [*VERDICTS, *VERDICTS_CLASSES, *PROGRAMS, *PROGRAMS_FILES, *BOXES, *STATEMENTS]
