"""What a response's status or an exception of the client means: a reason from the closed set, and the raw text."""

import asyncio
import socket
import ssl
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import aiohttp

from scrapers.types import Reason, Verdict

REFUSED_ADDRESS = "refused address: "
"""How the error begins that the client raises where a socket must not be made."""
NO_SUCH_NAME = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})

_BY_STATUS = {
    403: Reason.HTTP_403,
    404: Reason.HTTP_404,
    408: Reason.HTTP_408,
    410: Reason.HTTP_410,
    425: Reason.HTTP_408,
    429: Reason.HTTP_429,
}


def status_verdict(response: aiohttp.ClientResponse) -> Verdict:
    """Return the verdict over a response that is neither an image nor a redirect."""
    status = response.status
    by_class = {4: Reason.HTTP_4XX, 5: Reason.HTTP_5XX}.get(status // 100, Reason.HTTP_OTHER)
    # Only what asks to come back later may say when.
    is_throttling = status in (429, 503)
    wait_s = retry_after_s(response.headers.get("Retry-After")) if is_throttling else None
    return Verdict(_BY_STATUS.get(status, by_class), f"{status} {response.reason or ''}".strip(), wait_s, is_throttling)


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number, or an HTTP date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(min(int(value.strip()), 10**9))
    try:
        date = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    aware = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    return max(0.0, (aware - (now or datetime.now(timezone.utc))).total_seconds())


def verdict_of(error: BaseException) -> Verdict:
    """Return the verdict over an exception of the client."""
    cause = getattr(error, "os_error", error)
    return Verdict(_reason_of(error), (str(cause) or str(error) or type(error).__name__)[:300])


def _reason_of(error: BaseException) -> Reason:  # noqa: PLR0911 - a table, in the order of the exceptions' kinship
    if REFUSED_ADDRESS in str(getattr(error, "os_error", error)):
        return Reason.SSRF
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Reason.DNS_NXDOMAIN if error.os_error.errno in NO_SUCH_NAME else Reason.DNS_TEMP
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Reason.TLS_CERT
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return Reason.TLS_OTHER
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Reason.CONNECT_TIMEOUT
    if isinstance(error, aiohttp.SocketTimeoutError):
        return Reason.READ_TIMEOUT
    if isinstance(error, asyncio.TimeoutError):
        return Reason.TOTAL_TIMEOUT
    if isinstance(error, aiohttp.ClientConnectorError):
        return Reason.CONNECT_REFUSED
    if isinstance(error, aiohttp.ClientPayloadError):
        return Reason.INCOMPLETE
    if isinstance(error, aiohttp.InvalidURL):
        return Reason.BAD_URL
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | OSError):
        return Reason.RESET
    return Reason.BAD_RESPONSE
