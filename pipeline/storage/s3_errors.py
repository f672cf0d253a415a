"""What S3 and the way to it answer, as errors of ours."""

from http import HTTPStatus

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 - botocore's own
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
)
from botocore.parsers import ResponseParserError

from patchlake.pipeline.errors import StorageError, StorageRefused
from patchlake.pipeline.storage.stores import BeyondEnd, NotKnown

_TRANSIENT = ("ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown")
_DENIED = (
    *("403", "401", "AccessDenied", "Forbidden", "AllAccessDisabled", "AccountProblem"),
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"),
)


# Not made (refused, timed out), or not brought to its end: of a body, and of an answer that is an
# error, aiohttp says so itself.
_BROKEN = (
    *(ConnectionError, HTTPClientError, IncompleteReadError, ResponseParserError),
    *(aiohttp.ClientError, TimeoutError),
)
# What a request can end with. S3's answers are errors of Python's by then, which s3fs makes.
FAILURES = (OSError, BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError)


def _code(error: ClientError) -> str:
    # Of a HEAD, which has no body, the status.
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def may_pass(error: BaseException) -> bool:
    """Return whether the same request may get another answer."""
    if isinstance(error, ClientError):
        code, status = _code(error), _status(error)
        passing = status in (408, 429, 500, 502, 503, 504)
        return passing or code in _TRANSIENT or "Throttl" in code
    return isinstance(error, _BROKEN)


def translated(error: BaseException, where: str, attempts: int) -> OSError:
    """Return the error as one of ours, with the object's name and without botocore's."""
    if isinstance(error, ClientError):
        return _translated_answer(error, where, attempts)
    if isinstance(error, EndpointConnectionError | ConnectTimeoutError):
        # A connection that was made and broke is of the same class.
        broke = error.kwargs.get("error")
        if isinstance(broke, aiohttp.ClientError) and not isinstance(
            broke, aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError
        ):
            return StorageError(f"{where}: the answer is incomplete (tries: {attempts}): {broke}")
        return StorageRefused(f"{where}: nothing answers (tries: {attempts}): {error}")
    if may_pass(error):
        return StorageError(f"{where}: the answer is incomplete (tries: {attempts}): {error}")
    return StorageRefused(f"{where}: {error}")  # no credentials, no such profile


def _translated_answer(error: ClientError, where: str, attempts: int) -> OSError:
    code, said = _code(error), error.response.get("Error", {}).get("Message", "")
    meanings: dict[tuple[str, int], OSError] = {
        ("PutObject", 412): FileExistsError(where),  # If-None-Match
        ("GetObject", 412): StorageError(f"{where} has changed since it was listed: start again"),
        ("GetObject", 416): BeyondEnd(f"{where}: {said}"),
        ("PutObject", 501): NotKnown(f"{where}: {said}"),
    }
    known = meanings.get((error.operation_name, _status(error)))
    if known is not None:
        return known
    if code == "NoSuchBucket":
        return StorageRefused(f"{where}: there is no such bucket")
    if _status(error) == HTTPStatus.NOT_FOUND:
        return FileNotFoundError(f"{where} does not exist")
    if code in _DENIED:
        return StorageRefused(f"{where}: access denied ({code}: {said})")
    # What is not tried again (a wrong region, a malformed name) is for somebody to put right.
    kind = StorageError if may_pass(error) else StorageRefused
    return kind(f"{where}: {code}: {said} (tries: {attempts})")
