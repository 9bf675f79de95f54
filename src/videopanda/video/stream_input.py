"""What FFmpeg reads a stream from: URLs of allowed hosts, pipes, and files that are still being written."""

import http.client
import os
import select
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

_POLL_SECONDS = 0.1
_HEAD_BYTES = 8  # in which an MP4 can be told
_BEGINNING_BYTES = 1 << 16  # headers and more: no two connections to a live stream give the same
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # that it may begin with
_PARTIAL = 206  # status of a part of a file
_SKIPPED_BYTES = 1 << 18  # a place this far ahead is reached by reading on, not by another request
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds before connecting again; doubled each time


class StreamSource(Protocol):
    """What is read. stall, give_up: seconds without data until a note, and until the end.

    interrupted: a KeyboardInterrupt came while FFmpeg was reading, through which no such exception passes.
    """

    name: str
    stall: float
    give_up: float
    interrupted: bool
    tell: Callable[[Any, str], None]

    def allow(self, url: str) -> None:
        """Raise ValueError for a URL whose host is not allowed."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects to allowed hosts only."""

    def __init__(self, allow: Callable[[str], None]):
        self.allow = allow

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Check the new URL."""
        self.allow(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class BrokenOffError(OSError):
    """The connection to a file was lost, and cannot be continued: from its start, all would be shown again."""


class Download:
    """A URL. If its length is known and the server gives parts of files, a file is continued where its connection was
    lost, and FFmpeg may go to the index of an MP4, often at its end. Other formats are read from front to back.
    """

    def __init__(self, source: StreamSource, url: str, before: bytes = b""):
        """`before`: how the source began when it was read the last time.

        Raises:
            BrokenOffError: it begins like that again, so it is no live stream.
        """
        self._source, self._url, self._failed = source, url, False
        self._at = 0  # byte that is read next
        self._opener = urllib.request.build_opener(_NoRedirect(source.allow))
        self._response = self._open(url)
        self._length: int | None = self._response.length
        self._has_parts = self._length is not None and self._response.headers.get("Accept-Ranges") == "bytes"
        self._version = self._response.headers.get("ETag") or self._response.headers.get("Last-Modified")
        try:
            self._head = self._response.read(len(before) or _HEAD_BYTES)
        except http.client.HTTPException as error:
            raise ConnectionError(f"connection lost: {error}") from error
        if before and self._head == before:
            raise BrokenOffError("the connection was lost, and this server sends the video from its start again")
        self._received = len(self._head)  # byte that the response gives next
        self.beginning = self._head

    def close(self) -> None:
        """Close the connection."""
        self._response.close()

    def seekable(self) -> bool:
        """Whether FFmpeg may use `seek`."""
        return self._has_parts and self.is_mp4

    @property
    def is_mp4(self) -> bool:
        """Whether it begins as an MP4 does."""
        return self._head[4:8] in _MP4_BOXES

    @property
    def identifies(self) -> bool:
        """Whether `beginning` tells one connection from another. That of a playlist, or of JPEGs that follow each other
        without times, does not.
        """
        return len(self.beginning) == _BEGINNING_BYTES and not self._head.startswith((b"#", b"--", b"\xff\xd8"))

    def tell(self) -> int:
        """The byte that is read next."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte; nothing is asked of the server before it is read."""
        assert self._length is not None
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        return self._at

    def _open(self, request: Any) -> Any:
        try:
            return self._opener.open(request, timeout=self._source.stall)
        except http.client.HTTPException as error:  # what answers does not speak HTTP
            raise ConnectionError(str(error) or type(error).__name__) from error

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end."""
        if self._failed:  # FFmpeg asks again after an error
            return b""
        self._failed = True
        try:
            data = self._next(size)
        except KeyboardInterrupt:
            self._source.interrupted = True
            return b""
        self._failed = False
        return data

    def _next(self, size: int) -> bytes:
        pause, began = FIRST_PAUSE, time.monotonic()
        while True:
            try:
                if self._length is not None and self._at >= self._length:
                    return b""
                if data := self._head[self._at : self._at + size]:
                    self._at += len(data)
                    return data
                self._go_to_place()
                data = self._response.read(size)
                if self._at == len(self.beginning) < _BEGINNING_BYTES:
                    self.beginning += data[: _BEGINNING_BYTES - self._at]
                self._at = self._received = self._at + len(data)
                if data or self._length is None:
                    return data
                raise ConnectionError(f"connection lost after {self._at:,} of {self._length:,} bytes")
            except (OSError, http.client.HTTPException) as lost:
                error = lost if isinstance(lost, OSError) else ConnectionError(f"connection lost: {lost}")
                self._response.close()
                if not self._has_parts or time.monotonic() - began + pause > self._source.give_up:
                    is_file = self._length is not None and self._url == self._source.name
                    raise (BrokenOffError(str(error)) if is_file else error) from None
                self._source.tell("reconnect", f"{error}; continuing at byte {self._at:,} in {pause:g} s")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _go_to_place(self) -> None:
        """Make the response one that gives the byte that is read next."""
        while not self._response.closed and 0 < self._at - self._received <= _SKIPPED_BYTES:
            skipped = len(self._response.read(self._at - self._received))
            self._received += skipped
            if not skipped:
                break
        if not self._has_parts or (self._at == self._received and not self._response.closed):
            return
        self._response.close()
        request = urllib.request.Request(self._url, headers={"Range": f"bytes={self._at}-"})
        self._response, self._received = self._open(request), self._at
        if self._response.status != _PARTIAL:
            self._has_parts = False
            raise ConnectionError("the server cannot resume a download")
        headers = self._response.headers
        place = headers.get("Content-Range") or f"bytes {self._at}-/{self._length}"
        is_place = place.startswith(f"bytes {self._at}-") and place.endswith(f"/{self._length}")
        if not is_place or self._version != (headers.get("ETag") or headers.get("Last-Modified")):
            self._has_parts = False
            raise ConnectionError("the file on the server has changed")


class Growing:
    """A pipe, or a file that is still being written: `read` waits for data, reports stalls, and gives up."""

    def __init__(self, source: StreamSource, stack: ExitStack, is_fifo: bool):
        self.name, self._source, self._is_file = source.name, source, not is_fifo and source.name != "-"
        if source.name == "-":
            self._descriptor = sys.stdin.fileno()
        else:
            # Opened without blocking: an ordinary open of a FIFO would wait for a writer, and nothing could end that.
            self._descriptor = os.open(source.name, os.O_RDONLY | (os.O_NONBLOCK if is_fifo else 0))
            stack.callback(os.close, self._descriptor)
        self._begun, self._ended = not is_fifo, False

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end."""
        if self._ended:  # FFmpeg asks again after an end
            return b""
        try:
            data = self._wait(size)
        except KeyboardInterrupt:
            self._source.interrupted, data = True, b""
        self._ended = not data
        return data

    def _wait(self, size: int) -> bytes:
        began, told = time.monotonic(), False
        while True:
            ready = select.select([self._descriptor], [], [], _POLL_SECONDS)[0]
            data = os.read(self._descriptor, size) if ready else None
            if data:
                self._begun = True
                return data
            if data == b"" and self._begun and not self._is_file:
                return b""  # the writer has closed the pipe
            silent = time.monotonic() - began
            if silent > self._source.stall and not told:
                told = True
                self._source.tell("stall", f"no data for {self._source.stall:g} s")
            if silent > self._source.give_up:
                self._source.tell("end", f"no data for {self._source.give_up:g} s: taken as the end")
                return b""
            if data is not None:
                time.sleep(_POLL_SECONDS)
