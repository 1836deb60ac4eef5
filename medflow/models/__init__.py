"""Networks from their config, one file a family; ``building`` says which config makes which.

To add a family: a config class with its ``kind`` in ``config.sections.models``, a file here, and one case in
``building``.
"""

from __future__ import annotations

from medflow.models.building import build, load, read_config, rebuild, tensors_of
from medflow.models.image_text import Reader
from medflow.models.inputs import preprocess_for
from medflow.models.network import Network

__all__ = ["Network", "Reader", "build", "load", "preprocess_for", "read_config", "rebuild", "tensors_of"]
