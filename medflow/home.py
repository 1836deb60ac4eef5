"""The one folder where state lives."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """``MEDFLOW_HOME``, or ``.medflow`` in the user's home folder. Not created here."""
    return Path(os.environ.get("MEDFLOW_HOME") or Path.home() / ".medflow").expanduser().absolute()
