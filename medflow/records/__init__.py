"""The records that pass between steps: frozen, typed, hashed by content.

Small ones are pydantic models (``Record``). The big ones, ``Manifest``, ``Pixels``, ``Bundle``,
``Predictions`` and ``Package``, hold a table or a folder of files.

Every record has ``digest()``, a sha256 over what later results depend on. A field marked
``BESIDE`` (code version, source version number, times, latencies) travels along but does not count.
This package imports numpy and pydantic only; pyarrow is imported where a table is touched, because
serving reads ``ModelCard`` from here and has no pyarrow.
"""

from medflow.records.base import BESIDE, Record, Whole, content, digest_of, file_digest
from medflow.records.dataset import Challenge, DatasetCard, Generated, HeadSpec, Placement, Role, Source
from medflow.records.evaluation import (
    WHOLE_HEAD,
    Choice,
    Evaluation,
    ExternalEvaluation,
    LabelCounts,
    LeftOut,
    RowsRole,
    Score,
    Verdict,
)
from medflow.records.findings import Finding, Findings
from medflow.records.model import (
    Bundle,
    ChannelStats,
    EpochLog,
    ModelCard,
    Normalization,
    OperatingPoint,
    Parity,
    Preprocess,
    PrunedLayer,
    Structure,
    Temperature,
    TextReading,
    Threshold,
    TrainingLog,
)
from medflow.records.pixels import PixelIndex, Pixels, PixelSpec, PixelStore, Shard, Share
from medflow.records.promotion import (
    NOT_TOLD,
    Comparison,
    Incumbent,
    Package,
    PackageFacts,
    Past,
    Promotion,
    Recorded,
    Unseen,
)
from medflow.records.ranking import Ranked, Ranking
from medflow.records.tables import MANIFEST_COLUMNS, Manifest, Predictions, Split
from medflow.records.tuning import Trial, TuneResult

__all__ = [
    "BESIDE",
    "MANIFEST_COLUMNS",
    "NOT_TOLD",
    "WHOLE_HEAD",
    "Bundle",
    "Challenge",
    "ChannelStats",
    "Choice",
    "Comparison",
    "DatasetCard",
    "EpochLog",
    "Evaluation",
    "ExternalEvaluation",
    "Finding",
    "Findings",
    "Generated",
    "HeadSpec",
    "Incumbent",
    "LabelCounts",
    "LeftOut",
    "Manifest",
    "ModelCard",
    "Normalization",
    "OperatingPoint",
    "Package",
    "PackageFacts",
    "Parity",
    "Past",
    "PixelIndex",
    "PixelSpec",
    "PixelStore",
    "Pixels",
    "Placement",
    "Predictions",
    "Preprocess",
    "Promotion",
    "PrunedLayer",
    "Ranked",
    "Ranking",
    "Record",
    "Recorded",
    "Role",
    "RowsRole",
    "Score",
    "Shard",
    "Share",
    "Source",
    "Split",
    "Structure",
    "Temperature",
    "TextReading",
    "Threshold",
    "TrainingLog",
    "Trial",
    "TuneResult",
    "Unseen",
    "Verdict",
    "Whole",
    "content",
    "digest_of",
    "file_digest",
]
