"""What went wrong at Kaggle, in our words: statuses and names, never an answer's text or an address."""

from __future__ import annotations

from urllib.parse import urlsplit

import requests
from kagglehub.handle import DatasetHandle
from kagglesdk.kaggle_env import get_endpoint, get_env

from medflow.errors import CredentialsError, DownloadError, SourceError
from medflow.kaggle.login import WAYS, credentials

WITHOUT_KAGGLE = "or pass the images with `--source DIR|ZIP`"


def status_of(error: requests.HTTPError) -> int:
    return error.response.status_code if error.response is not None else 0


def refusal(error: requests.HTTPError, dataset: DatasetHandle) -> SourceError:
    status = status_of(error)
    address = error.response.url if error.response is not None else ""
    if urlsplit(address).netloc != urlsplit(get_endpoint(get_env())).netloc:
        return DownloadError(f"Kaggle's storage answered {status} for {dataset}", hint="run again: it resumes")
    if status in (401, 403):
        return _denied(status, dataset)
    if status == 404:
        return DownloadError(
            f"Kaggle has no {_named(dataset)} (404)",
            hint=f"check the name and `source.version`; a private dataset is shown to its owner alone: {WAYS}",
        )
    return DownloadError(f"Kaggle answered {status} for {_named(dataset)}", hint=f"run again later, {WITHOUT_KAGGLE}")


def _denied(status: int, dataset: DatasetHandle) -> CredentialsError:
    found = credentials()
    page = DatasetHandle(dataset.owner, dataset.dataset).to_url()
    if found is None:
        return CredentialsError(
            f"Kaggle does not give {_named(dataset)} without credentials ({status}), and none were found",
            hint=f"{WAYS}; {WITHOUT_KAGGLE}",
        )
    if status == 401:
        hint = f"the token may be expired or revoked: {WAYS}"
    else:
        hint = f"open {page} in a browser, signed in, and accept the dataset's terms; or the token may not cover it"
    return CredentialsError(
        f"Kaggle refused {_named(dataset)} ({status}) with the credentials of {found.where}",
        hint=f"{hint}; {WITHOUT_KAGGLE}",
    )


def unreachable(dataset: DatasetHandle) -> DownloadError:
    return DownloadError(
        f"Kaggle could not be reached for {_named(dataset)}",
        hint="check the network and the proxy, or work without it: `--source DIR|ZIP` takes images that are on disk",
    )


def broken_off(dataset: DatasetHandle, received: int) -> DownloadError:
    if not received:
        return unreachable(dataset)
    return DownloadError(
        f"the download of {_named(dataset)} broke off after {received / 1e6:.1f} MB",
        hint=f"run again: it resumes where it broke off; {WITHOUT_KAGGLE}",
    )


def nonsense(dataset: DatasetHandle) -> DownloadError:
    return DownloadError(
        f"the answer for {_named(dataset)} is not Kaggle's: expected a dataset with a version number",
        hint=f"a proxy or a sign-in page may stand in between; {WITHOUT_KAGGLE}",
    )


def _named(dataset: DatasetHandle) -> str:
    return f"dataset {dataset.owner}/{dataset.dataset}" + (f", version {dataset.version}" if dataset.version else "")
