"""Protects what strangers send and name: files told by content, decoders in processes, addresses looked at twice."""

import asyncio
import http.server
import io
import json
import os
import signal
import socket
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from live import run_async
from PIL import Image

from media import read_numbers, write_video
from videopanda.serving.decoder_pool import DecodeLimits, DecoderPool
from videopanda.serving.errors import ForbiddenError, NotFoundError, ShuttingDownError, TooLargeError, UnfitError
from videopanda.serving.fetch import FetchPolicy, fetch, is_public
from videopanda.serving.uploads import MARKER, FileLimits, FileStore, sniff_mime_type
from videopanda.video.read import VideoLimits, VideoReadError, read_video

LIMITS = VideoLimits(source_frames=200, pixels=100_000, frames=16)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", range(30))


# -- reading -----------------------------------------------------------------------------------------------------------
def test_limits_hold_before_anything_is_decoded(path, tmp_path, monkeypatch):
    assert len(read_video(path, num_frames=16, limits=LIMITS)) == 16
    long = write_video(tmp_path / "long.mp4", range(201))
    wide = write_video(tmp_path / "wide.mp4", range(3), size=(640, 480))
    monkeypatch.setattr("videopanda.video.container.decode", None)
    with pytest.raises(VideoReadError, match="more than 200 frames"):
        read_video(long, num_frames=1, limits=LIMITS)
    with pytest.raises(VideoReadError, match="640x480"):
        read_video(wide, num_frames=1, limits=LIMITS)
    for choice in ({"num_frames": 17}, {"fps": 1e12}):
        with pytest.raises(ValueError, match="more than 16 frames"):
            read_video(path, **choice, limits=LIMITS)


def with_pool(use, **reading):
    async def run():
        pool = DecoderPool(DecodeLimits(**{"workers": 1, "limits": LIMITS, "timeout": 60.0, **reading}))
        await pool.start()
        try:
            return await use(pool)
        finally:
            await pool.close()

    return run_async(run())


def test_a_process_reads_what_the_library_reads(path, tmp_path):
    async def use(pool):
        one = await pool.read(path, num_frames=8, sampling="uniform", start=0.2, end=0.9, max_side=40)
        with pytest.raises(UnfitError, match="cannot read this video"):
            await pool.read(tmp_path / "missing.mp4", num_frames=8)
        with pytest.raises(UnfitError, match="start"):
            await pool.read(path, num_frames=8, start=50.0)
        return one, await pool.read(path, fps=4.0)

    one, two = with_pool(use)
    for video, other in (
        (one, read_video(path, num_frames=8, start=0.2, end=0.9, max_side=40, decoder="pyav")),
        (two, read_video(path, fps=4.0, decoder="pyav")),
    ):
        for name, value in vars(other).items():
            assert np.array_equal(getattr(video, name), value), name
    assert read_numbers(two.frames) == [0, 7, 15, 22]


@pytest.mark.parametrize("how", ["hang", "crash"])
def test_a_decoder_that_hangs_or_crashes_harms_one_file(path, how):
    """The process is halted from outside, so that it hangs for certain, and in one case then killed."""

    async def use(pool):
        first = pool._workers[0]._process.pid
        os.kill(first, signal.SIGSTOP)
        bad = asyncio.create_task(pool.read(path, num_frames=1))
        await asyncio.sleep(0.2)
        if how == "crash":
            os.kill(first, signal.SIGKILL)
        with pytest.raises(UnfitError, match="crashed" if how == "crash" else "timed out"):
            await bad
        pool.limits = replace(pool.limits, timeout=60.0)
        return await pool.read(path, num_frames=2), first, pool._workers[0]._process.pid

    good, first, second = with_pool(use, timeout=0.1 if how == "hang" else 60.0)
    assert len(good) == 2
    assert first != second


def test_memory_is_bounded(tmp_path):
    """A picture of few bytes and many pixels, and a process that may not take the memory for it."""
    Image.new("L", (12_000, 12_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 200_000

    async def use(pool):
        with pytest.raises(UnfitError, match=r"exceeds limit|decompression bomb|larger"):
            await pool.read(tmp_path / "bomb.png", num_frames=1)

    with_pool(use)
    generous = VideoLimits(source_frames=200, pixels=1 << 30, frames=16)

    async def use_generous(pool):
        with pytest.raises(UnfitError, match=r"needs more memory than is available|crashed"):
            await pool.read(tmp_path / "bomb.png", num_frames=16)

    with_pool(use_generous, memory=1 << 30, limits=generous)


def test_a_reader_that_nobody_waits_for_is_stopped(path):
    async def use(pool):
        os.kill(pool._workers[0]._process.pid, signal.SIGSTOP)
        waiting = asyncio.create_task(pool.read(path, num_frames=1))
        await asyncio.sleep(0.2)
        waiting.cancel()
        assert len(await pool.read(path, num_frames=2)) == 2
        await pool.close()
        with pytest.raises(ShuttingDownError):
            await pool.read(path, num_frames=2)

    with_pool(use)


# -- what a file is ----------------------------------------------------------------------------------------------------
def test_files_are_told_by_their_content(path, tmp_path):
    assert sniff_mime_type(path.read_bytes()[:512]) == ("video", "video/mp4")
    for suffix, codec, mime in ((".avi", "libx264", "video/x-msvideo"), (".mkv", "libx264", "video/webm")):
        assert (
            sniff_mime_type(write_video(tmp_path / f"a{suffix}", range(3), codec=codec).read_bytes()[:512])[1] == mime
        )
    assert sniff_mime_type(write_video(tmp_path / "a.ts", range(3)).read_bytes()[:512])[1] == "video/mp2t"
    for name, kind in (("PNG", "image"), ("JPEG", "image"), ("WEBP", "image"), ("BMP", "image"), ("GIF", "video")):
        content = io.BytesIO()
        Image.new("RGB", (8, 8)).save(content, name)
        assert sniff_mime_type(content.getvalue()[:512])[0] == kind


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\n",
        b"<?xml version='1.0'?><MPD/>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x7fELF" + b"\0" * 300,
        b"\0\0\0\x1cftypavif" + b"\0" * 300,
        b"PK\x03\x04" + b"\0" * 300,
    ],
)
def test_play_lists_scripts_and_other_files_are_refused(content):
    with pytest.raises(UnfitError):
        sniff_mime_type(content)


# -- uploaded files ----------------------------------------------------------------------------------------------------
def upload(store, content, owner="me", name="clip.mp4"):
    with store.new(name, owner) as one:
        for i in range(0, len(content), 1000):
            one.write(content[i : i + 1000])
        return one.finish()


def test_files_stay_until_their_time_is_over(path, tmp_path):
    content = path.read_bytes()
    store = FileStore(tmp_path / "s", FileLimits(keep_seconds=3600))
    file = upload(store, content)
    assert file.path.read_bytes() == content
    assert (file.kind, file.mime, file.bytes) == ("video", "video/mp4", len(content))
    assert store.get(file.id, "me") == file
    with pytest.raises(NotFoundError):
        store.get(file.id, "somebody else")
    with pytest.raises(NotFoundError):
        store.remove(file.id, "somebody else")
    with pytest.raises(ValueError, match="another server"):
        FileStore(tmp_path / "s", FileLimits())
    # A server that was killed leaves half a file and one that was never finished.
    (tmp_path / "s" / "parts" / ("0" * 32)).write_bytes(b"x")
    (tmp_path / "s" / "files" / f"file-{'1' * 24}").write_bytes(b"x")
    (tmp_path / "s" / "files" / f"file-{'2' * 24}.json").write_text("{")
    store.close()
    again = FileStore(tmp_path / "s", FileLimits(keep_seconds=3600))
    assert again.list("me") == [file]
    assert {p.name for p in (tmp_path / "s").rglob("*") if p.is_file()} == {MARKER, file.id, f"{file.id}.json"}
    again.close()
    meta = tmp_path / "s" / "files" / f"{file.id}.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "expires_at": time.time() - 1}))
    last = FileStore(tmp_path / "s", FileLimits())
    assert last.list("me") == []
    assert {p.name for p in (tmp_path / "s").rglob("*") if p.is_file()} == {MARKER}
    last.close()


def test_bytes_of_files_are_bounded(path, tmp_path):
    content = path.read_bytes()
    store = FileStore(tmp_path / "s", FileLimits(file_bytes=len(content), total_bytes=2 * len(content)))
    with pytest.raises(TooLargeError, match="larger than"):
        upload(store, content + b"x")
    with pytest.raises(UnfitError):
        upload(store, b"no video")
    first, _ = upload(store, content), upload(store, content)
    with pytest.raises(TooLargeError, match="storage is full"):
        upload(store, content)
    store.remove(first.id, "me")
    upload(store, content)
    assert not list((tmp_path / "s" / "parts").iterdir())
    assert len(list((tmp_path / "s" / "files").iterdir())) == 4
    store.close()


def test_nothing_is_deleted_that_the_store_did_not_make(path, tmp_path):
    """A folder of other things is refused; strange names and links inside an own folder stay, and are not served."""
    photos = tmp_path / "photos"
    (photos / "parts").mkdir(parents=True)
    (photos / "parts" / "holiday.mp4").write_bytes(b"x")
    with pytest.raises(ValueError, match="neither empty nor a folder of uploads"):
        FileStore(photos, FileLimits())
    assert (photos / "parts" / "holiday.mp4").read_bytes() == b"x"
    (tmp_path / "link").symlink_to(photos)
    with pytest.raises(ValueError, match="not a plain folder"):
        FileStore(tmp_path / "link", FileLimits())

    store = FileStore(tmp_path / "s", FileLimits())
    file = upload(store, path.read_bytes())
    store.close()
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * file.bytes)
    linked = tmp_path / "s" / "files" / f"file-{'1' * 24}"
    linked.symlink_to(secret)
    meta = json.loads((tmp_path / "s" / "files" / f"{file.id}.json").read_text())
    linked.with_suffix(".json").write_text(json.dumps({**meta, "id": linked.name}))
    for name in ("files/notes.txt", "parts/notes.txt"):
        (tmp_path / "s" / name).write_text("mine")
    again = FileStore(tmp_path / "s", FileLimits())
    assert again.list("me") == [file]
    assert linked.is_symlink()
    assert secret.exists()
    assert [(tmp_path / "s" / name).read_text() for name in ("files/notes.txt", "parts/notes.txt")] == ["mine"] * 2
    again.close()
    parts = tmp_path / "s" / "parts"
    (parts / "notes.txt").rename(tmp_path / "notes.txt")
    parts.rmdir()
    parts.symlink_to(photos / "parts")
    with pytest.raises(ValueError, match="not a plain folder"):
        FileStore(tmp_path / "s", FileLimits())


# -- addresses ---------------------------------------------------------------------------------------------------------
PUBLIC = "93.184.215.14"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        (PUBLIC, True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("192.0.0.192", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        (f"::ffff:{PUBLIC}", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::a00:1", False),
        ("::127.0.0.1", False),
        ("fec0::1", False),  # site-local: private before fd00::/8 was
        ("2001:db8::1", False),  # for documentation, as is the next
        ("3fff::1", False),
        ("2001:20::1", False),
        ("100::1", False),
        ("5f00::1", False),
        ("192.88.99.1", False),
    ],
)
def test_public_addresses(address, public):
    assert is_public(address) is public


@pytest.fixture
def other(path):
    """Another server, on loopback; `FetchPolicy` believes that it has the public address."""
    content = path.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.headers["Host"], self.path))
            name, _, argument = self.path[1:].partition("?")
            if name == "slow-head":  # a header that never ends, byte by byte
                self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
                while not stop.wait(0.05):
                    try:
                        self.wfile.write(b"x")
                    except OSError:
                        return
                return
            if name == "to":
                self.send_response(302)
                self.send_header("Location", argument)
                self.end_headers()
                return
            self.send_response(200 if name != "missing" else 404)
            if name in ("clip", "cut"):
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if name == "endless":
                while not stop.wait(0.0):
                    try:
                        self.wfile.write(content)
                    except OSError:
                        return
            elif name == "slow":
                while not stop.wait(0.1):
                    try:
                        self.wfile.write(b"x")
                    except OSError:
                        return
            else:
                self.wfile.write(content[: len(content) // 2] if name == "cut" else content)

        def log_message(self, *args):
            pass

    seen, stop = [], threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_address[1], seen, content
    stop.set()
    server.shutdown()
    server.server_close()


class World:
    """A made-up internet: what names mean, one answer per look-up, and every address that was connected to."""

    def __init__(self, port, **names):
        self.port, self.names, self.connected = port, names, []

    def look_up(self, host, port, type):
        answers = self.names.get(host.replace(".", "_").replace("-", "_"), [PUBLIC])
        answer = answers.pop(0) if isinstance(answers[0], list) else answers
        return [(socket.AF_INET, type, 6, "", (address, port)) for address in answer]

    def connect(self, address, timeout):
        self.connected.append(address)
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def remote(self, **fields):
        hosts = fields.pop("hosts", ["a.example", "*.b.example"])
        return FetchPolicy(hosts=hosts, look_up=self.look_up, connect=self.connect, timeout=30.0, **fields)


def test_allowed_hosts_are_fetched(other):
    port, seen, content = other
    world = World(port)
    for url in (
        "http://a.example/clip",
        "http://x.b.example/other?q=1",
        "http://A.Example:80/to?http://x.b.example/clip",
    ):
        parts = []
        fetch(url, parts.append, world.remote())
        assert b"".join(parts) == content
    assert [host for host, _ in seen] == ["a.example", "x.b.example", "a.example", "x.b.example"]
    assert set(world.connected) == {(PUBLIC, 80)}


@pytest.mark.parametrize(
    "url",
    [
        "http://c.example/clip",
        "http://b.example/clip",
        "http://a.example.evil.example/clip",
        "http://a.example@c.example/clip",
        "http://user:secret@a.example/clip",
        "http://a.example:22/clip",
        "http://a.example:99999/clip",
        "http://[::1/clip",
        "http://127.0.0.1/clip",
        "http://2130706433/clip",
        "file:///etc/passwd",
        "ftp://a.example/clip",
        "gopher://a.example/clip",
        "/etc/passwd",
        "//a.example/clip",
        "http:///clip",
        "http://a.example/to?http://c.example/clip",
        "http://a.example/to?file:///etc/passwd",
        "http://a.example/to?http://127.0.0.1/clip",
        "http://a.example/to?http://inside.b.example/clip",
        "http://inside.b.example/clip",
        "http://mixed.b.example/clip",
        "http://rebound.b.example/to?http://rebound.b.example/clip",
        "http://a.example/\r\nHost: inside",
        "http://a.example/cl ip",
        "http://xn--\udc80.b.example/",
    ],
)
def test_forbidden_addresses_are_never_connected_to(other, url):
    """Literals, names that mean private addresses, one of several, names that change between look-ups, redirects."""
    port, _, _ = other
    names = {"inside_b_example": ["10.0.0.1"], "mixed_b_example": [PUBLIC, "127.0.0.1"]}
    world = World(port, **names, rebound_b_example=[[PUBLIC], ["127.0.0.1"]])
    parts = []
    with pytest.raises(ForbiddenError):
        fetch(url, parts.append, world.remote())
    assert parts == []
    assert set(world.connected) <= {(PUBLIC, 80)}
    with pytest.raises(ForbiddenError):  # nothing is allowed unless it is named
        fetch(url, parts.append, FetchPolicy())


def test_size_time_and_redirects_are_bounded(other):
    port, _, content = other
    world = World(port)
    for url in ("http://a.example/clip", "http://a.example/endless"):
        with pytest.raises(TooLargeError):
            fetch(url, lambda chunk: None, world.remote(max_bytes=len(content) - 1))
    with pytest.raises(UnfitError, match="redirects"):
        fetch("http://a.example/to?/to?/to?/to?/clip", lambda chunk: None, world.remote())
    with pytest.raises(UnfitError, match="connection lost after"):  # half a video was taken for the whole
        fetch("http://a.example/cut", lambda chunk: None, world.remote())
    with pytest.raises(UnfitError, match="404"):
        fetch("http://a.example/missing", lambda chunk: None, world.remote())
    slow = FetchPolicy(hosts=["a.example"], look_up=world.look_up, connect=world.connect, timeout=0.6)
    for name in ("slow", "slow-head"):
        with pytest.raises(UnfitError, match="timed out"):
            fetch(f"http://a.example/{name}", lambda chunk: None, slow)
    hung = threading.Event()
    late = replace(slow, look_up=lambda *_, **__: hung.wait(30) and [])
    with pytest.raises(UnfitError, match="timed out"):
        fetch("http://a.example/clip", lambda chunk: None, late)
    hung.set()
