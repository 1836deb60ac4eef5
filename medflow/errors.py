"""Every error medflow raises on purpose.

::

    MedflowError                 one line for the user, one hint, an exit code
    ├── ConfigError              a YAML or key=value that cannot be meant
    ├── SourceError              the images could not be had
    │   ├── CredentialsError     Kaggle refused, or no credentials were found
    │   ├── DownloadError        the download broke, or its checksum is wrong
    │   └── ArchiveError         an archive that would leave its target, or is too large
    ├── DataError                the images are there, and wrong
    │   ├── ImageError           one image that cannot become pixels
    │   ├── ChecksFailed         a check of severity `error` stopped the run
    │   └── SplitError           groups overlap, or a class cannot be split
    ├── ModelError               a model that cannot be built, loaded or matched to its data
    │   └── WeightsUnavailable   pretrained weights are neither on disk nor reachable
    ├── TrainingError            training diverged or could not go on
    │   └── ProcessLost          one of its processes died: another try goes on from the newest checkpoint
    ├── ArtifactError            a stored artifact is missing, truncated or of another format
    ├── ServingError             the service could not be started or answered wrongly
    └── PlatformError            ZenML, MLflow or the machine under them
"""

from __future__ import annotations

import errno

HINT = "hint: "


class MedflowError(Exception):
    """What is wrong, what was expected, what was found; ``hint`` says what to do next.

    Subclasses state nothing but their exit code: the words belong to the place that raises.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        # So that a traceback has it too, which may be all that is left of an error in another machine.
        self.add_note(f"{HINT}{hint}")

    def __reduce__(self):
        # The hint is keyword-only, so the default (class, args) would not survive a process pool.
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[MedflowError], message: str, hint: str) -> MedflowError:
    return kind(message, hint=hint)


class ConfigError(MedflowError):
    exit_code = 2


class SourceError(MedflowError):
    exit_code = 3


class CredentialsError(SourceError):
    pass


class DownloadError(SourceError):
    pass


class ArchiveError(SourceError):
    pass


class DataError(MedflowError):
    exit_code = 4


class ImageError(DataError):
    pass


class ChecksFailed(DataError):
    pass


class SplitError(DataError):
    pass


class ModelError(MedflowError):
    exit_code = 5


class WeightsUnavailable(ModelError):
    pass


class TrainingError(MedflowError):
    exit_code = 6


class ProcessLost(TrainingError):
    #: Its own, since a pod that ends with it is tried again.
    exit_code = 10


class ArtifactError(MedflowError):
    exit_code = 7


class ServingError(MedflowError):
    exit_code = 8


class PlatformError(MedflowError):
    exit_code = 9


# -- the machine under us ------------------------------------------------------------------------

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR})
#: SQLite and Rust libraries tell of a disk in words alone.
NO_ROOM_WORDS = ("No space left on device", "database or disk is full", "File too large")
NOT_WRITABLE_WORDS = ("readonly database", "unable to open database file")


def of_disk(error: BaseException) -> PlatformError | None:
    """What ``error``, or one that it came from, says of a disk that is full or may not be used; None otherwise."""
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        where = f": {seen.filename}" if isinstance(seen, OSError) and seen.filename else ""
        if number in NO_ROOM or any(words in str(seen) for words in NO_ROOM_WORDS):
            return PlatformError(f"the disk is full{where}", hint=_ROOM)
        if number in NOT_WRITABLE or any(words in str(seen) for words in NOT_WRITABLE_WORDS):
            return PlatformError(f"a file or folder cannot be used: {seen}", hint=_WRITABLE)
        seen = seen.__cause__ or seen.__context__
    return None


_ROOM = "free some space, or set MEDFLOW_HOME to a folder on another disk; then run again, what is finished is kept"
_WRITABLE = "check who owns it, or set MEDFLOW_HOME to a folder that you may write to"
