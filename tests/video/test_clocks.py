"""Protects the time line of `read_video`: clocks that start again or round, streams that begin with a fragment.

Each fault has a small file that is written here; larger ones of the same kinds are read where they are present.
"""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from media import paint_number, read_number, read_numbers, remux, write_video
from videopanda.video import timeline as _timeline
from videopanda.video.read import VideoReadError, read_video

CASES = Path(__file__).parents[3] / "shared" / "cases" / "media"
GREYS = list(range(10, 200, 20))


def case(name: str) -> Path:
    if not (CASES / name).exists():
        pytest.skip("the case files are absent")
    return CASES / name


def read(source, **arguments):
    arguments.setdefault("decoder", "pyav")
    return read_video(source, **arguments)


def greys(frames: np.ndarray) -> list[int]:
    return [round(float(frame.mean())) for frame in frames]


# --- clocks -----------------------------------------------------------------------------------------------------------


def ts(path: Path, numbers: range, start: int = 0) -> Path:
    pts = [start + k for k in range(len(numbers))]
    return write_video(path, numbers, fps=25, pts=pts, time_base=Fraction(1, 25), bf="2", g="25", preset="veryfast")


def check_line(path: Path, expected: list[int]) -> None:
    """All frames are there at 25 per second, and every way of choosing gives the right ones."""
    everything = read(path, sampling="all")
    assert read_numbers(everything.frames) == expected
    np.testing.assert_allclose(everything.timestamps, np.arange(len(expected)) / 25, atol=2e-3)
    assert everything.duration == pytest.approx(len(expected) / 25, abs=2e-3)
    assert everything.source_fps == pytest.approx(25, rel=1e-3)
    assert not everything.is_still
    last = (len(expected) - 1) / 25
    for arguments in (
        {"num_frames": 8},
        {"num_frames": 8, "sampling": "released"},
        {"fps": 5},
        {"timestamps": [last, 0.0, last / 2]},
    ):
        video = read(path, **arguments)
        assert read_numbers(video.frames) == [expected[k] for k in video.indices], arguments


@pytest.mark.parametrize(("start", "order"), [(0, "ab"), (25 * 60, "ab"), (25 * 60, "ba"), (25 * 60, "aba")])
def test_clocks_that_start_again(tmp_path, start, order):
    """Joined broadcasts: the second part's clock starts again, or is far ahead or behind."""
    numbers = {"a": range(100), "b": range(200, 250)}
    parts = {"a": ts(tmp_path / "a.ts", numbers["a"]), "b": ts(tmp_path / "b.ts", numbers["b"], start)}
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts[part].read_bytes() for part in order))
    check_line(path, [number for part in order for number in numbers[part]])
    assert read(path, timestamps=[5.5]).decoded_frames < 60  # one group of 25 frames, and what threads read ahead


def test_an_mp4_behind_an_mp4_is_refused(tmp_path):
    """`cat a.mp4 b.mp4` makes a file of which FFmpeg reads the first half without a word."""
    parts = [write_video(tmp_path / f"{k}.mp4", range(5), fps=5).read_bytes() for k in range(2)]
    joined, tail = tmp_path / "joined.mp4", tmp_path / "tail.mp4"
    joined.write_bytes(b"".join(parts))
    for source in (joined, joined.read_bytes()):
        with pytest.raises(VideoReadError, match="several files joined end to end"):
            read_video(source, num_frames=2)
    tail.write_bytes(parts[0] + b"\0\0\0\x10free12345678" + b"junk")  # what phones and editors append
    assert len(read_video(tail, sampling="all")) == 5
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    whole = write_video(tmp_path / "f.mp4", range(5), fps=5, container_options=fragments).read_bytes()
    start = whole.index(b"moof") - 4
    (tmp_path / "again.mp4").write_bytes(whole + whole[:start])  # fragments may repeat their header
    assert len(read_video(tmp_path / "again.mp4", sampling="all")) == 5


@pytest.mark.parametrize(("name", "codec"), [("a.flv", "libx264"), ("a.wmv", "mpeg4"), ("a.ivf", "libvpx")])
def test_other_files_of_which_only_the_first_part_would_be_read_are_refused(tmp_path, name, codec):
    part = write_video(tmp_path / name, range(5), fps=5, codec=codec)
    assert len(read_video(part, sampling="all")) == 5
    joined = tmp_path / f"joined-{name}"
    joined.write_bytes(2 * part.read_bytes())
    for source in (joined, joined.read_bytes()):
        with pytest.raises(VideoReadError, match="several files joined end to end"):
            read_video(source, num_frames=2)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_an_encrypted_video_is_named(tmp_path, codec):
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76" * 16, "encryption_kid": "a7" * 16}
    path = write_video(tmp_path / "a.mp4", range(5), fps=5, codec=codec, container_options=options)
    with pytest.raises(VideoReadError, match="it is encrypted"):
        read_video(path, num_frames=2)


def test_clocks_that_start_again_in_other_containers(tmp_path):
    first, second = (write_video(tmp_path / f"{n}.flv", range(n, n + 50), fps=25, g="25") for n in (0, 200))
    joined = tmp_path / "joined.flv"
    joined.write_bytes(first.read_bytes() + second.read_bytes()[13:])  # without the second header
    check_line(joined, [*range(50), *range(200, 250)])
    options = {"fps": 25, "codec": "mpeg2video", "g": "12", "bf": "2", "size": (160, 96)}
    parts = [write_video(tmp_path / f"{n}.mpg", range(n, n + 50), **options) for n in (0, 200)]
    joined = tmp_path / "joined.mpg"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    check_line(joined, [*range(50), *range(200, 250)])


def test_a_gap_in_the_picture_while_the_sound_goes_on_is_no_leap(tmp_path):
    path = tmp_path / "gap.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for k in range(25 * 16):
            if k < 50 or k >= 25 * 15:
                frame = av.VideoFrame.from_ndarray(paint_number(k), format="rgb24")
                frame.pts, frame.time_base = k, Fraction(1, 25)
                container.mux(stream.encode(frame))
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 640), np.float32), format="fltp", layout="mono")
            tone.sample_rate, tone.pts, tone.time_base = 16000, 640 * k, Fraction(1, 16000)
            container.mux(sound.encode(tone))
        container.mux(stream.encode(None))
        container.mux(sound.encode(None))
    video = read(path, timestamps=[0.0, 10.0, 15.0])
    assert read_numbers(video.frames) == [0, 49, 375]
    assert video.duration == pytest.approx(16, abs=0.01)


def write_playlist(path: Path, *names: str) -> Path:
    entries = "".join(f"#EXTINF:2.0,\n{name}\n" for name in names)
    path.write_text(f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n{entries}#EXT-X-ENDLIST\n")
    return path


def test_a_playlist_with_a_discontinuity(tmp_path):
    for n in (0, 100, 200):
        ts(tmp_path / f"{n}.ts", range(n, n + 50))
    path = write_playlist(tmp_path / "clip.m3u8", "0.ts", "100.ts\n#EXT-X-DISCONTINUITY", "200.ts")
    check_line(path, [*range(50), *range(100, 150), *range(200, 250)])


def test_a_playlist_reads_nothing_outside_its_folder(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "parts").mkdir(parents=True)
    outside.mkdir()
    ts(inside / "parts" / "0.ts", range(50))
    secret = ts(outside / "secret.ts", range(50, 100))
    (inside / "link.ts").symlink_to(secret)
    assert read(write_playlist(inside / "good.m3u8", "parts/0.ts"), num_frames=1).duration == 2
    nested = write_playlist(inside / "parts" / "nested.m3u8", "../../outside/secret.ts").name
    for name, reason in [
        (str(secret), "outside its folder"),
        (f"file://{secret}", "outside its folder|No such file"),
        ("../outside/secret.ts", "outside its folder"),
        ("parts/../../outside/secret.ts", "outside its folder"),
        ("link.ts", "outside its folder"),
        (f"parts/{nested}", "invalid data"),  # a playlist is no segment
        ("http://127.0.0.1:9/secret.ts", "outside its folder|No such file"),
        ("missing.ts", "No such file"),
    ]:
        for order in ([name], ["parts/0.ts", name]):
            path = write_playlist(inside / "bad.m3u8", *order)
            with pytest.raises(VideoReadError, match=reason):
                read_video(path, num_frames=1)
    (inside / "variants.m3u8").write_text(f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nparts/{nested}\n")
    with pytest.raises(VideoReadError, match="outside its folder"):
        read_video(inside / "variants.m3u8", num_frames=1)
    live = write_playlist(inside / "live.m3u8", "parts/0.ts")
    live.write_text(live.read_text().replace("#EXT-X-ENDLIST", ""))
    with pytest.raises(VideoReadError, match="a live playlist"):
        read_video(live, num_frames=1)
    key = f'#EXT-X-KEY:METHOD=AES-128,URI="{secret}"\n'
    path = write_playlist(inside / "key.m3u8", "parts/0.ts")
    path.write_text(path.read_text().replace("#EXTINF", key + "#EXTINF"))
    with pytest.raises(VideoReadError):
        read_video(path, num_frames=1)
    with pytest.raises(VideoReadError):
        read_video((inside / "good.m3u8").read_bytes(), num_frames=1)
    (inside / "joined.txt").write_text("ffconcat version 1.0\nfile link.ts\n")
    for source in (inside / "joined.txt", (inside / "joined.txt").read_bytes()):
        with pytest.raises(VideoReadError, match="joins other files"):
            read_video(source, num_frames=1)


def test_cases_of_clocks_that_start_again():
    for name in ("concat_reset.ts", "hls/d.m3u8"):
        video = read(case(name), sampling="all")
        assert (len(video), video.duration, video.source_fps) == (150, 6.0, 25.0)
        np.testing.assert_allclose(video.timestamps, np.arange(150) / 25, atol=1e-6)
        first, second = video.frames[:100].mean(axis=0), video.frames[100:].mean(axis=0)
        assert np.abs(first - second).max() > 20  # the second part is another picture


@pytest.mark.parametrize("suffix", ["mkv", "webm", "flv", "mp4"])
@pytest.mark.parametrize("fps", [Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001), Fraction(120)])
def test_frame_k_at_its_own_time_in_a_clock_of_milliseconds(tmp_path, suffix, fps):
    codec = {"codec": "libvpx", "deadline": "realtime", "cpu-used": "8"} if suffix == "webm" else {"bf": "2"}
    first = tmp_path / f"clip.{'webm' if suffix == 'webm' else 'mkv'}"
    write_video(first, range(120), fps=fps, size=(32, 24), pts=list(range(2, 122)), **codec)
    path = first if suffix in ("mkv", "webm") else remux(first, tmp_path / f"again.{suffix}")
    video = read(path, timestamps=[float(k / fps) for k in range(120)])
    assert video.indices.tolist() == list(range(120))


def test_case_of_milliseconds():
    video = read(case("tol_24000.mkv"), timestamps=[k * 1001 / 24000 for k in range(240)])
    assert video.indices.tolist() == list(range(240))


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"x264-params": "open-gop=1:keyint=20:bframes=3:b-adapt=0", "preset": "veryfast", "bf": "3"}),
        ("libx265", {"x265-params": "open-gop=1:keyint=20:bframes=3:b-adapt=0:log-level=none:pools=1"}),
        ("mpeg2video", {"g": "12", "bf": "2"}),
        ("mpeg4", {"g": "12", "bf": "2"}),
    ],
)
@pytest.mark.parametrize("skip", [7, 20, 21])
def test_streams_that_begin_with_pictures_that_cannot_be_decoded(tmp_path, codec, options, skip):
    whole = write_video(tmp_path / "whole.ts", range(80), fps=25, size=(160, 96), codec=codec, **options)
    path = remux(whole, tmp_path / "cut.ts", skip=skip)
    everything = read(path, sampling="all")
    first = read_number(everything.frames[0])
    assert first >= skip - 3
    assert read_numbers(everything.frames) == list(range(first, 80))
    for arguments in ({"timestamps": [0.0]}, {"fps": 5}, {"num_frames": 8}, {"num_frames": 8, "sampling": "released"}):
        video = read(path, **arguments)
        assert read_numbers(video.frames) == [first + k for k in video.indices]
        assert video.indices[0] == 0 or "num_frames" in arguments


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        ("libx264", "h264", {"bf": "2", "g": "20", "preset": "veryfast"}),
        ("libx264", "avi", {"g": "20"}),
        ("libx264", "flv", {"bf": "2", "g": "20", "preset": "veryfast"}),
        ("libx264", "mp4", {"bf": "2", "g": "20", "preset": "veryfast"}),
        ("libvpx-vp9", "webm", {"g": "20", "deadline": "realtime", "cpu-used": "8"}),
        ("mpeg4", "avi", {"g": "20", "bf": "2"}),
        ("mpeg2video", "m2v", {"g": "12", "bf": "2"}),
    ],
)
def test_such_streams_in_other_containers_and_without_stamps(tmp_path, codec, suffix, options):
    first = "ts" if suffix in ("h264", "m2v") else suffix
    whole = write_video(tmp_path / f"whole.{first}", range(60), fps=25, size=(160, 96), codec=codec, **options)
    path = remux(whole, tmp_path / f"cut.{suffix}", skip=7)
    everything = read(path, sampling="all")
    first = read_number(everything.frames[0])
    assert 7 < first <= 21
    assert read_numbers(everything.frames) == list(range(first, 60))
    assert everything.duration == pytest.approx((60 - first) / 25, abs=0.01)
    assert read_numbers(read(path, timestamps=[0.0, 0.4]).frames) == [first, first + 10]


def test_case_of_pictures_that_cannot_be_decoded():
    path = case("og8_cut.ts")
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.array_equal(read(path, sampling="all").frames, expected)
    assert np.array_equal(read(path, timestamps=[0]).frames[0], expected[0])
    assert len(read(path, fps=5)) == 12
    assert len(read(path, num_frames=8, sampling="released")) == 8


# --- a great many frames ----------------------------------------------------------------------------------------------


def test_every_packet_is_listed_without_arithmetic_on_fractions(tmp_path):
    """A clip of a million frames is listed in seconds: the same coded picture again and again, here fewer times."""
    count = 20_000
    data = io.BytesIO()
    Image.new("L", (16, 16)).convert("RGB").save(data, "jpeg")
    path = tmp_path / "many.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
        for k in range(count):
            packet = av.Packet(data.getvalue())
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 1000), True
            packet.pts = packet.dts = k
            container.mux(packet)
    calls = 0

    class Counting(Fraction):
        def __rmul__(self, other):
            nonlocal calls
            calls += 1
            return super().__rmul__(other)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_timeline, "Fraction", Counting)
        video = read(path, num_frames=8)
    assert video.indices.tolist() == [1250 + 2500 * k for k in range(8)]
    assert calls < 100
