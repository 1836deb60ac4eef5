"""Container images in a registry, by its HTTP API alone: no engine is needed here.

``prepare`` puts one layer on top of an image that is there and names the result by what is in it. The API is that of
the OCI distribution specification 1.1, which every registry of container images speaks.
"""

from medflow.container.appending import Prepared, prepare
from medflow.container.layer import Layer, write_layer
from medflow.container.names import ImageName
from medflow.container.repository import Repository

__all__ = ["ImageName", "Layer", "Prepared", "Repository", "prepare", "write_layer"]
