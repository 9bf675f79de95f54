"""Protects the pixels of `read_video`: whole and upright pictures, right colours, nothing black that is transparent.

Each fault has a small file that is written here; larger ones of the same kinds are read where they are present.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type as SideDataType
from PIL import Image

from media import paint_number, read_numbers, write_grid, write_jpegs, write_motion_jpeg, write_video
from videopanda.video import torchcodec as _torchcodec
from videopanda.video.read import VideoReadError, read_video
from videopanda.video.stream import stream_video

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


# --- side data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["avi", "mov", "mkv", "mjpeg"])
def test_exif_in_motion_jpeg(tmp_path, suffix):
    """PyAV has no name for this side data and fails to list any."""
    path = write_jpegs(tmp_path / f"exif.{suffix}", GREYS, orientation=1)
    assert greys(read(path, sampling="all").frames) == GREYS


def without_torchcodec(monkeypatch) -> None:
    """Its checks run all the same; what comes after them must not."""
    if _torchcodec.load()[0] is None:
        monkeypatch.setattr(_torchcodec, "load", lambda: (lambda *args, **options: pytest.fail("it was asked"), "0"))


def test_exif_turns_motion_jpeg(tmp_path, monkeypatch):
    path = write_jpegs(tmp_path / "turned.mov", GREYS, orientation=6)
    for decoder in ("pyav", "auto"):
        video = read(path, num_frames=2, decoder=decoder)
        assert (video.width, video.height) == (48, 64)
    without_torchcodec(monkeypatch)
    with pytest.raises(VideoReadError, match="not that of the pictures"):
        read(path, num_frames=2, decoder="torchcodec")


def test_an_orientation_that_changes_at_the_same_angle(tmp_path, monkeypatch):
    """Upside down in a mirror is not turned by any angle."""
    image = Image.fromarray(np.repeat(np.repeat(np.uint8([[20, 90], [160, 230]]), 24, 0), 32, 1))
    path = write_motion_jpeg(tmp_path / "flipped.mov", [(image, orientation) for orientation in (None, 1, 4, 4, 1, 4)])
    corners = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    as_stored, flipped = [20, 90, 160, 230], [160, 230, 20, 90]
    expected = [as_stored, as_stored, flipped, flipped, as_stored, flipped]
    for frames in (read(path, sampling="all").frames, [frame.image for frame in stream_video(path, fps=None)]):
        found = [[int(frame[y * 5, x * 5].mean()) for y, x in corners] for frame in frames]
        np.testing.assert_allclose(found, expected, atol=2)
    without_torchcodec(monkeypatch)
    with pytest.raises(VideoReadError, match="not follow an orientation that changes"):
        read(path, sampling="all", decoder="torchcodec")


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


# --- pictures of several parts ----------------------------------------------------------------------------------------


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
        with pytest.raises(VideoReadError, match=r"composed of others.*convert it to PNG or JPEG"):
            read(path, num_frames=1)
    path = write_grid(tmp_path / "overlay.avif", tiles, primary=b"iovl")
    with pytest.raises(VideoReadError):
        read(path, num_frames=1)


def test_case_of_tiles():
    assert read(case("sofa_grid1x5_420.avif"), num_frames=1).frames.shape == (1, 770, 1024, 3)


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
    without_torchcodec(monkeypatch)
    if color_range == 2:
        with pytest.raises(VideoReadError, match="full color range"):
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


def test_a_picture_for_viewers_without_animation_is_no_frame(tmp_path):
    images = [Image.fromarray(paint_number(k)) for k in range(4)]
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:], duration=100, default_image=True)
    video = read(tmp_path / "a.png", sampling="all")
    assert read_numbers(video.frames) == [1, 2, 3]
    assert video.duration == pytest.approx(0.3)


def test_hidden_files_are_no_frames(tmp_path):
    """macOS writes "._1.png" beside "1.png" on foreign disks and into archives."""
    for number in (1, 2):
        Image.fromarray(paint_number(number)).save(tmp_path / f"{number}.png")
        (tmp_path / f"._{number}.png").write_bytes(b"\0\5\x16\7")
    assert read_numbers(read(tmp_path, sampling="all").frames) == [1, 2]


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
