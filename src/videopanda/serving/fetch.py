"""Fetches a video from another server, only from hosts that the operator allows.

    fetch("https://videos.example.org/clip.mp4", upload.write, FetchPolicy(hosts=("videos.example.org",)))

A server that fetches arbitrary URLs can be tricked into accessing its internal network. Therefore: only hosts from an
allow list; every name is resolved once, all its addresses must be public, and the connection goes to the address that
was checked. Redirects pass the same checks. No proxies, no other schemes, no credentials, and one deadline for
everything.
"""

import http.client
import io
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from videopanda.serving.errors import ForbiddenError, TooLargeError, UnfitError

_CHUNK = 1 << 16
_REDIRECTS = {HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND, HTTPStatus.SEE_OTHER} | {
    HTTPStatus.TEMPORARY_REDIRECT,
    HTTPStatus.PERMANENT_REDIRECT,
}
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all other IPv6 ranges have special meanings
_NOT_PUBLIC = [  # which older releases of Python call global
    ipaddress.ip_network(name) for name in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "3fff::/20")
]
_RESOLVERS = ThreadPoolExecutor(4, thread_name_prefix="resolve")  # a DNS lookup cannot be interrupted, only abandoned


@dataclass(frozen=True)
class FetchPolicy:
    """Where files may be fetched from.

    hosts: names; "*.example.org" allows every name below example.org. Empty: nothing is fetched.
    max_bytes, timeout, max_redirects: of one file; the timeout, in seconds, includes look-ups and redirects.
    look_up, connect: resolve a name and connect to an address, as `socket` does.
    """

    hosts: Sequence[str] = ()
    max_bytes: int = 512 << 20
    timeout: float = 30.0
    max_redirects: int = 3
    look_up: Callable[..., list[tuple]] = socket.getaddrinfo
    connect: Callable[..., socket.socket] = socket.create_connection


def is_public(address: str) -> bool:
    """Whether an IP address is public; IPv4 addresses inside IPv6 ones are looked at too."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _GLOBAL_UNICAST:
            return False
    special = any(ip.version == network.version and ip in network for network in _NOT_PUBLIC)
    return ip.is_global and not special and not ip.is_multicast and not ip.is_reserved


def fetch(url: str, write: Callable[[bytes], object], policy: FetchPolicy) -> None:
    """Fetch a file and pass its bytes to `write`.

    Raises:
        ForbiddenError: the URL is not allowed.
        TooLargeError: the file is too large.
        UnfitError: the other server fails or is too slow.
    """
    deadline = time.monotonic() + policy.timeout
    for _ in range(policy.max_redirects + 1):
        parts = _allowed(url, policy)
        try:
            target = _get(parts, write, policy, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise UnfitError(f"cannot fetch from {parts.hostname}: {str(error) or type(error).__name__}") from error
        if target is None:
            return
        url = urljoin(url, target)
    raise UnfitError(f"cannot fetch the file: more than {policy.max_redirects} redirects")


def _allowed(url: str, policy: FetchPolicy) -> SplitResult:
    """The parts of a URL that may be fetched."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip(".").lower(), parts.port
    except ValueError as error:
        raise ForbiddenError("the URL is malformed") from error
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host):
        raise ForbiddenError(
            "URLs must start with http:, https: or data:video/mp4;base64, or be the ID of an uploaded file"
        )
    if not policy.hosts:
        raise ForbiddenError("this server fetches no URLs: upload the file (POST /v1/files) or send a data URL")
    if parts.username is not None or parts.password is not None:
        raise ForbiddenError("URLs with credentials are not allowed")
    if not any(host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in policy.hosts):
        raise ForbiddenError(f"this server does not fetch from {host}: upload the file (POST /v1/files) instead")
    if port not in (None, 80, 443):
        raise ForbiddenError(f"port {port} is not allowed")
    return parts


def _get(parts: SplitResult, write: Callable[[bytes], object], policy: FetchPolicy, deadline: float) -> str | None:
    """One request; returns where a redirect leads, or None when all bytes were written."""
    path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    if any(not "!" <= letter <= "~" for letter in path):
        raise ForbiddenError("the URL must be percent-encoded")
    connection = _Connection(parts, _address(parts, policy, deadline), policy, deadline)
    try:
        connection.request("GET", path, headers={"Accept-Encoding": "identity", "User-Agent": "videopanda"})
        response = connection.getresponse()
        if response.status in _REDIRECTS and response.headers["Location"]:
            return str(response.headers["Location"])
        if response.status != HTTPStatus.OK:
            raise UnfitError(f"{parts.hostname} answers with status {response.status}")
        length, received = response.length, 0
        if (length or 0) > policy.max_bytes:
            raise TooLargeError(f"the file is larger than {policy.max_bytes} bytes")
        while chunk := response.read1(_CHUNK):
            received += len(chunk)
            if received > policy.max_bytes:
                raise TooLargeError(f"the file is larger than {policy.max_bytes} bytes")
            write(chunk)
        if length is not None and received < length:  # which `read1` does not tell
            raise ConnectionError(f"connection lost after {received:,} of {length:,} bytes")
    finally:
        connection.close()
    return None


def _left(deadline: float) -> float:
    """Seconds until the deadline. Raises TimeoutError."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _address(parts: SplitResult, policy: FetchPolicy, deadline: float) -> tuple[str, int]:
    """The address to connect to; all addresses of the name must be public."""
    assert parts.hostname is not None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    looking = _RESOLVERS.submit(policy.look_up, parts.hostname, port, type=socket.SOCK_STREAM)
    try:
        found = looking.result(_left(deadline))
    except FutureTimeoutError as error:
        raise TimeoutError(f"looking up {parts.hostname} timed out") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise ForbiddenError(f"{parts.hostname} does not resolve to public addresses only")
    return addresses[0], port


class _Connection(http.client.HTTPConnection):
    """A connection pinned to the checked address, so a second DNS answer cannot redirect it."""

    def __init__(self, parts: SplitResult, address: tuple[str, int], policy: FetchPolicy, deadline: float):
        assert parts.hostname is not None
        super().__init__(parts.hostname, parts.port)
        self._address, self._policy, self._deadline = address, policy, deadline
        self._secure, self._name = parts.scheme == "https", parts.hostname

    def connect(self) -> None:
        """Connect, and encrypt if the scheme asks for it."""
        connected = self._policy.connect(self._address, timeout=_left(self._deadline))
        connected.settimeout(_left(self._deadline))  # of the whole handshake, and of sending the request
        if self._secure:
            connected = ssl.create_default_context().wrap_socket(connected, server_hostname=self._name)
        self.sock = connected
        self.response_class = self._response  # type: ignore[assignment]

    def _response(self, sock: socket.socket, *args: Any, **options: Any) -> http.client.HTTPResponse:
        """A response whose reads, including headers, share the deadline."""
        response = http.client.HTTPResponse(sock, *args, **options)
        response.fp = io.BufferedReader(_Reader(sock, response.fp, self._deadline))
        return response


class _Reader(io.RawIOBase):
    """Reads from a socket until the deadline; `file`, created from the socket, keeps it open."""

    def __init__(self, sock: socket.socket, file: Any, deadline: float):
        self._sock, self._file, self._deadline = sock, file, deadline

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there."""
        self._sock.settimeout(_left(self._deadline))
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        """Let the socket close."""
        self._file.close()
        super().close()
