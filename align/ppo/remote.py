"""JSON over HTTP with retries: for the remote scorer and the server that generates."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

from align.errors import RunError

BACKOFF = 1.0  # seconds before the first further attempt; each wait is twice the one before
SHOWN = 160  # characters of an answer that a message quotes


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would carry prompts and token to a place that nobody named."""

    def redirect_request(self, *args: Any) -> None:
        return None


def ask(
    url: str, body: Any = None, *, timeout: float, retries: int, token: str, advice: str
) -> Any:
    """The JSON that a server answers: POST of ``body`` as JSON, GET where there is none.

    A connection error, a timeout and a status of 5xx are tried again after 1, 2, 4, … seconds; any
    other status is final.

    Args:
        url: http or https
        body: what JSON can hold
        timeout: seconds for one attempt
        retries: further attempts
        token: environment variable that may hold a bearer token, so that no file ever does
        advice: end of the message when all fails

    Returns:
        the decoded answer, None where it is empty

    Raises:
        RunError: no answer, a status other than 2xx, or an answer that is not JSON.
    """
    why = ""
    for attempt in range(retries + 1):
        if attempt:
            time.sleep(BACKOFF * 2 ** (attempt - 1))
        try:
            return _decoded(url, _fetch(url, body, timeout, os.environ.get(token)), advice)
        except urllib.error.HTTPError as error:
            why = f"answered {error.code} {error.reason}{_quoted(error)}"
            if error.code < 500:
                raise RunError(f"{url} {why}; {advice}") from error
        except TimeoutError:
            why = f"gave no answer within {timeout:g} s"
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            slow = isinstance(reason, TimeoutError)
            why = f"gave no answer within {timeout:g} s" if slow else f"can't be reached ({reason})"
    raise RunError(f"{url} {why}, {retries + 1} attempts; {advice}")


def _fetch(url: str, body: Any, timeout: float, secret: str | None) -> bytes:
    """The bytes of an answer.

    Raises:
        TimeoutError: they were not all there in time, however steadily they trickled.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if secret:
        headers["Authorization"] = f"Bearer {secret}"
    end = time.monotonic() + timeout
    opener = urllib.request.build_opener(_StayHere)
    pieces = []
    with opener.open(urllib.request.Request(url, data, headers), timeout=timeout) as answer:
        while piece := answer.read1(2**20):
            pieces.append(piece)
            if time.monotonic() > end:
                raise TimeoutError
        expected = answer.headers.get("Content-Length")
    got = b"".join(pieces)
    if expected is not None and len(got) < int(expected):
        raise ConnectionResetError(f"the answer broke off after {len(got)} of {expected} bytes")
    return got


def _decoded(url: str, answer: bytes, advice: str) -> Any:
    if not answer.strip():
        return None
    try:
        return json.loads(answer)
    except ValueError as error:  # bytes that are no text are one too
        start = answer[:SHOWN].decode("utf-8", "replace")
        raise RunError(f"{url} answered {start!r}, which is not JSON; {advice}") from error


def _quoted(error: urllib.error.HTTPError) -> str:
    """What a server says about its refusal, cut short."""
    try:
        text = " ".join(error.read(SHOWN).decode("utf-8", "replace").split())
    except (OSError, http.client.HTTPException):
        text = ""
    return f" ({text})" if text else ""
