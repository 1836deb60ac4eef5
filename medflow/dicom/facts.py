"""What a listing may know of a DICOM file: pseudonyms of patient and study, age, sex, view. Never who it is."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from medflow.dicom.header import HEADER_BYTES, PREAMBLE, elements, head_of
from medflow.errors import ImageError

SALT = "MEDFLOW_PSEUDONYM_SALT"
PATIENT, STUDY = 0x00100020, 0x0020000D
AGE, SEX, VIEW, BURNED_IN = 0x00101010, 0x00100040, 0x00185101, 0x00280301
#: HIPAA Safe Harbor (45 CFR 164.514(b)(2)(i)(C)) gathers all ages over 89 in one.
OLDEST = 90.0
YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
#: Defined terms of View Position for radiographs and mammograms; anything else could be free text.
VIEWS = frozenset({
    "AP", "PA", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LATERAL", "LAT",
    "CC", "MLO", "ML", "LM", "LMO", "XCC", "XCCL", "XCCM", "FB", "SIO", "ISO", "CV", "TAN",
})  # fmt: skip


@dataclass(frozen=True)
class DicomFacts:
    group: str | None
    """Pseudonym of the patient; of the study where no patient is named; None where neither is."""
    study: str | None
    age: float | None
    """Years; 90 for everybody over 89."""
    sex: str | None
    """F, M or None."""
    view: str | None
    burned_in: bool
    """The file says that text is burned into its pixels: names may be readable there."""


def facts(path: Path) -> DicomFacts:
    """Facts of a DICOM file, from its header alone. Raises ImageError where it is none, OSError where it is not there.

    A pseudonym is a digest of the identifier: the same patient has the same one in every file and on every machine.
    Whoever guesses an identifier can compute its pseudonym, unless ``MEDFLOW_PSEUDONYM_SALT`` holds a secret; with
    another salt every pseudonym is another.
    """
    with path.open("rb") as stream:
        data = stream.read(PREAMBLE + HEADER_BYTES)
    found = elements(head_of(data), (PATIENT, STUDY, AGE, SEX, VIEW, BURNED_IN))
    study = pseudonym("study", _text(found, STUDY))
    sex, view = _text(found, SEX).upper(), _text(found, VIEW).upper()
    return DicomFacts(
        group=pseudonym("patient", _text(found, PATIENT)) or study,
        study=study,
        age=years(_text(found, AGE)),
        sex=sex if sex in ("F", "M") else None,
        view=view if view in VIEWS else None,
        burned_in=_text(found, BURNED_IN).upper() == "YES",
    )


def pseudonym(kind: str, identifier: str) -> str | None:
    """``patient-<16 hex digits>`` from an identifier; None for an empty one."""
    if not identifier:
        return None
    salt = os.environ.get(SALT, "")
    return f"{kind}-{hashlib.sha256(f'medflow {salt} {kind} {identifier}'.encode()).hexdigest()[:16]}"


def years(age: str) -> float | None:
    """An Age String (PS3.5 6.2: ``018M``, ``034Y``) in years, at most 90; None for anything else."""
    match = re.fullmatch(r"(\d{1,3})([YMWD])", age.upper())
    if match is None:
        return None
    value = int(match[1]) * YEARS[match[2]]
    return OLDEST if value > OLDEST - 1 else value


def _text(found: Dataset, tag: int) -> str:
    try:
        value = found[tag].value if tag in found else None
    except Exception as error:  # an element whose bytes are none of its type
        raise ImageError("an element of its header cannot be read", hint="replace the file by a good copy") from error
    return "" if value is None else str(value).strip(" \0")
