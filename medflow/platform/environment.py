"""What must be set before the first ``import zenml``.

ZenML reads these variables once, at import. ``setdefault`` throughout: who has set one keeps it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from medflow.home import home


def prepare() -> None:
    """Point ZenML, MLflow, BentoML and Great Expectations at the one state folder. Makes no folder yet."""
    for name, value in _settings(home()).items():
        os.environ.setdefault(name, value)
    # ZenML records the installed packages of each run through `uv` or `pip`, whichever is on PATH.
    scripts = str(Path(sys.executable).parent)
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = scripts + os.pathsep + os.environ.get("PATH", "")


def _settings(root: Path) -> dict[str, str]:
    return {
        "ZENML_CONFIG_PATH": str(root / "zenml" / "config"),
        "ZENML_LOCAL_STORES_PATH": str(root / "zenml" / "stores"),
        "ZENML_ANALYTICS_OPT_IN": "false",
        "ZENML_AUTO_OPEN_DASHBOARD": "false",
        "ZENML_LOGGING_VERBOSITY": "WARNING",
        "ZENML_LOGGING_COLORS_DISABLED": "true",
        "ZENML_ENABLE_RICH_TRACEBACK": "false",
        "BENTOML_HOME": str(root / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # A tracking server that is down costs seconds a call; by default it would be tried for minutes.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "WANDB_ERROR_REPORTING": "false",
        "DO_NOT_TRACK": "true",
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }
