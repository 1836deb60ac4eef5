"""What a listing learns from DICOM headers: groups, demographics, and what a reader must be warned of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medflow.datasets._layout import DICOM_SUFFIXES, told
from medflow.dicom.facts import DicomFacts, facts
from medflow.errors import ImageError
from medflow.records import Finding


@dataclass(frozen=True)
class Described:
    """Facts of DICOM files, by path as it was given, and the findings they give rise to."""

    facts: dict[str, DicomFacts]
    findings: tuple[Finding, ...]


def described(base: Path, paths: Iterable[PurePosixPath]) -> Described:
    """Facts of those ``paths`` below ``base`` that are called DICOM files. Their headers are read, no pixels.

    A file whose header cannot be read is left out: `validate` tells of it, once its pixels cannot be read either.
    """
    found: dict[str, DicomFacts] = {}
    for path in paths:
        if path.suffix.lower() in DICOM_SUFFIXES:
            try:
                found[path.as_posix()] = facts(base / path)
            except (ImageError, OSError):
                continue
    burned = [path for path, about in found.items() if about.burned_in]
    nameless = [path for path, about in found.items() if about.group is None]
    return Described(
        found,
        (
            *told(
                "burned_in_annotation",
                "DICOM files with text burned into their pixels, which may name a person: look at them before sharing",
                burned,
                "warning",
            ),
            *told("patient_unknown", "DICOM files that name neither patient nor study", nameless),
        ),
    )
