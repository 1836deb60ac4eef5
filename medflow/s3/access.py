"""How a bucket is reached, and what its refusals mean: in our words, which hold no address, key or signature."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from medflow.errors import CredentialsError, DownloadError, SourceError
from medflow.progress import track

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

Thing = TypeVar("Thing")
#: Transfers at a time: 8 threads move 200 files of 64 KiB in half the time of one.
TRANSFERS = 8
CONNECT_SECONDS, READ_SECONDS = 10, 60
DENIED = frozenset({"401", "403", "AccessDenied", "ExpiredToken", "InvalidToken", "Forbidden"})
UNKNOWN = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "XAdminUserNotFound"})  # the last is versitygw's
ABSENT = frozenset({"404", "NoSuchBucket", "NoSuchKey", "NotFound"})
CHANGED = frozenset({"412", "PreconditionFailed"})
WAYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL where it is not AWS's)"


@dataclass(frozen=True)
class Access:
    """Credentials and address of an S3 store.

    What is None is found as AWS's own tools find it: ``AWS_*`` variables, a profile, the role of a pod.
    """

    key: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    endpoint: str | None = field(default=None, repr=False)
    """URL; it may hold a password, so it is never told."""
    region: str | None = None


AMBIENT = Access()


def connect(access: Access) -> Any:
    """A boto3 client with timeouts and retries; several threads may use it. Raises CredentialsError."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "max_attempts": 5},
        max_pool_connections=TRANSFERS,
    )
    with explained("the object store"):
        return boto3.session.Session().client(
            "s3",
            config=config,
            endpoint_url=access.endpoint,
            region_name=access.region,
            aws_access_key_id=access.key,
            aws_secret_access_key=access.secret,
            aws_session_token=access.token,
        )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Errors of the S3 client as CredentialsError, SourceError or DownloadError about ``what``, such as a URI."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    try:
        yield
    except ClientError as error:
        raise _refusal(error, what) from None
    except (NoCredentialsError, PartialCredentialsError):
        raise CredentialsError(f"no credentials were found for {what}", hint=WAYS) from None
    except (BotoCoreError, ValueError) as error:
        # boto3 answers a malformed endpoint with a ValueError that repeats it.
        raise DownloadError(
            f"{what} could not be reached ({type(error).__name__})",
            hint="check the network and AWS_ENDPOINT_URL, then run again: what has arrived is kept",
        ) from None


def _refusal(error: ClientError, what: str) -> SourceError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in UNKNOWN:
        return CredentialsError(f"the object store does not know the credentials used for {what} ({code})", hint=WAYS)
    if code in DENIED:
        return CredentialsError(
            f"the object store refused {what} ({code})", hint=f"these credentials may not read or list it; {WAYS}"
        )
    if code in ABSENT:
        return SourceError(f"{what} does not exist ({code})", hint="check its name, and the endpoint of the store")
    if code in CHANGED:
        return SourceError(f"{what} changed after the run began", hint="run again")
    return DownloadError(f"the object store answered {code or 'an error'} for {what}", hint="run again later")


def in_threads(function: Callable[[Thing], object], things: Sequence[Thing], *, what: str) -> None:
    """Call ``function`` on each, several at a time. The first error is raised, and nothing further starts."""
    with ThreadPoolExecutor(TRANSFERS) as pool:
        futures = [pool.submit(function, thing) for thing in things]
        try:
            for future in track(as_completed(futures), what=what, total=len(futures)):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
