"""Settings: what they are (`sections`) and how they are read (`reading`)."""

from medflow.config.reading import load
from medflow.config.sections import RunConfig

__all__ = ["RunConfig", "load"]
