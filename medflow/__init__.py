"""medflow: from a medical image dataset to a model in service, with the proof kept.

This is the domain library. It runs without ZenML and MLflow; only ``medflow.platform`` knows them.
"""

__version__ = "0.1.0"
