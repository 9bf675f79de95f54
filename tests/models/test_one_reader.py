"""Processors read files as `read_video` and `answer` do: the same frames, times and prompt, by every way in."""

import base64
import subprocess
import sys
import threading
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import videopanda
from media import paint_number, set_display_matrix, write_audio, write_video
from tiny import clip, tiny_processor
from videopanda.models import media as models_media
from videopanda.models.pictures import to_pixels
from videopanda.video.read import VideoReadError, read_video

CASES = Path(__file__).parents[3] / "shared" / "cases" / "media"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("one_reader")


def turned(folder: Path, matrix: tuple[int, int, int, int]) -> Path:
    path = write_video(folder / "turned.mp4", range(40), fps=10)
    set_display_matrix(path, matrix)
    return path


def edited(folder: Path) -> Path:
    """An MP4 whose edit list cuts off the first frames."""
    pts = [k - 15 for k in range(40)]
    return write_video(folder / "edited.mp4", range(40), fps=10, pts=pts, bf="2", preset="veryfast")


def uneven(folder: Path) -> Path:
    pts = [0, 40, 50, 500, 510, 1500, 1501, 3000, 3900, 4000]
    return write_video(folder / "uneven.mkv", range(10), pts=pts, time_base=Fraction(1, 1000))


def avi(folder: Path) -> Path:
    return write_video(folder / "clip.avi", range(40), fps=10, codec="mpeg4", bf="2")


SOURCES = {
    "rotated": lambda folder: turned(folder, (0, 1, -1, 0)),
    "mirrored": lambda folder: turned(folder, (-1, 0, 0, 1)),
    "edit list": edited,
    "uneven": uneven,
    "avi": avi,
    **{name: lambda _, name=name: CASES / name for name in ("demo_stored_landscape_rot90.mp4", "demo_cut_copy.mp4")},
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("sampling", ["uniform", "released"])
def test_files_are_read_as_read_video_reads_them(folder, name, sampling):
    path = SOURCES[name](folder)
    if not path.exists():
        pytest.skip("the case files are absent")
    processor = tiny_processor("paper", time_prompt=True, frame_sampling=sampling)
    video = read_video(path, num_frames=8, sampling=sampling)
    expected = processor(text="<video>What?", videos=video)
    prompt = processor.tokenizer.decode(expected["input_ids"][0])
    assert f"{video.duration:.1f} seconds: " in prompt
    asked = {"role": "user", "content": [{"type": "video", "path": str(path)}, {"type": "text", "text": "What?"}]}
    templated = processor.apply_chat_template([asked], tokenize=True, return_dict=True)
    for given in (processor(text="<video>What?", videos=str(path)), processor(text="<video>What?", videos=[path])):
        assert np.array_equal(given["input_ids"], expected["input_ids"])
        assert np.array_equal(given["pixel_values_videos"], expected["pixel_values_videos"])
        assert np.array_equal(given["video_placement"], expected["video_placement"])
    assert np.array_equal(templated["pixel_values_videos"], expected["pixel_values_videos"])
    assert f"{video.duration:.1f} seconds: " in processor.tokenizer.decode(templated["input_ids"][0])
    metadata = processor.video_processor(path, return_metadata=True)["video_metadata"][0]
    assert metadata.frames_indices == video.indices.tolist()
    assert (metadata.duration, metadata.fps) == (video.duration, video.source_fps)


def test_choices_of_frames_are_those_of_read_video(folder):
    path = avi(folder)
    processor = tiny_processor("paper").video_processor
    for chosen, ours in (
        ({"fps": 2.0}, {"fps": 2.0}),
        ({"num_frames": 3}, {"num_frames": 3}),
        ({"do_sample_frames": False}, {"sampling": "all"}),
    ):
        metadata = processor(path, return_metadata=True, **chosen)["video_metadata"][0]
        assert metadata.frames_indices == read_video(path, **ours).indices.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fps": 1.0, "num_frames": 2}, "give exactly one of"),
        ({"num_frames": 0}, "num_frames must be a whole number of at least 1, got 0"),
        ({"num_frames": -3}, "num_frames must be a whole number of at least 1, got -3"),
        ({"fps": 0}, "fps must be a positive number of frames per second, got 0"),
        ({"fps": -1.0}, "fps must be a positive"),
        ({"fps": float("nan")}, "fps must be a positive"),
        ({"fps": float("inf")}, "fps must be a positive"),
    ],
)
def test_arguments_that_make_no_sense(folder, arguments, message):
    """The same words by file, by array and by `read_video` itself."""
    path, processor = avi(folder), tiny_processor()
    metadata = {"fps": 10.0, "total_num_frames": 8}
    for call in (
        lambda: read_video(path, **arguments),
        lambda: processor.video_processor(path, **arguments),
        lambda: processor.video_processor(clip(), video_metadata=metadata, **arguments),
        lambda: processor(text="<video>", videos=path, **arguments),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_number_of_frames_is_whole(folder):
    for reader in (read_video, tiny_processor().video_processor):
        with pytest.raises(ValueError, match="num_frames must be a whole number of at least 1"):
            reader(avi(folder), num_frames=2.5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": "<video>", "videos": [None]}, "one of the videos is None"),
        ({"text": "<video><video>", "videos": [clip(), None]}, "one of the videos is None"),
        ({"text": ["<video>"], "videos": [[None]]}, "one of the videos is None"),
        ({"text": "<image>", "images": [None]}, "one of the images is None"),
        ({"text": [None], "videos": [clip()]}, "string or a list of strings"),
        ({"text": "", "videos": [clip()]}, "`text` is empty"),
        ({"text": "", "videos": None}, "`text` is empty"),
        ({"text": " \n"}, "`text` is empty"),
        ({"text": ["Hi", ""]}, "`text` is empty"),
        ({"text": []}, "`text` is empty"),
        ({"text": "<video>", "videos": []}, "1 <video> placeholders, but 0"),
    ],
)
def test_inputs_that_are_none_or_empty(inputs, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor()(**inputs)


def test_frames_that_were_read_are_not_sampled_again(folder):
    video = read_video(avi(folder), num_frames=4)
    with pytest.raises(ValueError, match="already decoded"):
        tiny_processor().video_processor(video, num_frames=2)


def test_a_rate_that_makes_no_sense():
    with pytest.raises(ValueError, match="fps must be a positive"):
        tiny_processor().video_processor(clip(), video_metadata={"fps": 0.0, "total_num_frames": 8}, fps=1.0)


def test_files_that_cannot_be_read(folder):
    for path in (folder / "none.mp4", write_audio(folder / "sound.m4a")):
        with pytest.raises(VideoReadError):
            tiny_processor()(text="<video>", videos=str(path))


# --- pictures ---------------------------------------------------------------------------------------------------------


def ramp() -> np.ndarray:
    return np.repeat(np.linspace(0, 0xFFFF, 64).astype(np.uint16)[None], 48, axis=0)


def ink() -> Image.Image:
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[12:36, 16:32, 3] = 255
    return Image.fromarray(pixels)


def test_pixels_of_pil_images():
    assert np.array_equal(to_pixels(Image.fromarray(ramp()))[0, :, 0], ramp()[0] >> 8)
    assert np.array_equal(to_pixels(Image.fromarray(ramp().astype(np.int32)))[0, :, 0], ramp()[0] >> 8)
    for mode in ("RGBA", "LA", "PA", "P", "RGBa"):
        image = ink().convert("RGBA").convert("P") if mode in ("P", "PA") else ink().convert(mode)
        pixels = to_pixels(image.convert(mode), (10, 20, 30))
        assert pixels[0, 0].tolist() == [10, 20, 30], mode
        assert pixels[20, 20].max() == 0, mode
    assert to_pixels(Image.new("CMYK", (4, 4))).tolist() == [[[255, 255, 255]] * 4] * 4
    for image in (Image.new("F", (4, 4)), Image.fromarray(np.full((4, 4), 1 << 20, np.int32))):
        with pytest.raises(ValueError, match="convert it to 8 bits"):
            to_pixels(image)


def test_pictures_are_the_same_by_file_and_by_object(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(paint_number(9)).save(folder / "exif.png", exif=exif)
    Image.fromarray(ramp()).save(folder / "gray16.png")
    ink().save(folder / "ink.png")
    processor = tiny_processor()
    for name in ("exif", "gray16", "ink"):
        path = folder / f"{name}.png"
        expected = processor(text="<image>", images=read_video(path, num_frames=1).frames[0])
        data = base64.b64encode(path.read_bytes()).decode()
        with Image.open(path) as opened:
            for image in (str(path), path, opened, f"data:image/png;base64,{data}"):
                given = processor(text="<image>", images=image)
                assert np.array_equal(given["pixel_values"], expected["pixel_values"]), (name, type(image))
                assert np.array_equal(given["image_placement"], expected["image_placement"]), (name, type(image))
            frames = processor.video_processor([opened])["pixel_values_videos"][0, 0]
            assert np.array_equal(frames, expected["pixel_values"][0]), name
    content = [{"type": "image", "path": str(folder / "ink.png")}, {"type": "text", "text": "What?"}]
    out = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, return_dict=True)
    assert np.array_equal(out["pixel_values"], processor(text="<image>", images=ink())["pixel_values"])


def test_the_background_can_be_set(folder, tmp_path):
    ink().save(folder / "ink.png")
    processor = tiny_processor(background=[0, 0, 255])
    expected = processor.video_processor.preprocess_images(to_pixels(ink(), (0, 0, 255)))["pixel_values"]
    for image in (ink(), str(folder / "ink.png")):
        assert np.array_equal(processor(text="<image>", images=image)["pixel_values"], expected)
    white = tiny_processor()(text="<image>", images=ink())["pixel_values"]
    assert not np.array_equal(white, expected)
    processor.save_pretrained(tmp_path)
    again = type(processor).from_pretrained(tmp_path)
    assert again.video_processor.background == [0, 0, 255]


def test_a_still_picture_as_a_video_is_one_frame(folder):
    ink().save(folder / "ink.png")
    metadata = tiny_processor("paper").video_processor(folder / "ink.png", return_metadata=True)
    assert metadata["video_placement"][0, 4] == 1


def test_a_video_is_no_picture(folder):
    with pytest.raises(ValueError, match="is a video, not a picture"):
        tiny_processor()(text="<image>", images=str(avi(folder)))


def test_addresses(folder):
    """Videos and pictures behind http, as chat templates may name them."""
    content = {"/clip.avi": avi(folder).read_bytes()}
    ink().save(folder / "ink.png")
    content["/ink.png"] = (folder / "ink.png").read_bytes()

    class Files(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content[self.path])

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        processor = tiny_processor()
        for name, kind, key in (("clip.avi", "video", "pixel_values_videos"), ("ink.png", "image", "pixel_values")):
            by_file, by_address = (
                processor(text=f"<{kind}>", **{f"{kind}s": source}) for source in (folder / name, f"{address}/{name}")
            )
            assert np.array_equal(by_file[key], by_address[key])
    finally:
        server.shutdown()
        server.server_close()


def test_cases_of_pictures():
    if not CASES.exists():
        pytest.skip("the case files are absent")
    for name in ("gray16.png", "ink_rgba.png"):
        with Image.open(CASES / name) as image:
            assert np.array_equal(to_pixels(image), read_video(CASES / name, num_frames=1).frames[0])


# --- without the package ----------------------------------------------------------------------------------------------


def test_without_the_package_videos_are_refused_and_pictures_read(folder, monkeypatch):
    """As in an exported folder: read by other rules, a turned or cut clip would be wrong without a word."""
    monkeypatch.setattr(models_media, "_read_video", None)
    ink().save(folder / "ink.png")
    processor = tiny_processor()
    with pytest.raises(ValueError, match="Install videopanda and import it, or pass frames"):
        processor(text="<video>", videos=str(avi(folder)))
    by_file = processor(text="<image>", images=str(folder / "ink.png"))
    assert np.array_equal(by_file["pixel_values"], processor(text="<image>", images=ink())["pixel_values"])


@pytest.mark.parametrize(
    "imports",
    [
        "from videopanda.models.videopanda import VideoPandaVideoProcessor",
        "import videopanda; from transformers import AutoProcessor; "
        "from videopanda.models.videopanda.video_processing_videopanda import VideoPandaVideoProcessor",
        "import transformers; from videopanda.models.videopanda import VideoPandaVideoProcessor",
    ],
)
def test_processors_have_the_reader_however_they_are_imported(folder, imports):
    program = f"import sys; {imports}; print(VideoPandaVideoProcessor()(sys.argv[1])['pixel_values_videos'].shape[1])"
    run = subprocess.run([sys.executable, "-c", program, avi(folder)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "8"
    assert videopanda.read_video is read_video
