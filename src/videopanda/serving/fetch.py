"""Fetches a video from another server, and from nowhere else than an operator allowed.

    fetch("https://videos.example.org/clip.mp4", upload.write, FetchPolicy(hosts=("videos.example.org",)))

A server that fetches addresses given by strangers can be sent to places that only it can reach. So: hosts by name from
a list; every name is looked up once, every address it has must be a public one, and the connection goes to the address
that was looked at. Redirects pass the same checks. No proxies, no other schemes, no credentials.
"""

import http.client
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import SplitResult, urljoin, urlsplit

from videopanda.serving.errors import ForbiddenError, TooLargeError, UnfitError

_CHUNK = 1 << 16
_REDIRECTS = {HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND, HTTPStatus.SEE_OTHER} | {
    HTTPStatus.TEMPORARY_REDIRECT,
    HTTPStatus.PERMANENT_REDIRECT,
}
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_PROTOCOLS = ipaddress.ip_network("192.0.0.0/24")  # older releases of Python call some of it global
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.ip_network("64:ff9b:1::/48")


@dataclass(frozen=True)
class FetchPolicy:
    """Where files may be fetched from.

    hosts: names; "*.example.org" allows every name below example.org. Empty: nothing is fetched.
    max_bytes, timeout, max_redirects: of one file; seconds for all of it.
    look_up, connect: what finds addresses of a name and connects to one, as `socket` does.
    """

    hosts: Sequence[str] = ()
    max_bytes: int = 512 << 20
    timeout: float = 30.0
    max_redirects: int = 3
    look_up: Callable[..., list[tuple]] = socket.getaddrinfo
    connect: Callable[..., socket.socket] = socket.create_connection


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, looking through IPv6 forms of IPv4 addresses."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64_LOCAL:
            return False
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and ip not in _PROTOCOLS and not ip.is_multicast and not ip.is_reserved


def fetch(url: str, write: Callable[[bytes], None], policy: FetchPolicy) -> None:
    """Fetch a file and hand its bytes to `write`.

    Raises:
        ForbiddenError: the address is not one that is fetched.
        TooLargeError: it has too many bytes.
        UnfitError: the other server does not deliver it in time.
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
    """The parts of an address that may be fetched."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip(".").lower(), parts.port
    except ValueError as error:
        raise ForbiddenError("the address cannot be read") from error
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host):
        raise ForbiddenError("only http and https addresses are fetched: upload the file (POST /v1/files) instead")
    if not policy.hosts:
        raise ForbiddenError("this server fetches no addresses: upload the file (POST /v1/files) or send a data URL")
    if parts.username is not None or parts.password is not None:
        raise ForbiddenError("addresses with a user name are not fetched")
    if not any(host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in policy.hosts):
        raise ForbiddenError(f"this server does not fetch from {host}: upload the file (POST /v1/files) instead")
    if port not in (None, 80, 443):
        raise ForbiddenError(f"port {port} is not fetched from")
    return parts


def _get(parts: SplitResult, write: Callable[[bytes], None], policy: FetchPolicy, deadline: float) -> str | None:
    """One request; returns where a redirect leads, or None when all bytes were written."""
    path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    if any(not "!" <= letter <= "~" for letter in path):
        raise ForbiddenError("the address must be percent-encoded")
    connection = _Connection(parts, _address(parts, policy), policy, deadline)
    try:
        connection.request("GET", path, headers={"Accept-Encoding": "identity", "User-Agent": "videopanda"})
        response = connection.getresponse()
        if response.status in _REDIRECTS and response.headers["Location"]:
            return str(response.headers["Location"])
        if response.status != HTTPStatus.OK:
            raise UnfitError(f"{parts.hostname} answers with status {response.status}")
        left = policy.max_bytes
        if (response.length or 0) > left:
            raise TooLargeError(f"the file has more than {left} bytes")
        while chunk := response.read1(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise TooLargeError(f"the file has more than {policy.max_bytes} bytes")
            write(chunk)
            connection.wait_no_longer_than(deadline)
    finally:
        connection.close()
    return None


def _address(parts: SplitResult, policy: FetchPolicy) -> tuple[str, int]:
    """The address to connect to; all addresses of the name must be public."""
    assert parts.hostname is not None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = policy.look_up(parts.hostname, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise ForbiddenError(f"{parts.hostname} is not in the public internet")
    return addresses[0], port


class _Connection(http.client.HTTPConnection):
    """A connection to the address that was checked, whatever the name means by now."""

    def __init__(self, parts: SplitResult, address: tuple[str, int], policy: FetchPolicy, deadline: float):
        assert parts.hostname is not None
        super().__init__(parts.hostname, parts.port)
        self._address, self._policy, self._deadline = address, policy, deadline
        self._secure, self._name = parts.scheme == "https", parts.hostname

    def connect(self) -> None:
        """Connect, and encrypt where the scheme asks for it."""
        self.sock = self._policy.connect(self._address, timeout=max(0.001, self._deadline - time.monotonic()))
        if self._secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self._name)
        self.wait_no_longer_than(self._deadline)

    def wait_no_longer_than(self, deadline: float) -> None:
        """Raises TimeoutError when the time is up, and bounds the next read by what is left."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it takes too long")
        if self.sock is not None:  # closed after the last byte
            self.sock.settimeout(left)
