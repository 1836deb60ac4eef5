"""Kaggle's API through its own client, with timeouts and a bounded number of attempts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import kagglehub
import requests
from kagglehub.config import KaggleApiCredentials
from kagglehub.handle import DatasetHandle, parse_dataset_handle
from kagglesdk.datasets.services.dataset_api_service import DatasetApiClient
from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetRequest
from kagglesdk.kaggle_env import get_env
from kagglesdk.kaggle_http_client import KaggleHttpClient
from requests.adapters import HTTPAdapter

from medflow.errors import ConfigError
from medflow.kaggle.login import secret
from medflow.kaggle.refusals import nonsense, refusal, status_of, unreachable

Answer = TypeVar("Answer")
NOT_NOW = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Patience:
    """How long Kaggle is waited for. Every wait has an end."""

    connect_seconds: float = 10.0
    read_seconds: float = 60.0
    """Between two bytes."""
    attempts: int = 5
    """In a row without a mebibyte of progress, before giving up."""
    pause_seconds: float = 1.0
    """Before the second attempt; doubled each time, up to half a minute."""

    def pause(self, failed: int) -> None:
        time.sleep(min(self.pause_seconds * 2 ** (failed - 1), 30.0))


PATIENCE = Patience()


class _TimedAdapter(HTTPAdapter):
    """kagglesdk sends without a timeout; this one is applied to every request of its session."""

    def __init__(self, patience: Patience) -> None:
        self._timeout = (patience.connect_seconds, patience.read_seconds)
        super().__init__()

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float | None, float | None] | None = None,
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        proxies: dict[str, str] | None = None,
    ) -> requests.Response:
        return super().send(request, stream, timeout or self._timeout, verify, cert, proxies)


@contextmanager
def api(patience: Patience) -> Iterator[DatasetApiClient]:
    """Kaggle's dataset calls, with the credentials that were found, silent and with timeouts."""
    with _client() as client:
        for scheme in ("https://", "http://"):
            client._session.mount(scheme, _TimedAdapter(patience))
        yield DatasetApiClient(client)


def _client() -> KaggleHttpClient:
    # In a function of its own: no frame that an error passes through has the secret among its variables.
    try:
        environment = get_env()
    except Exception:  # the client raises no narrower one
        name = os.environ.get("KAGGLE_API_ENVIRONMENT")
        message = f"KAGGLE_API_ENVIRONMENT is {name!r}, which Kaggle's client does not know"
        raise ConfigError(message, hint="unset it") from None
    login = secret() or KaggleApiCredentials()
    return KaggleHttpClient(
        env=environment,
        verbose=False,
        username=login.username,
        password=login.key,
        api_token=login.api_key,
        user_agent=f"kagglehub/{kagglehub.__version__} medflow",
    )


def parse(handle: str) -> DatasetHandle:
    """``owner/dataset``. Raises ConfigError otherwise."""
    try:
        parsed = parse_dataset_handle(handle)
    except ValueError:
        parsed = None
    # The two names become folders.
    if parsed is None or parsed.version or any(name in ("", ".", "..") for name in (parsed.owner, parsed.dataset)):
        raise ConfigError(f"{handle!r} is no Kaggle dataset; expected owner/dataset", hint="see the dataset's address")
    return parsed


def current_version(handle: str, patience: Patience = PATIENCE) -> int:
    """The number of the newest version.

    Raises CredentialsError (401, 403), DownloadError (404, unreachable, or no version in the answer).
    """
    dataset = parse(handle)
    request = ApiGetDatasetRequest()
    request.owner_slug, request.dataset_slug = dataset.owner, dataset.dataset

    def ask() -> int:
        with api(patience) as calls:
            return calls.get_dataset(request).current_version_number

    version = _patiently(ask, dataset, patience)
    if not isinstance(version, int) or version < 1:
        raise nonsense(dataset)
    return version


def _patiently(ask: Callable[[], Answer], dataset: DatasetHandle, patience: Patience) -> Answer:
    """``ask()``, again after what may pass, and its failures in our words."""
    for failed in range(1, patience.attempts + 1):
        try:
            return ask()
        except requests.exceptions.JSONDecodeError:
            raise nonsense(dataset) from None
        except requests.HTTPError as error:
            if status_of(error) not in NOT_NOW or failed == patience.attempts:
                raise refusal(error, dataset) from None
        except requests.RequestException as error:
            if failed == patience.attempts or not passes(error):
                raise unreachable(dataset) from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise nonsense(dataset) from None
        patience.pause(failed)
    raise AssertionError("the last attempt returns or raises")


def passes(error: requests.RequestException) -> bool:
    """What waiting may mend; addresses, proxies and certificates it does not."""
    broken = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    settled = (requests.exceptions.SSLError, requests.exceptions.ProxyError)
    return isinstance(error, broken) and not isinstance(error, settled)
