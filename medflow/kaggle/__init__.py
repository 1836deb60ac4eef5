"""Kaggle through its own client: credentials, version numbers, and a download that survives cuts.

What is kagglehub's and kagglesdk's: where credentials are looked for, the address, the requests and
answers of the API, the redirect to storage, the checksum header, the layout on disk. What is done here,
and why ``kagglehub.dataset_download`` (1.0.2, read and tried) is not called as a whole:

- it unpacks with ``ZipFile.extractall``, which bounds neither size nor number; ``medflow.archive`` does;
- its API calls have no timeout at all, and nothing is tried twice;
- on resuming it appends whatever it is answered, a 503 page too, finds a wrong checksum and throws
  everything away; here a rest must be the 206 that was asked for;
- it logs to standard output, which belongs to ``--json``, and in its TEST environment it prints the
  Authorization header and reads whole archives into memory.

No credentials is no error by itself: Kaggle gives public datasets to anybody unless they ask for consent.
So the call is made without, and only a refusal becomes CredentialsError, before any byte of data is fetched.

No message carries a token, a key, an answer's text or a signed address: exceptions of the client are
replaced (``from None``), never quoted.
"""

from __future__ import annotations

from medflow.kaggle.client import Patience, current_version, parse
from medflow.kaggle.login import Credentials, credentials
from medflow.kaggle.transfer import download

__all__ = ["Credentials", "Patience", "credentials", "current_version", "download", "parse"]
