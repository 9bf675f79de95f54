"""Protects streaming: the frames of `read_video`, in constant memory, from files, pipes, networks and growing files;
stalls, jumps, changes of size and lost connections are told and survived."""

import contextlib
import functools
import gc
import http.server
import os
import threading
import time
import weakref
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from media import frames_alive, paint_number, read_number, set_display_matrix, write_video
from videopanda.video import stream, stream_input
from videopanda.video.read import VideoReadError, read_video
from videopanda.video.stream import stream_video


def numbers(stream) -> list[int]:
    return [read_number(frame.image) for frame in stream]


@pytest.mark.parametrize(("name", "fps"), [("a.mp4", 2), ("a.mkv", 1), ("a.mp4", 3.7), ("a.ts", 2), ("a.mp4", 90)])
def test_a_stream_gives_the_frames_of_read_video(tmp_path, name, fps):
    path = write_video(tmp_path / name, range(75), fps=25)
    with stream_video(path, fps=fps) as stream:
        frames = list(stream)
    video = read_video(path, fps=fps)
    assert [frame.index for frame in frames] == video.indices.tolist()
    assert np.array_equal(np.stack([frame.image for frame in frames]), video.frames)
    np.testing.assert_allclose([frame.time for frame in frames], video.times, atol=1e-9)
    assert not stream.notes


def test_every_frame_and_folders(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(12), fps=25)
    assert numbers(stream_video(path, fps=None)) == list(range(12))
    (tmp_path / "folder").mkdir()
    for number in range(5):
        Image.fromarray(paint_number(number)).save(tmp_path / "folder" / f"{number}.png")
    assert numbers(stream_video(tmp_path / "folder", fps=1, image_fps=2)) == [0, 2, 4]


@pytest.mark.parametrize("suffix", ["webp", "png", "avif", "gif"])
def test_animations_and_pictures(tmp_path, suffix):
    images = [Image.fromarray(paint_number(number)) for number in range(4)]
    images[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=images[1:], duration=[100, 400, 50, 200])
    frames = list(stream_video(tmp_path / f"a.{suffix}", fps=None))
    assert [read_number(frame.image) for frame in frames] == [0, 1, 2, 3]
    np.testing.assert_allclose([frame.time for frame in frames], [0, 0.1, 0.5, 0.55])
    images[3].save(tmp_path / f"one.{suffix}")
    assert numbers(stream_video(tmp_path / f"one.{suffix}", fps=None)) == [3]


def test_a_picture_that_lasts_is_no_leap_of_the_clock(tmp_path):
    """Slides, screen recordings and time lapses: only broadcast formats leap."""
    times = [0, 100, 30_000, 90_000]
    for name in ("a.mp4", "a.mkv"):
        path = write_video(tmp_path / name, range(4), pts=times, time_base=Fraction(1, 1000))
        with stream_video(path, fps=None) as stream:
            np.testing.assert_allclose([frame.time for frame in stream], np.array(times) / 1000, atol=1e-3)
        assert not stream.notes


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.flv"])
def test_a_picture_is_shown_at_every_moment_that_it_lasts(tmp_path, name):
    """A variable frame rate: no moment of a long gap is left out, and none follows the end."""
    path = write_video(tmp_path / name, range(6), pts=[0, 100, 200, 5000, 5100, 9000], time_base=Fraction(1, 1000))
    for fps in (0.7, 2, 12):
        with stream_video(path, fps=fps) as stream:
            frames = list(stream)
        video = read_video(path, fps=fps)
        assert [frame.index for frame in frames] == video.indices.tolist()
        np.testing.assert_allclose([frame.time for frame in frames], video.times, atol=1e-9)


def test_an_animation_ends_with_its_last_picture(tmp_path):
    images = [Image.fromarray(paint_number(number)) for number in range(4)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[100, 2400, 50, 900])
    frames = list(stream_video(tmp_path / "a.gif", fps=4))
    assert [frame.index for frame in frames] == read_video(tmp_path / "a.gif", fps=4).indices.tolist()


def test_nothing_is_shown_for_the_time_without_a_connection():
    """Nobody knows what happened then."""
    shown = [
        stream._Frame(lambda: np.zeros(0), time, k, 0.0, is_resumed=time == 8) for k, time in enumerate([0, 1, 2, 8, 9])
    ]
    frames = list(stream._at_rate(iter(shown), 2, 0.0))
    assert [frame.time for frame in frames] == [0, 0.5, 1, 1.5, 2, 2.5, 8, 8.5, 9, 9.5]


def test_an_avi_with_b_frames_is_counted(tmp_path):
    """Its packets are numbered in the order of decoding."""
    path = write_video(tmp_path / "a.avi", range(20), fps=10, bf="2", preset="medium")
    frames = list(stream_video(path, fps=None))
    assert [read_number(frame.image) for frame in frames] == list(range(20))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(20) / 10, atol=1e-9)


def test_a_stream_is_not_read_ahead(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(2000), fps=25, g="25")
    with stream_video(path, fps=None) as stream:
        first = [next(stream) for _ in range(3)]
        assert [frame.index for frame in first] == [0, 1, 2]
    with pytest.raises(StopIteration):
        next(stream)


def test_a_pipe_and_a_growing_file(tmp_path):
    data = write_video(tmp_path / "a.ts", range(50), fps=25).read_bytes()
    pipe, grown = tmp_path / "pipe", tmp_path / "grown.ts"
    os.mkfifo(pipe)
    grown.write_bytes(data[: len(data) // 3])

    def feed(path, start):
        with open(path, "ab") as file:
            for at in range(start, len(data), len(data) // 4):
                file.write(data[at : at + len(data) // 4])
                file.flush()
                time.sleep(0.5)

    for path, start in ((pipe, 0), (grown, len(data) // 3)):
        feeder = threading.Thread(target=feed, args=(path, start))
        feeder.start()
        told = []
        with stream_video(
            path, fps=None, follow=path == grown, stall_seconds=0.2, give_up_seconds=1.5, on_note=told.append
        ) as stream:
            assert numbers(stream) == list(range(50))
        feeder.join()
        assert "stall" in [note.kind for note in told]
        assert ("end" in [note.kind for note in told]) == (path == grown)


def joined(path, *parts):
    """Streams of one container after another, with the clock and the size of each."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def test_a_clock_that_jumps_and_a_size_that_changes_are_told(tmp_path):
    one = write_video(tmp_path / "1.ts", range(25), fps=25)
    two = write_video(tmp_path / "2.ts", range(25, 50), fps=25)
    with stream_video(joined(tmp_path / "back.ts", one, two), fps=None) as stream:
        frames = list(stream)
    assert [note.kind for note in stream.notes] == ["jump"]
    assert [read_number(frame.image) for frame in frames] == list(range(50))
    times = [frame.time for frame in frames]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(49 / 25, abs=0.05)
    large = write_video(tmp_path / "3.ts", range(25, 50), fps=25, size=(128, 96), pts=range(25, 50),
                        time_base=Fraction(1, 25))  # fmt: skip
    with stream_video(joined(tmp_path / "size.ts", one, large), fps=None) as stream:
        sizes = [frame.image.shape[:2] for frame in stream]
    assert sizes == [(48, 64)] * 25 + [(96, 128)] * 25
    assert "size" in [note.kind for note in stream.notes]


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/away"):
            self.send_response(302)
            self.send_header("Location", "http://elsewhere.example/a.ts")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_http_and_hls_from_allowed_hosts_only(tmp_path, server):
    write_video(tmp_path / "a.ts", range(50), fps=25)
    (tmp_path / "a.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\na.ts\n#EXT-X-ENDLIST\n")
    (tmp_path / "bad.m3u8").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nhttp://elsewhere.example/a.ts\n#EXT-X-ENDLIST\n"
    )
    for name in ("a.ts", "a.m3u8"):
        with stream_video(f"{server}/{name}", fps=None, hosts=["127.0.0.1"]) as stream:
            assert numbers(stream) == list(range(50)), name
    with pytest.raises(ValueError, match="not allowed"):
        stream_video(f"{server}/a.ts")
    with pytest.raises(ValueError, match="only http, https and rtsp"):
        stream_video("concat://a", hosts=["a"])
    short = {"hosts": ["127.0.0.1"], "stall_seconds": 0.2, "give_up_seconds": 0.2}
    for name in ("away", "bad.m3u8"):
        with pytest.raises((VideoReadError, ValueError)):
            numbers(stream_video(f"{server}/{name}", **short))


class Flaky(http.server.SimpleHTTPRequestHandler):
    """Breaks off after a third of what was asked for; with parts of files, or without."""

    gives_parts, asked = True, []

    def do_GET(self):
        data = Path(self.translate_path(self.path)).read_bytes()
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        at = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.send_response(206 if wanted and self.gives_parts else 200)
        if self.gives_parts:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - at))
        self.end_headers()
        self.wfile.write(data[at : at + len(data) // 3 + 1])

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("gives_parts", [True, False])
def test_a_lost_connection_to_a_file_is_continued_or_told_and_never_an_end(tmp_path, gives_parts, monkeypatch):
    monkeypatch.setattr(Flaky, "gives_parts", gives_parts)
    monkeypatch.setattr(Flaky, "asked", [])
    monkeypatch.setattr(stream_input, "FIRST_PAUSE", 0.05)
    write_video(tmp_path / "a.ts", range(100), fps=25)
    handler = functools.partial(Flaky, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/a.ts"
        with stream_video(url, fps=None, hosts=["127.0.0.1"], stall_seconds=2, give_up_seconds=5) as frames:
            seen = numbers(frames)
        running.shutdown()
    assert len(set(Flaky.asked)) == len(Flaky.asked)  # nothing is fetched twice
    if gives_parts:
        assert seen == list(range(100))
        assert [note.kind for note in frames.notes] == ["reconnect", "reconnect"]
    else:
        assert 0 < len(seen) < 60
        assert [note.kind for note in frames.notes] == ["end"]
        assert "connection lost after" in frames.notes[0].text


class Chunked(http.server.SimpleHTTPRequestHandler):
    """Says no length and breaks off before the end; the next time it gives the same again, or what follows."""

    protocol_version, is_live, asked = "HTTP/1.1", False, 0

    def do_GET(self):
        data = Path(self.translate_path(self.path)).read_bytes()
        at = len(data) // 3 // 188 * 188 * type(self).asked * self.is_live
        type(self).asked += 1
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        part = data[at : at + len(data) // 3]
        self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        if self.is_live and at + len(part) >= len(data) - 600:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("is_live", [False, True])
def test_a_file_that_comes_again_from_its_start_is_not_shown_twice(tmp_path, is_live, monkeypatch):
    monkeypatch.setattr(Chunked, "is_live", is_live)
    monkeypatch.setattr(Chunked, "asked", 0)
    monkeypatch.setattr(stream, "FIRST_PAUSE", 0.05)
    path = write_video(tmp_path / "a.ts", range(250), fps=25, size=(320, 240), g="1")
    monkeypatch.setattr(stream_input, "_BEGINNING_BYTES", 2**15)
    assert path.stat().st_size > 3 * 2**15
    handler = functools.partial(Chunked, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/a.ts"
        with stream_video(url, fps=None, hosts=["127.0.0.1"], stall_seconds=2, give_up_seconds=5) as frames:
            seen = numbers(frames)
        running.shutdown()
    assert seen == sorted(set(seen))
    kinds = [note.kind for note in frames.notes]
    if is_live:
        assert kinds.count("reconnect") == 2
        assert len(seen) > 150
    else:
        assert kinds == ["reconnect", "end"]
        assert "sends the video from its start again" in frames.notes[1].text
        assert 30 < len(seen) < 100


def test_a_pipe_that_stays_silent_ends_once(tmp_path):
    data, pipe = write_video(tmp_path / "a.ts", range(50), fps=25).read_bytes(), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)  # stays open
    os.write(writer, data[:60000])
    try:
        with stream_video(pipe, fps=None, stall_seconds=0.1, give_up_seconds=0.4) as frames:
            assert numbers(frames)
    finally:
        os.close(writer)
    assert [note.kind for note in frames.notes] == ["stall", "end"]


@pytest.mark.parametrize("waits", [1, 2, 3, 5])
def test_ctrl_c_ends_the_wait_for_data(tmp_path, monkeypatch, waits):
    """FFmpeg swallows it: the source would go on waiting."""
    path = write_video(tmp_path / "a.ts", range(100), fps=25)
    select, calls = stream_input.select.select, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == waits:
            raise KeyboardInterrupt
        return select(*arguments)

    monkeypatch.setattr(stream_input.select, "select", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        stream_video(path, follow=True, fps=None, stall_seconds=0.1, give_up_seconds=0.3) as frames,
    ):
        list(frames)
    assert len(calls) == waits


def test_a_dead_source_is_given_up_with_a_reason(tmp_path):
    told = []
    with pytest.raises(VideoReadError, match=r"no frame for 0\.6 s"):
        list(stream_video("http://127.0.0.1:9/a.ts", hosts=["127.0.0.1"], give_up_seconds=0.6, on_note=told.append))
    assert {note.kind for note in told} == {"reconnect"}
    with pytest.raises(VideoReadError, match="No such file"):
        stream_video(tmp_path / "missing.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoReadError):
        list(stream_video(tmp_path / "text.mp4"))
    with pytest.raises(ValueError, match="fps must be"):
        stream_video(tmp_path / "text.mp4", fps=0)


def test_a_frame_that_is_shown_several_times_is_converted_once(tmp_path, monkeypatch):
    converted, convert = [], stream.to_rgb
    monkeypatch.setattr(stream, "to_rgb", lambda frame, color: converted.append(frame.pts) or convert(frame, color))
    path = write_video(tmp_path / "a.mp4", range(10), fps=5)
    with stream_video(path, fps=20) as frames:
        assert [frame.index for frame in frames] == [number // 4 for number in range(40)]
    assert len(converted) == len(set(converted)) == 10


def test_frames_are_freed_at_once(tmp_path):
    """Also those that are turned, whose side data are read one by one."""
    path = write_video(tmp_path / "a.mp4", range(30))
    set_display_matrix(path, (0, 1, -1, 0))
    gc.collect()
    gc.disable()
    try:
        with stream_video(path, fps=None) as stream:
            assert sum(1 for _ in stream) == 30
        kept = frames_alive()
    finally:
        gc.enable()
    assert kept == 0


class Parts(http.server.SimpleHTTPRequestHandler):
    """Gives parts of files, or only whole ones; `version` is that of the file."""

    gives_parts, asked, versions = True, [], ["a"]

    def do_GET(self):
        data, wanted = Path(self.translate_path(self.path)).read_bytes(), self.headers.get("Range")
        self.asked.append(wanted)
        at = int(wanted[6:-1]) if wanted and self.gives_parts else 0
        self.send_response(206 if wanted and self.gives_parts else 200)
        self.send_header("ETag", self.versions[min(len(self.asked), len(self.versions)) - 1])
        if self.gives_parts:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {at}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - at))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data[at:])

    def log_message(self, *args):
        pass


@pytest.fixture
def parts(tmp_path, monkeypatch):
    monkeypatch.setattr(Parts, "asked", [])
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Parts, directory=str(tmp_path))
    ) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


SHORT = {"hosts": ["127.0.0.1"], "stall_seconds": 1, "give_up_seconds": 1}


def write_index_last(path: Path) -> None:
    """An MP4 of 100 frames, its index behind a gap of 1 MiB, so that it is not read by chance."""
    data = write_video(path, range(100), fps=25).read_bytes()
    index = data.index(b"moov") - 4
    path.write_bytes(data[:index] + (1 << 20).to_bytes(4, "big") + b"free" + bytes((1 << 20) - 8) + data[index:])


def test_an_mp4_whose_index_is_at_its_end_is_streamed_if_the_server_gives_parts(tmp_path, parts, monkeypatch):
    """It was fetched again and again, and then given up."""
    write_index_last(tmp_path / "a.mp4")
    with stream_video(f"{parts}/a.mp4", fps=None, **SHORT) as frames:
        assert numbers(frames) == list(range(100))
    assert not frames.notes
    assert 1 < len(Parts.asked) <= 4
    monkeypatch.setattr(Parts, "gives_parts", False)
    Parts.asked.clear()
    with pytest.raises(VideoReadError, match=r"index may be at its end.*faststart"):
        numbers(stream_video(f"{parts}/a.mp4", fps=None, **SHORT))
    assert len(Parts.asked) == 1


def test_a_file_that_changes_on_the_server_is_never_mixed_with_another(tmp_path, parts, monkeypatch):
    write_index_last(tmp_path / "a.mp4")
    monkeypatch.setattr(Parts, "versions", ["a", "b"])
    with pytest.raises(VideoReadError, match="changed"):
        numbers(stream_video(f"{parts}/a.mp4", fps=None, **SHORT))


def test_what_is_no_video_or_no_address_is_told_at_once(tmp_path, parts):
    (tmp_path / "a.html").write_text("<html>nothing here</html>")
    with pytest.raises(VideoReadError):
        numbers(stream_video(f"{parts}/a.html", **SHORT))
    assert len(Parts.asked) == 1
    with pytest.raises(ValueError, match="must be percent-encoded"):
        stream_video(f"{parts}/a b.mp4", **SHORT)


@pytest.mark.parametrize(("start", "fps"), [(0.5, 2), (1.02, 3), (0.1, 10), (6.0, 1)])
def test_a_stream_that_begins_later_gives_the_frames_of_read_video(tmp_path, start, fps):
    path = write_video(tmp_path / "a.mp4", range(5), pts=[0, 100, 1000, 1050, 5000], time_base=Fraction(1, 1000))
    frames = list(stream_video(path, fps=fps, start=start))
    video = read_video(path, fps=fps, start=start) if start < 6 else None
    assert [frame.index for frame in frames] == ([] if video is None else video.indices.tolist())
    if video is not None:
        np.testing.assert_allclose([frame.time for frame in frames], video.times, atol=1e-9)
    every = [frame.time for frame in stream_video(path, fps=None, start=start)]
    assert every == [moment for moment in (0, 0.1, 1, 1.05, 5) if moment >= start]


def test_the_segments_of_a_playlist_are_closed_when_they_are_read(tmp_path, parts, monkeypatch):
    """Memory grew with every segment of an endless one."""
    downloads = weakref.WeakSet()

    class Download(stream_input.Download):
        def __init__(self, *args):
            super().__init__(*args)
            downloads.add(self)

    monkeypatch.setattr(stream, "Download", Download)
    for number in range(6):
        write_video(tmp_path / f"{number}.ts", range(10 * number, 10 * number + 10), fps=10)
    lines = "".join(f"#EXT-X-DISCONTINUITY\n#EXTINF:1,\n{number}.ts\n" for number in range(6))
    (tmp_path / "a.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n{lines}#EXT-X-ENDLIST\n")
    with stream_video(f"{parts}/a.m3u8", fps=None, **SHORT) as frames:
        kept = [len(downloads) for _ in frames]
    assert len(kept) == 60  # FFmpeg ended the process at the second segment
    assert max(kept) <= 4


def test_pictures_that_show_damage_are_told(tmp_path):
    """As `read_video` refuses them; MPEG-4 and MPEG-2 give them without an error."""
    path = write_video(tmp_path / "a.mkv", range(100), fps=25, size=(320, 240), codec="mpeg4", g="12")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 60] = np.random.default_rng(0).bytes(60)
    path.write_bytes(data)
    with pytest.raises(VideoReadError, match="damaged at"):
        read_video(path, fps=25)
    with stream_video(path, fps=25) as frames:
        assert len(list(frames)) == 100
    assert [note.kind for note in frames.notes] == ["damage"] * len(frames.notes) != []
