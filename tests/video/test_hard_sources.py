"""Protects `read_video` on sources that other video kits read wrong: whole pictures, right colours, one time line.

Each fault has a small file that is written here; the larger ones of the same kinds are read where they are present.
"""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type as SideDataType
from PIL import Image

from media import paint_number, read_number, read_numbers, remux, write_grid, write_jpegs, write_video
from videopanda.video import timeline as _timeline
from videopanda.video import torchcodec as _torchcodec
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


# --- side data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["avi", "mov", "mkv", "mjpeg"])
def test_exif_in_motion_jpeg(tmp_path, suffix):
    """PyAV has no name for this side data and fails to list any."""
    path = write_jpegs(tmp_path / f"exif.{suffix}", GREYS, orientation=1)
    assert greys(read(path, sampling="all").frames) == GREYS


def test_exif_turns_motion_jpeg(tmp_path):
    path = write_jpegs(tmp_path / "turned.mov", GREYS, orientation=6)
    video = read(path, num_frames=2)
    assert (video.width, video.height) == (48, 64)


def test_side_data_without_a_name():
    assert SideDataType(29).value == 29  # the eye of a spatial video
    assert SideDataType(6) is SideDataType.DISPLAYMATRIX


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_exif_in_pictures(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(paint_number(9))
    if suffix == "png":
        others = [Image.fromarray(paint_number(10))]
        picture.save(tmp_path / "exif.png", save_all=True, append_images=others, duration=100, exif=exif)
        expected = [9, 10]
    else:
        picture.save(tmp_path / "exif.tiff", exif=exif)
        expected = [9]
    frames = read(tmp_path / f"exif.{suffix}", sampling="all").frames
    assert frames.shape[1:3] == (64, 48)
    assert read_numbers(np.rot90(frames, 1, axes=(1, 2))) == expected


def test_cases_of_side_data():
    video = read(case("stereo_spatial.mp4"), sampling="all")
    assert video.frames.shape == (10, 120, 160, 3)
    exif, plain = (read(case(name), sampling="all").frames for name in ("mjpeg_exif.avi", "mjpeg.avi"))
    assert greys(exif) == greys(plain) == GREYS


# --- pictures of several parts --------------------------------------------------------------------------------------


@pytest.fixture
def tiles():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    return [Image.new("RGB", (64, 64), colour) for colour in colours]


def test_a_picture_of_tiles_is_whole_or_refused(tmp_path, tiles):
    video = read(write_grid(tmp_path / "grid.avif", tiles), num_frames=1)
    assert video.frames.shape == (1, 64, 192, 3)
    for k, tile in enumerate(tiles):
        shown = video.frames[0, 32, 32 + 64 * k].astype(int)
        assert np.abs(shown - np.array(tile.getpixel((0, 0)))).max() <= 12  # 6 measured
    for primary in (b"grid", b"iovl"):
        path = write_grid(tmp_path / "grid.heic", tiles, brand=b"heic", primary=primary)
        with pytest.raises(VideoReadError, match=r"put together of others.*convert it to PNG or JPEG"):
            read(path, num_frames=1)
    path = write_grid(tmp_path / "overlay.avif", tiles, primary=b"iovl")
    with pytest.raises(VideoReadError):
        read(path, num_frames=1)


def test_case_of_tiles():
    assert read(case("sofa_grid1x5_420.avif"), num_frames=1).frames.shape == (1, 770, 1024, 3)


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


def test_case_of_pictures_that_cannot_be_decoded():
    path = case("og8_cut.ts")
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.array_equal(read(path, sampling="all").frames, expected)
    assert np.array_equal(read(path, timestamps=[0]).frames[0], expected[0])
    assert len(read(path, fps=5)) == 12
    assert len(read(path, num_frames=8, sampling="released")) == 8


# --- colours and transparency -----------------------------------------------------------------------------------------


def write_patches(path: Path, codec: str, color_range: int) -> np.ndarray:
    """Flat colours in the full or limited range of BT.709."""
    colours = [(16, 16, 16), (235, 235, 235), (200, 30, 40), (20, 160, 60), (30, 60, 190), (128, 128, 128)]
    picture = np.repeat(np.repeat(np.array([colours], np.uint8), 64, axis=0), 64, axis=1)
    options = {"crf": "5", "preset": "12"} if codec == "libsvtav1" else {"crf": "5", "cpu-used": "8", "b": "0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, color_range
        for k in range(3):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=color_range)
            frame.pts, frame.time_base, frame.colorspace, frame.color_range = k, Fraction(1, 10), 1, color_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return picture


@pytest.mark.parametrize("color_range", [1, 2])
@pytest.mark.parametrize("codec", ["libvpx-vp9", "libsvtav1"])
def test_full_range_colours(tmp_path, codec, color_range, monkeypatch):
    path = tmp_path / "patches.mkv"
    expected = write_patches(path, codec, color_range).astype(int)
    for decoder in ("pyav", "auto"):
        frames = read(path, num_frames=2, decoder=decoder).frames.astype(int)
        assert np.abs(frames - expected)[:, :, 8::64].max() <= 3, decoder  # 2 measured, inside of the patches
    if _torchcodec.load()[0] is None:  # its checks run all the same
        monkeypatch.setattr(_torchcodec, "load", lambda: (lambda *args, **options: pytest.fail("it was asked"), "0"))
    if color_range == 2:
        with pytest.raises(VideoReadError, match="full range"):
            read(path, num_frames=1, decoder="torchcodec")


def test_case_of_full_range():
    expected = np.asarray(Image.open(case("patches.png")).convert("RGB")).astype(int)
    for decoder in ("pyav", "auto"):
        frames = read(case("bt709_pc_vp9.webm"), num_frames=2, decoder=decoder).frames.astype(int)
        assert np.abs(frames - expected).max() <= 3


def ink(shift: int = 0) -> Image.Image:
    """Black ink on transparency whose colour is black too."""
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[12:36, 16 + shift : 32 + shift, 3] = 255
    return Image.fromarray(pixels)


def write_ink(path: Path, codec: str, pix_fmt: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"auto-alt-ref": "0"} if "vpx" in codec else {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for k in range(3):
            frame = av.VideoFrame.from_ndarray(np.asarray(ink(4 * k)), format="rgba").reformat(format=pix_fmt)
            frame.pts, frame.time_base = k, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def check_ink(source, shifts: list[int], background: tuple[int, int, int] | None = None) -> None:
    arguments = {} if background is None else {"background": background}
    frames = read(source, sampling="all", **arguments).frames.astype(int)
    background = background or (255, 255, 255)
    assert len(frames) == len(shifts)
    for frame, shift in zip(frames, shifts):
        assert np.abs(frame[14:34, 18 + shift : 30 + shift]).max() <= 8  # the ink
        assert np.abs(frame[:8] - background).max() <= 8  # 3 measured, for what a codec loses
        assert np.abs(frame[:, 52:] - background).max() <= 8


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("ink.webm", "libvpx-vp9", "yuva420p"),
        ("vp8.webm", "libvpx", "yuva420p"),
        ("prores.mov", "prores_ks", "yuva444p10le"),
        ("png.mov", "png", "rgba"),
        ("rle.mov", "qtrle", "argb"),
        ("ffv1.mkv", "ffv1", "bgra"),
    ],
)
def test_transparent_videos_lie_over_a_background(tmp_path, name, codec, pix_fmt):
    path = write_ink(tmp_path / name, codec, pix_fmt)
    check_ink(path, [0, 4, 8])
    check_ink(path.read_bytes(), [0, 4, 8], (10, 200, 30))
    assert read(path, timestamps=[0.2], decoder="auto").frames[0, 0, 0].min() > 246


@pytest.mark.parametrize("suffix", ["png", "webp", "gif", "avif", "tiff"])
@pytest.mark.parametrize("count", [1, 3])
def test_transparent_pictures_lie_over_a_background(tmp_path, suffix, count):
    path = tmp_path / f"ink.{suffix}"
    images = [ink(4 * k) for k in range(count)]
    options = {"lossless": True} if suffix == "webp" else {"quality": 95} if suffix == "avif" else {}
    options |= {"save_all": True, "append_images": images[1:], "duration": 100, "disposal": 2} if count > 1 else {}
    images[0].save(path, **options)
    shifts = [4 * k for k in range(count)]
    check_ink(path, shifts)
    check_ink(path.read_bytes(), shifts, (0, 0, 255))
    assert read(path, num_frames=1).is_still == (count == 1)


def test_a_background_is_a_colour(tmp_path):
    ink().save(tmp_path / "ink.png")
    for background in ((1, 2), (0, 0, 256), (-1, 0, 0)):
        with pytest.raises(ValueError, match="background must be three numbers from 0 to 255"):
            read(tmp_path / "ink.png", num_frames=1, background=background)


def test_case_of_ink():
    frame = read(case("ink_rgba.png"), num_frames=1).frames[0]
    assert frame.max() == 255
    assert frame.min() == 0


# --- pictures and animations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["webp", "png", "avif"])
def test_animations_keep_their_times(tmp_path, suffix):
    images = [Image.fromarray(paint_number(k)) for k in range(5)]
    path = tmp_path / f"moving.{suffix}"
    durations = [100, 500, 50, 350, 200]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations)
    for source in (path, path.read_bytes()):
        video = read(source, sampling="all")
        assert read_numbers(video.frames) == [0, 1, 2, 3, 4]
        np.testing.assert_allclose(video.timestamps, [0, 0.1, 0.6, 0.65, 1.0])
        assert (video.duration, video.source_fps, video.is_still) == (pytest.approx(1.2), pytest.approx(5 / 1.2), False)
    assert read_numbers(read(path, timestamps=[1.1, 0.0, 0.59]).frames) == [4, 0, 1]


def test_a_frame_that_lasts_no_time_lasts_as_long_as_in_a_browser(tmp_path):
    images = [Image.fromarray(paint_number(k)) for k in range(3)]
    images[0].save(tmp_path / "quick.webp", save_all=True, append_images=images[1:], duration=0)
    assert read(tmp_path / "quick.webp", sampling="all").duration == pytest.approx(0.3)


def test_case_of_an_animation():
    video = read(case("anim_plain.webp"), sampling="all")
    assert len(video) == 10
    assert greys(video.frames) == GREYS
    np.testing.assert_allclose(video.timestamps, np.arange(10) / 10)


def test_sixteen_bits_are_scaled(tmp_path):
    ramp = np.repeat(np.linspace(0, 0xFFFF, 64).astype(np.uint16)[None], 48, axis=0)
    Image.fromarray(ramp).save(tmp_path / "gray16.png")
    Image.fromarray(ramp).save(tmp_path / "gray16.tiff")
    for name in ("gray16.png", "gray16.tiff"):
        assert np.array_equal(read(tmp_path / name, num_frames=1).frames[0, 0, :, 1], ramp[0] >> 8)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(VideoReadError, match="convert it to 8 bits"):
        read(tmp_path / "float.tiff", num_frames=1)


def test_case_of_sixteen_bits():
    frame = read(case("gray16.png"), num_frames=1).frames[0]
    values = frame[0, :, 0].tolist()
    found = sorted(set(values), key=values.index)
    assert [found[round(k * (len(found) - 1) / 5)] for k in range(6)] == pytest.approx(
        [0, 49, 99, 148, 198, 247], abs=8
    )


def test_views_of_one_picture_are_one_still_picture(tmp_path):
    """Cameras put a second view behind a JPEG (MPO); the first is turned as its EXIF data says."""
    exif = Image.Exif()
    exif[0x0112] = 6
    first, second = (Image.fromarray(paint_number(k)) for k in (3, 4))
    first.save(tmp_path / "views.jpg", "MPO", save_all=True, append_images=[second], exif=exif, quality=95)
    video = read(tmp_path / "views.jpg", num_frames=2)
    assert video.is_still
    assert read_numbers(np.rot90(video.frames, 1, axes=(1, 2))) == [3, 3]


def test_frames_of_one_huge_picture_are_one_picture(tmp_path):
    Image.new("L", (9000, 6000)).save(tmp_path / "huge.png")
    video = read(tmp_path / "huge.png", num_frames=8)
    assert video.is_still
    assert video.frames.shape == (8, 6000, 9000, 3)
    assert video.frames.strides[0] == 0  # 162 MB, not 1.3 GB
    assert not read(write_video(tmp_path / "one.mp4", [1]), num_frames=1).is_still


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
