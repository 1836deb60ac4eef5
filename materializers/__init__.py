"""How records are stored. Importing this package registers every materializer with ZenML."""

from materializers.bundle import BundleMaterializer, IncumbentMaterializer
from materializers.package import PackageMaterializer
from materializers.pixels import PixelsMaterializer
from materializers.record import RecordMaterializer
from materializers.table import ManifestMaterializer, PredictionsMaterializer

__all__ = [
    "BundleMaterializer",
    "IncumbentMaterializer",
    "ManifestMaterializer",
    "PackageMaterializer",
    "PixelsMaterializer",
    "PredictionsMaterializer",
    "RecordMaterializer",
]
