"""Protects `read_video`: the frame that is returned is the one shown at the time asked for, or there is an error.

The videos are written here, with the number of each frame painted into it; `test_video_clips.py` reads those of others.
"""

import io
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from media import paint_number, read_number, read_numbers, set_display_matrix, write_audio, write_video
from videopanda.video import timeline as _timeline
from videopanda.video.read import Video, VideoReadError, read_video, released_frame_indices, uniform_times
from videopanda.video.torchcodec import load as load_torchcodec

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "frame_sampling.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    """10 s at 30 frames per second with B-frames and one keyframe in 100."""
    return write_video(folder / "clip.mp4", range(300), bf="3", g="100", preset="veryfast")


@pytest.fixture(scope="module")
def hour(folder: Path) -> Path:
    """One hour at one frame per second, a keyframe per minute; all frames together would take 207 MB."""
    return write_video(folder / "hour.mp4", range(3600), fps=1, size=(160, 120), g="60", tune="zerolatency")


def read(source, **arguments) -> Video:
    arguments.setdefault("decoder", "pyav")
    return read_video(source, **arguments)


# --- which frames ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [row for row in GOLDEN if row["positions"] is not None])
def test_released_rule_equals_the_released_code(row):
    assert released_frame_indices(row["num_frames"], row["avg_fps"], row["max_frames"]) == row["positions"]


def test_released_rule_where_the_released_code_fails():
    assert released_frame_indices(1, 30) == [0]
    assert released_frame_indices(20, 0.5) == [0, 2, 5, 8, 10, 13, 16, 19]  # stride 1, thinned like any other clip
    with pytest.raises(ValueError, match="at least one frame"):
        released_frame_indices(0, 30)


@given(n=st.integers(1, 5000), fps=st.floats(0.1, 240), most=st.integers(1, 64), least=st.integers(1, 64))
def test_released_rule_gives_frames_that_exist_once_and_in_order(n, fps, most, least):
    indices = released_frame_indices(n, fps, most, least)
    assert 1 <= len(indices) <= most
    assert indices == sorted(set(indices))
    assert 0 <= indices[0] <= indices[-1] < n


def test_uniform_times_are_middles():
    assert uniform_times(1.0, 3.0, 4) == [1.25, 1.75, 2.25, 2.75]


def test_uniform(clip):
    video = read(clip, num_frames=5)
    assert read_numbers(video.frames) == video.indices.tolist() == [30, 90, 150, 210, 270]
    assert video.frames.shape == (5, 48, 64, 3)
    assert video.frames.dtype == np.uint8
    np.testing.assert_allclose(video.timestamps, [1, 3, 5, 7, 9])
    assert (video.source_fps, video.duration, video.width, video.height) == (30, 10, 64, 48)
    assert (video.start, video.end, video.indices_exact) == (0, 10, True)
    assert (video.decoder, video.decoder_version) == ("pyav", av.__version__)


def test_a_short_clip_repeats_frames(folder):
    video = read(write_video(folder / "three.mp4", range(3), fps=10), num_frames=6)
    assert read_numbers(video.frames) == video.indices.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_allclose(video.times, [0.025, 0.075, 0.125, 0.175, 0.225, 0.275])
    np.testing.assert_allclose(video.timestamps, [0, 0, 0.1, 0.1, 0.2, 0.2])
    one = read(write_video(folder / "one.mp4", [7], fps=10), num_frames=2)
    assert read_numbers(one.frames) == [7, 7]


def test_fps_and_range(clip):
    assert read_numbers(read(clip, fps=2).frames) == list(range(0, 300, 15))
    video = read(clip, fps=10, start=2.0, end=2.5)
    assert read_numbers(video.frames) == [60, 63, 66, 69, 72]
    assert (video.start, video.end) == (2.0, 2.5)
    assert read_numbers(read(clip, num_frames=2, start=9).frames) == [277, 292]
    assert read(clip, num_frames=1, end=99).end == 10
    assert read_numbers(read(clip, fps=30, start=5, end=6).frames) == list(range(150, 180))


def test_timestamps_in_any_order(clip):
    video = read(clip, timestamps=[9.99, 0.0, 3.34, 3.34, 10.0])
    assert read_numbers(video.frames) == video.indices.tolist() == [299, 0, 100, 100, 299]
    again = read(clip, timestamps=video.timestamps.tolist())
    assert again.indices.tolist() == video.indices.tolist()


def test_released_sampling_of_a_file(clip):
    video = read(clip, num_frames=8, sampling="released")
    assert read_numbers(video.frames) == released_frame_indices(300, 30) == [0, 30, 60, 90, 150, 180, 210, 270]
    part = read(clip, num_frames=8, sampling="released", start=1.0, end=1.5)
    assert read_numbers(part.frames) == [30 + i for i in released_frame_indices(15, 30)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"num_frames": 1, "fps": 1}, "exactly one"),
        ({"num_frames": 0}, "num_frames"),
        ({"fps": 0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"timestamps": []}, "one or more"),
        ({"timestamps": [10.5]}, "lasts 10.000 s"),
        ({"timestamps": [-1]}, "outside the video"),
        ({"timestamps": [1], "start": 0}, "cannot be combined with"),
        ({"num_frames": 1, "start": 10}, "lasts only 10.000 s"),
        ({"num_frames": 1, "start": 2, "end": 2}, "later than start"),
        ({"num_frames": 1, "end": -1}, "end must be"),
        ({"num_frames": 1, "max_side": 0}, "max_side"),
        ({"num_frames": 1, "timeout": 0}, "timeout"),
        ({"num_frames": 1, "sampling": "random"}, "sampling"),
        ({"num_frames": 1, "decoder": "decord"}, "decoder"),
        ({"fps": 1, "sampling": "released"}, "needs num_frames"),
        ({"num_frames": 8, "sampling": "released", "start": 0.001, "end": 0.002}, "no frame starts"),
    ],
)
def test_requests_that_make_no_sense(clip, arguments, message):
    with pytest.raises(ValueError, match=message):
        read(clip, **arguments)


# --- containers and codecs ------------------------------------------------------------------------------------------


def test_random_access_gives_the_frame_of_a_full_pass(folder, clip):
    files = [clip]
    for suffix in ("mkv", "ts", "avi"):
        files.append(write_video(folder / f"access.{suffix}", range(120), g="25", bf="2", preset="veryfast"))
    open_gop = {"x264-params": "open-gop=1:keyint=20:bframes=3:b-adapt=0", "preset": "veryfast", "bf": "3"}
    files.append(write_video(folder / "open.mp4", range(120), **open_gop))
    refresh = {"x264-params": "intra-refresh=1:keyint=20", "preset": "veryfast"}
    files.append(write_video(folder / "refresh.mp4", range(120), **refresh))
    for path in files:
        everything = read(path, fps=30)
        assert read_numbers(everything.frames) == everything.indices.tolist() == list(range(len(everything)))
        for index in (0, 1, 19, 20, 21, 59, 77, 101, 119):
            video = read(path, timestamps=[index / 30])
            assert video.indices.tolist() == [index], (path.name, index)
            assert np.array_equal(video.frames[0], everything.frames[index]), (path.name, index)


def test_variable_frame_rate(folder):
    pts = [0, 40, 50, 500, 510, 1500, 1501, 3000]
    path = write_video(folder / "vfr.mp4", range(8), pts=pts, time_base=Fraction(1, 1000), bf="2", preset="veryfast")
    video = read(path, timestamps=[0, 0.039, 0.04, 0.3, 0.505, 1.2, 1.5005, 2.9, 3.0])
    assert read_numbers(video.frames) == video.indices.tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(video.timestamps, np.array([0, 0, 40, 50, 500, 510, 1500, 1501, 3000]) / 1000)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_time_starts_at_the_first_frame(folder, suffix):
    pts = [300 + k for k in range(60)]
    path = write_video(folder / f"late.{suffix}", range(60), pts=pts, time_base=Fraction(1, 30), bf="2")
    video = read(path, timestamps=[0, 1.0, 59 / 30])
    assert read_numbers(video.frames) == video.indices.tolist() == [0, 30, 59]
    np.testing.assert_allclose(video.timestamps, [0, 1, 59 / 30], atol=1e-3)  # Matroska rounds to a millisecond
    assert video.duration == pytest.approx(2, abs=2e-3)


@pytest.mark.parametrize("matrix", [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, 1, -1, 0), (0, -1, 1, 0)])
def test_turned_pictures(folder, clip, matrix):
    path = folder / "turned.mp4"
    path.write_bytes(clip.read_bytes())
    set_display_matrix(path, matrix)
    stored, video = read(clip, num_frames=2), read(path, num_frames=2)
    a, b, _, d = matrix
    expected = stored.frames if a else np.rot90(stored.frames, 1 if b < 0 else -1, axes=(1, 2))
    expected = expected[:, :: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    assert np.array_equal(video.frames, expected)
    assert (video.height, video.width) == expected.shape[1:3]


def test_turned_and_mirrored_pictures(folder, clip):
    path = folder / "mirrored.mp4"
    path.write_bytes(clip.read_bytes())
    set_display_matrix(path, (0, 1, 1, 0))
    assert np.array_equal(read(path, num_frames=1).frames, read(clip, num_frames=1).frames.transpose(0, 2, 1, 3))


@pytest.mark.parametrize(
    ("size", "pix_fmt", "codec", "suffix"),
    [
        ((65, 49), "yuv444p", "libx264", "mp4"),
        ((64, 48), "yuv420p10le", "libx264", "mkv"),
        ((61, 47), "yuv420p", "libvpx-vp9", "webm"),
        ((64, 48), "yuv420p", "mpeg4", "avi"),
        ((64, 48), "yuvj420p", "mjpeg", "mov"),
    ],
)
def test_sizes_and_codecs(folder, size, pix_fmt, codec, suffix):
    options = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx-vp9" else {}
    path = folder / f"{codec}_{pix_fmt}.{suffix}"
    write_video(path, range(20), fps=10, size=size, pix_fmt=pix_fmt, codec=codec, **options)
    video = read(path, num_frames=4)
    assert video.frames.shape == (4, size[1], size[0], 3)
    assert read_numbers(video.frames) == video.indices.tolist() == [2, 7, 12, 17]


def test_gif_keeps_its_delays(folder):
    images = [Image.fromarray(paint_number(k)) for k in range(4)]
    path = folder / "delays.gif"
    images[0].save(path, save_all=True, append_images=images[1:], duration=[100, 500, 50, 350])
    video = read(path, timestamps=[0.0, 0.099, 0.1, 0.599, 0.6, 0.65, 0.99])
    assert read_numbers(video.frames) == [0, 0, 1, 1, 2, 3, 3]
    assert video.duration == pytest.approx(1.0)


def test_max_side(folder, clip):
    assert read(clip, num_frames=1, max_side=64).frames.shape == (1, 48, 64, 3)
    video = read(clip, num_frames=4, max_side=32)
    assert video.frames.shape == (4, 24, 32, 3)
    assert (video.width, video.height) == (64, 48)
    assert read_numbers(video.frames) == video.indices.tolist()
    assert read(clip, num_frames=1, max_side=1).frames.shape == (1, 1, 1, 3)


# --- sources --------------------------------------------------------------------------------------------------------


class OneWay(io.RawIOBase):
    """A binary stream that cannot be rewound."""

    def __init__(self, data: bytes):
        self.rest = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self.rest.readinto(buffer)


def test_bytes_and_file_objects(clip):
    data = clip.read_bytes()
    expected = read(clip, num_frames=3).frames
    with clip.open("rb") as file:
        file.seek(100)
        for source in (data, bytearray(data), memoryview(data), io.BytesIO(data), file, OneWay(data), str(clip)):
            assert np.array_equal(read(source, num_frames=3).frames, expected), type(source)
        assert not file.closed
        assert np.array_equal(read(file, num_frames=3).frames, expected)


def test_names_that_look_like_protocols_and_patterns(folder, clip, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("concat:a.mp4", "frame%03d.mp4", "ünï 한.mp4"):
        Path(name).write_bytes(clip.read_bytes())
        assert read_numbers(read(name, num_frames=1).frames) == [150]


def test_folder_of_images(folder):
    images = folder / "images"
    images.mkdir()
    for k in (10, 9, 1):
        Image.fromarray(paint_number(k)).save(images / f"frame{k}.png")
    (images / "notes.txt").write_text("not an image")
    video = read(images, fps=2, image_fps=2)
    assert read_numbers(video.frames) == [1, 9, 10]  # natural order
    assert (video.duration, video.source_fps, video.decoder) == (1.5, 2, "pillow")
    assert read_numbers(read(images, timestamps=[2.9]).frames) == [10]
    Image.fromarray(paint_number(11, 32, 32)).save(images / "frame11.png")
    with pytest.raises(VideoReadError, match="picture size changes from 64x48 to 32x32"):
        read(images, fps=1)
    (images / "frame2.png").write_bytes((images / "frame1.png").read_bytes()[:60])
    with pytest.raises(VideoReadError, match=r"frame2\.png"):
        read(images, timestamps=[1.0])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_a_still_image_is_a_video_of_one_frame(folder, suffix):
    path = folder / f"still.{suffix}"
    Image.fromarray(paint_number(5)).save(path)
    for source in (path, path.read_bytes()):
        video = read(source, num_frames=1)
        assert (read_numbers(video.frames), video.duration) == ([5], 1.0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_fifo(folder, clip):
    path, fed = folder / "fifo", folder / "fed"
    os.mkfifo(path)
    os.mkfifo(fed)
    started = time.monotonic()
    with pytest.raises(VideoReadError, match=r"timed out after 0\.3 s"):
        read(path, num_frames=1, timeout=0.3)
    assert time.monotonic() - started < 2
    assert not any(thread.name == "read_video" for thread in threading.enumerate())
    writer = threading.Thread(target=lambda: fed.write_bytes(clip.read_bytes()))
    writer.start()
    assert read_numbers(read(fed, num_frames=1).frames) == [150]
    writer.join()


def test_a_file_object_that_hangs(clip):
    class Hanging(io.BytesIO):
        released = threading.Event()

        def read(self, size=-1, /):
            if size > 16:  # the first bytes are looked at before
                self.released.wait(10)
            return super().read(size)

    started = time.monotonic()
    with pytest.raises(VideoReadError, match=r"timed out after 0\.3 s"):
        read(Hanging(clip.read_bytes()), num_frames=1, timeout=0.3)
    assert time.monotonic() - started < 2
    Hanging.released.set()


# --- what cannot be read ----------------------------------------------------------------------------------------------


def test_error_is_one_line_and_can_be_pickled():
    error = pickle.loads(pickle.dumps(VideoReadError("x.mp4", "no video stream")))
    assert str(error) == "cannot read video 'x.mp4': no video stream"
    assert (error.path, error.reason) == ("x.mp4", "no video stream")


def test_unreadable_sources(folder):
    (folder / "none").mkdir()
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "text.mp4").write_text("not a video\n" * 100)
    write_audio(folder / "sound.m4a")
    for source, reason in [
        (folder / "missing.mp4", "No such file"),
        (folder / "none", "the folder has no images"),
        (folder / "zero.mp4", "the file is empty"),
        (folder / "random.mp4", "invalid data"),
        (folder / "text.mp4", "it is a text file"),
        (folder / "sound.m4a", "no video stream"),
        (b"", "the file is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "a damaged image"),
        ("https://example.org/x.mp4", "URLs are not read"),
        (os.devnull, "not a regular file"),
    ]:
        with pytest.raises(VideoReadError, match=reason):
            read(source, num_frames=1)
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(VideoReadError, match="closed file"):
        read(closed, num_frames=1)
    for wrong in (io.StringIO("text"), 3, None):
        with pytest.raises(TypeError, match="binary mode"):
            read(wrong, num_frames=1)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_file_cut_short(folder, suffix):
    options = {"movflags": "faststart"} if suffix == "mp4" else {}
    path = write_video(folder / f"cut.{suffix}", range(300), size=(160, 120), container_options=options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoReadError, match="cut short"):
        read(path, num_frames=8)
    with pytest.raises(VideoReadError, match="cut short"):
        read(path, num_frames=8, sampling="released")
    assert read_numbers(read(path, timestamps=[0, 2.0]).frames) == [0, 60]
    assert read(path, num_frames=2, end=1).duration == pytest.approx(10, abs=0.1)


def test_an_mp4_cut_before_its_index(folder, clip):
    path = folder / "headless.mp4"
    path.write_bytes(clip.read_bytes()[:-6000])
    with pytest.raises(VideoReadError):
        read(path, num_frames=1)


def test_damage_is_an_error_until_the_next_keyframe(folder):
    path = write_video(folder / "damaged.mp4", range(150), g="50", size=(160, 120))
    with av.open(str(path)) as container:
        packet = next(
            p for p in container.demux(video=0) if p.pts is not None and p.pts * p.time_base >= Fraction(70, 30)
        )
        position, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    assert read_numbers(read(path, timestamps=[69 / 30]).frames) == [69]
    for index in (70, 71, 99):
        with pytest.raises(VideoReadError, match=r"damaged at 2\.333 s"):
            read(path, timestamps=[index / 30])
    assert read_numbers(read(path, timestamps=[0.5, 100 / 30, 140 / 30]).frames) == [15, 100, 140]


def test_flipped_bytes_give_frames_or_the_error(clip):
    random = np.random.default_rng(1)
    data = clip.read_bytes()
    for _ in range(40):
        broken = bytearray(data)
        for position in random.integers(0, len(data), 20):
            broken[position] = random.integers(256)
        try:
            video = read(bytes(broken), num_frames=4, timeout=20)
        except VideoReadError:
            continue
        assert video.frames.shape[0] == 4


# --- cost -----------------------------------------------------------------------------------------------------------


def test_only_what_is_needed_is_decoded(clip, hour):
    video = read(hour, num_frames=8)
    assert read_numbers(video.frames) == video.indices.tolist() == [225, 675, 1125, 1575, 2025, 2475, 2925, 3375]
    # At most one group of 60 frames per target, and what the decoder's threads read ahead.
    assert video.decoded_frames <= 8 * 60 + 8 * 16
    # Targets between the same two keyframes: no frame is decoded twice.
    assert read(clip, num_frames=100).decoded_frames <= 300


def test_a_huge_file_is_not_listed(monkeypatch, clip, hour):
    monkeypatch.setattr(_timeline, "SCAN_BYTES", 0)
    for path, expected in ((hour, [225, 675, 1125, 1575, 2025, 2475, 2925, 3375]), (clip, None)):
        video = read(path, num_frames=8)
        assert not video.indices_exact
        assert read_numbers(video.frames) == video.indices.tolist()
        assert expected in (None, video.indices.tolist())
        assert video.decoded_frames <= 8 * 60 + 8 * 16
    assert read_numbers(read(clip, fps=30, start=3, end=4).frames) == list(range(90, 120))


def test_memory_is_bounded_on_an_hour(hour):
    program = (
        "import resource, sys; from videopanda.video.read import read_video\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "read_video(sys.argv[1], num_frames=1, decoder='pyav'); before = peak()\n"
        "read_video(sys.argv[1], timestamps=[59.0 + 60 * k for k in range(8)] + [3599.0], decoder='pyav')\n"
        "read_video(sys.argv[1], num_frames=60, start=0, end=600, decoder='pyav'); print(peak() - before)"
    )
    pytest.importorskip("resource")
    run = subprocess.run([sys.executable, "-c", program, str(hour)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 50  # MiB; the hour decoded is 207


def test_import_is_light():
    program = "import sys, videopanda.video.read; print([m for m in ('torch', 'av', 'PIL') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# --- torchcodec -----------------------------------------------------------------------------------------------------


def test_a_missing_torchcodec_is_named(clip):
    if load_torchcodec()[0] is not None:
        pytest.skip("torchcodec loads here")
    with pytest.raises(VideoReadError, match="torchcodec cannot be loaded"):
        read(clip, num_frames=1, decoder="torchcodec")
    assert read(clip, num_frames=1, decoder="auto").decoder == "pyav"


def test_torchcodec_gives_the_same_frames(clip, folder):
    if load_torchcodec()[0] is None:
        pytest.skip(load_torchcodec()[1])
    turned = folder / "torchcodec_turned.mp4"
    turned.write_bytes(clip.read_bytes())
    set_display_matrix(turned, (0, 1, -1, 0))
    for source in (clip, clip.read_bytes(), turned):
        for arguments in ({"num_frames": 8}, {"fps": 3, "max_side": 40}, {"num_frames": 8, "sampling": "released"}):
            ours, theirs = read(source, **arguments), read(source, decoder="torchcodec", **arguments)
            assert (ours.decoder, theirs.decoder) == ("pyav", "torchcodec")
            assert np.array_equal(ours.frames, theirs.frames)
            assert np.array_equal(ours.indices, theirs.indices)
            assert np.array_equal(ours.timestamps, theirs.timestamps)


def test_numbers_survive_painting():
    assert [read_number(paint_number(n)) for n in (0, 1, 4095, 65535)] == [0, 1, 4095, 65535]
