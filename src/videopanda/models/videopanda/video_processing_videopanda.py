"""Frames to model inputs: resize, place on a canvas, normalise. Needs neither torchvision nor a video decoder.

Dimensions: B videos; T frames; X × Y canvas pixels (height × width); R × C cells of the picture on its canvas.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.video_utils import VideoMetadata

from ..media import check_sampling, read_file, read_picture
from ..pictures import WHITE, to_pixels
from .configuration_videopanda import (
    VideoPandaStabConfig,
    placement_for_size,
    visual_token_count,
)
from .layout_videopanda import token_layout

try:
    from transformers.video_processing_utils import VideoProcessorMixin
except ImportError:  # before transformers 5.19 the only base class needs torchvision
    from transformers.video_processing_utils import BaseVideoProcessor as VideoProcessorMixin

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE_INPUT_NAMES = ["pixel_values", "image_placement"]


def flatten_videos(videos: Any) -> list[Any]:
    """Flatten what a caller may pass for `videos` to a list with one entry per video; None is no video at all.

    One video is an object with `frames`, an array or tensor of four dimensions, a list of frames (PIL images or arrays
    of three dimensions), or the path or address of a file. Lists of videos may be nested, as chat templates nest them
    by conversation.
    """
    if videos is None:
        return []
    if isinstance(videos, dict) and "frames" in videos:  # what chat templates of transformers 5.24 make of a dataclass
        return [SimpleNamespace(**videos)]
    if isinstance(videos, str | Path) or hasattr(videos, "frames"):
        return [videos]
    if isinstance(videos, Image.Image):
        return [[videos]]
    if isinstance(videos, np.ndarray | torch.Tensor):
        if videos.ndim not in (3, 4, 5):
            raise ValueError(f"A video array has 4 dimensions (frames, height, width, 3), got {tuple(videos.shape)}.")
        return list(videos) if videos.ndim == 5 else [videos if videos.ndim == 4 else videos[None]]
    if not isinstance(videos, list | tuple):
        raise ValueError(f"A video must be frames or an object with `frames`, got {type(videos).__name__}.")
    if videos and all(isinstance(item, Image.Image) or getattr(item, "ndim", 0) == 3 for item in videos):
        return [videos]
    if any(item is None for item in videos):
        raise ValueError("one of the videos is None")
    return [video for item in videos for video in flatten_videos(item)]


def to_uint8_frames(video: Any, background: Sequence[int] = WHITE) -> np.ndarray:
    """Return the frames of one video as uint8 (T, height, width, 3); PIL images as `to_pixels` reads them."""
    frames = video.frames if hasattr(video, "frames") else video
    if isinstance(frames, list | tuple):
        if not frames:
            raise ValueError("A video needs at least one frame, got none.")
        frames = [
            to_pixels(frame, background) if isinstance(frame, Image.Image) else np.asarray(frame) for frame in frames
        ]
        sizes = {frame.shape for frame in frames}
        if len(sizes) > 1:
            raise ValueError(f"All frames of a video need the same size, got {sorted(sizes)}.")
        frames = np.stack(frames)
    frames = np.asarray(frames)
    if frames.ndim == 4 and frames.shape[-1] != 3 and frames.shape[1] == 3:
        frames = frames.transpose(0, 2, 3, 1)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"Frames must be RGB uint8 (frames, height, width, 3), got {frames.dtype} {frames.shape}.")
    if not len(frames):
        raise ValueError("A video needs at least one frame, got none.")
    return frames


class VideoPandaVideoProcessor(VideoProcessorMixin):
    """Turn frames into `pixel_values_videos` (B, T, 3, X, Y) and `video_placement` (B, 6).

    A placement row is: top, left, rows, columns of the picture in cells of two patches, the number of frames that send
    tokens, and the number of real frames among them. The defaults are those of the released model.

    Args:
        size: {"height", "width"} of the square canvas in pixels; the longer side of every picture becomes this long.
        patch_size: pixels per patch side.
        num_frames: frames per video: the number sampled from longer videos and, with `pad_frames`, the least number
            sent.
        canvas: "square" places the picture in the middle of the canvas; "tight" makes the canvas as large as the
            picture (the largest picture of a batch), for models that mask padding.
        pad_frames: fill shorter videos with all-zero frames, as the released model does.
        do_sample_frames: take `num_frames` evenly spaced frames of an array with more of them. Objects with `frames`
            and `timestamps`, such as those of `read_video`, were sampled already and stay as they are.
        frame_sampling: the rule by which `videopanda answer` and its kin choose frames of a file: "uniform" takes the
            middles of equal parts, "released" a grid of one frame per second, thinned, as the released code does.
        image_mean, image_std: per channel, for values in [0, 1].
        pad_color: uint8 colour around the picture.
        background: uint8 colour under transparent pixels of files and PIL images; white by default.
        row_tokens, context_token, image_context_token: what the model adds to a frame or image; see `for_stab`.
    """

    model_input_names = ["pixel_values_videos", "video_placement"]  # noqa: RUF012
    # Only for vLLM, which measures memory with made-up videos of this rate: `time_prompt` needs to know their length.
    fps = 1.0

    def __init__(
        self,
        size: dict[str, int] | None = None,
        patch_size: int = 14,
        num_frames: int = 8,
        canvas: Literal["square", "tight"] = "square",
        pad_frames: bool = True,
        do_sample_frames: bool = True,
        frame_sampling: Literal["uniform", "released"] = "uniform",
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        pad_color: list[int] | None = None,
        background: list[int] | None = None,
        row_tokens: bool = True,
        context_token: bool = True,
        image_context_token: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.size = dict(size or {"height": 448, "width": 448})
        self.patch_size = patch_size
        self.num_frames = num_frames
        self.canvas = canvas
        self.pad_frames = pad_frames
        self.do_sample_frames = do_sample_frames
        self.frame_sampling = frame_sampling
        self.image_mean = list(CLIP_MEAN if image_mean is None else image_mean)
        self.image_std = list(CLIP_STD if image_std is None else image_std)
        self.pad_color = [int(255 * mean) for mean in self.image_mean] if pad_color is None else list(pad_color)
        self.background = list(WHITE if background is None else background)
        self.row_tokens = row_tokens
        self.context_token = context_token
        self.image_context_token = image_context_token
        if set(self.size) != {"height", "width"} or self.size["height"] != self.size["width"]:
            raise ValueError(
                f"`size` must be a square canvas such as {{'height': 448, 'width': 448}}, got {self.size}."
            )
        if self.size["height"] % (2 * patch_size):
            raise ValueError(
                f"The canvas of {self.size['height']} pixels is not a multiple of two patches, {2 * patch_size}."
            )
        if canvas not in ("square", "tight"):
            raise ValueError(f"`canvas` must be 'square' or 'tight', got {canvas!r}.")
        if frame_sampling not in ("uniform", "released"):
            raise ValueError(f"`frame_sampling` must be 'uniform' or 'released', got {frame_sampling!r}.")
        if num_frames < 1:
            raise ValueError(f"`num_frames` must be at least 1, got {num_frames}.")
        if pad_frames and canvas == "tight":
            raise ValueError("`pad_frames` needs a square canvas: padding frames send the first 8 × 8 cells of it.")
        if not all(len(value) == 3 for value in (self.image_mean, self.image_std, self.pad_color, self.background)):
            raise ValueError("`image_mean`, `image_std`, `pad_color` and `background` need three channels.")

    @classmethod
    def for_stab(cls, config: VideoPandaStabConfig, **fields: Any) -> "VideoPandaVideoProcessor":
        """Return a processor whose canvas and token counts are those of `config`; `fields` set everything else."""
        if fields.get("canvas") == "tight" and not config.mask_padding:
            raise ValueError("A tight canvas needs `mask_padding`: otherwise a clip's tokens depend on its batch.")
        return cls(
            size={"height": config.image_size, "width": config.image_size},
            patch_size=config.patch_size,
            row_tokens=config.row_tokens,
            context_token=config.context_token,
            image_context_token=config.image_context_token,
            **fields,
        )

    @property
    def cell_size(self) -> int:
        """Pixels per side of the square that becomes one visual token."""
        return 2 * self.patch_size

    @property
    def max_cells(self) -> int:
        """Cells per side of the square canvas."""
        return self.size["height"] // self.cell_size

    def token_count(self, num_frames: int, height: int, width: int, kind: Literal["video", "image"] = "video") -> int:
        """Count the tokens of a clip of `num_frames` frames, or of an image, of `height` × `width` source pixels."""
        is_video = kind == "video"
        return visual_token_count(
            num_frames,
            height,
            width,
            image_size=self.size["height"],
            patch_size=self.patch_size,
            row_tokens=self.row_tokens,
            context_token=self.context_token if is_video else self.image_context_token,
            pad_to_frames=self.num_frames if self.pad_frames and is_video else 0,
        )

    def token_layout(self, inputs: Any, i: int, kind: Literal["video", "image"] = "video") -> torch.Tensor:
        """Frame, row, column and kind of every token of visual `i` of a batch of this processor, (V, 4)."""
        context_token = self.context_token if kind == "video" else self.image_context_token
        return token_layout(inputs[f"{kind}_placement"][i], self.max_cells, self.row_tokens, context_token)

    def sample_frames(
        self, metadata: VideoMetadata, num_frames: int | None = None, fps: float | None = None, **kwargs: Any
    ) -> np.ndarray:
        """Return the indices of the frames to use, by the rule `frame_sampling`.

        `fps` takes that many frames per second of a video with known frame rate, `num_frames` a fixed number (default:
        that of the processor). A video with fewer frames is used whole. The rule "released" goes by seconds: where the
        frame rate is unknown, or with `fps`, the middles of equal parts are taken.
        """
        total = metadata.total_num_frames
        if fps is not None:
            if metadata.fps is None:
                raise ValueError("Sampling by `fps` needs the frame rate of the video: pass `video_metadata`.")
            num_frames = max(1, round(total / metadata.fps * fps))
        elif self.frame_sampling == "released" and metadata.fps is not None:
            return self.released_frames(total, metadata.fps, num_frames or self.num_frames)
        count = min(total, num_frames or self.num_frames)
        return ((np.arange(count) + 0.5) * total / count).astype(np.int64)

    @staticmethod
    def released_frames(total: int, fps: float, most: int) -> np.ndarray:
        """Return the frames that the released code takes: one per second, but at least 8, thinned to `most`.

        Equal to `videopanda.video.read.released_frame_indices`, which this folder does without.
        """
        frames = np.arange(0, total, max(1, round(fps)))
        if len(frames) < min(8, most + 1):
            count = min(8, total)
            frames = np.arange(count) * max(1, (total - 1) // max(1, count - 1))
        return frames if len(frames) <= most else frames[np.linspace(0, len(frames) - 1, most).astype(np.int64)]

    def preprocess(
        self,
        videos: Any,
        video_metadata: Any = None,
        do_sample_frames: bool | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        return_tensors: str | None = None,
        return_metadata: bool | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Process one video or any nesting of them; see `flatten_videos` for what counts as a video.

        `video_metadata` holds one entry per video (frame rate, duration); `num_frames` or `fps` overrides the sampling.
        A file is read by `videopanda.read_video`, whose rules and errors these are; all its frames without sampling.
        With `return_metadata` the result also has `video_metadata`: duration, frame rate and chosen indices of each
        video.
        """
        if kwargs:
            raise ValueError(f"{', '.join(sorted(kwargs))}: set this when the processor is created, not per call.")
        flat = flatten_videos(videos)
        if video_metadata is None or isinstance(video_metadata, dict | VideoMetadata):
            video_metadata = [video_metadata] * len(flat)
        while len(video_metadata) and isinstance(video_metadata[0], list):  # nested by conversation, like the videos
            video_metadata = [entry for group in video_metadata for entry in group]
        if len(video_metadata) != len(flat):
            raise ValueError(f"`video_metadata` has {len(video_metadata)} entries for {len(flat)} videos.")
        check_sampling(num_frames, fps)
        sample = self.do_sample_frames if do_sample_frames is None else do_sample_frames
        clips, metadata = [], []
        for video, known in zip(flat, video_metadata):
            if hasattr(video, "frames") and (num_frames is not None or fps is not None):
                raise ValueError("num_frames and fps choose frames of a file; these frames are decoded already")
            if isinstance(video, str | Path):
                video = self._read(video, sample, num_frames, fps)
            frames = to_uint8_frames(video, self.background)
            entry = self._metadata(video, frames, known)
            if sample and not hasattr(video, "frames"):
                indices = self.sample_frames(entry, num_frames, fps)
                frames = frames[indices]
                entry.frames_indices = indices.tolist()
            clips.append(frames)
            metadata.append(entry)
        pixel_values, placement = self._place(clips)
        features = BatchFeature(
            {"pixel_values_videos": pixel_values, "video_placement": placement}, tensor_type=return_tensors
        )
        if return_metadata:
            features["video_metadata"] = metadata
        return features

    def preprocess_images(self, images: Any, return_tensors: str | None = None) -> BatchFeature:
        """Process images, each as a video of one frame, to `pixel_values` and `image_placement`."""
        clips = [to_uint8_frames(image, self.background) for image in flatten_images(self.fetch_images(images))]
        pixel_values, placement = self._place(clips, is_image=True)
        data = {"pixel_values": pixel_values.squeeze(1), "image_placement": placement}
        return BatchFeature(data, tensor_type=return_tensors)

    def _read(self, path: str | Path, sample: bool, num_frames: int | None, fps: float | None) -> Any:
        """Read the chosen frames of a file; a still picture is one frame."""
        chosen: dict[str, Any] = {"sampling": "all"}
        if sample and fps is not None:
            chosen = {"fps": fps}
        elif sample:
            chosen = {"num_frames": num_frames or self.num_frames, "sampling": self.frame_sampling}
        video = read_file(path, background=self.background, **chosen)
        return replace(video, frames=video.frames[:1], indices=video.indices[:1]) if video.is_still else video

    def fetch_images(self, images: Any) -> Any:
        """Read images that are given as files, addresses or data URLs; others stay as they are."""
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        return read_picture(images, self.background) if isinstance(images, str | Path) else images

    @staticmethod
    def _metadata(video: Any, frames: np.ndarray, known: Any) -> VideoMetadata:
        """Collect what is known of a video: from its own fields, else from the caller's metadata."""
        entry = VideoMetadata(total_num_frames=len(frames), height=frames.shape[1], width=frames.shape[2])
        if known is not None:
            given = dict(known)
            entry.fps, entry.duration = given.get("fps"), given.get("duration")
            check_sampling(None, entry.fps)
            entry.frames_indices = given.get("frames_indices")
            if entry.duration is None and entry.fps and given.get("total_num_frames"):
                entry.duration = given["total_num_frames"] / entry.fps
        if hasattr(video, "frames"):
            entry.duration = float(video.duration)
            if hasattr(video, "indices"):  # of `read_video`
                entry.fps, entry.frames_indices = video.source_fps, [int(index) for index in video.indices]
        return entry

    def layout(self, sizes: Sequence[tuple[int, ...]]) -> BatchFeature:
        """Return the inputs that clips of (frames, height, width) become, with their pixels on the meta device."""
        placement, shape = self._layout(sizes)
        pixel_values = torch.empty(shape, device="meta")
        return BatchFeature({"pixel_values_videos": pixel_values, "video_placement": torch.tensor(placement)})

    def _layout(
        self, sizes: Sequence[tuple[int, ...]], is_image: bool = False
    ) -> tuple[list[tuple[int, int, int, int, int, int]], tuple[int, int, int, int, int]]:
        """Return placement rows and shape (B, T, 3, X, Y) of the pixels for clips of (frames, height, width)."""
        cell, tight = self.cell_size, self.canvas == "tight"
        least = self.num_frames if self.pad_frames and not is_image else 0
        placement = [
            (*placement_for_size(height, width, self.max_cells, tight), max(frames, least), frames)
            for frames, height, width in sizes
        ]
        rows, columns, frames = (max(row[i] for row in placement) for i in (2, 3, 4))
        x, y = (rows * cell, columns * cell) if tight else (self.size["height"], self.size["width"])
        return placement, (len(placement), frames, 3, x, y)

    def _place(self, clips: list[np.ndarray], is_image: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Resize, normalise and put clips on canvases of one size; (B, T, 3, X, Y) and (B, 6)."""
        if not clips:
            raise ValueError("There is no video or image to process.")
        placement, shape = self._layout([clip.shape[:3] for clip in clips], is_image)
        cell, tight = self.cell_size, self.canvas == "tight"
        mean = torch.tensor(self.image_mean).view(3, 1, 1)
        std = torch.tensor(self.image_std).view(3, 1, 1)
        pad_color = (torch.tensor(self.pad_color, dtype=torch.float32).view(3, 1, 1) / 255 - mean) / std
        pixel_values = torch.zeros(shape)
        for canvas, clip, (top, left, num_rows, num_columns, *_) in zip(pixel_values, clips, placement):
            resized = self.resize(clip, num_rows * cell, num_columns * cell)
            if not tight:
                canvas[: len(clip)] = pad_color
            x, y = top * cell, left * cell
            picture = torch.from_numpy(resized).permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)
            canvas[: len(clip), :, x : x + num_rows * cell, y : y + num_columns * cell] = picture
        return pixel_values, torch.tensor(placement, dtype=torch.int64)

    @staticmethod
    def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
        """Resize uint8 frames (T, h, w, 3) with PIL's bicubic filter, the default of the released model.

        Width first, then height: Pillow 13 and later choose the order by size, and it shows in the rounding between.
        """
        if frames.shape[1:3] == (height, width):
            return np.array(frames)
        bicubic = Image.Resampling.BICUBIC
        wide = [Image.fromarray(frame).resize((width, frame.shape[0]), bicubic) for frame in frames]
        return np.stack([np.asarray(image.resize((width, height), bicubic)) for image in wide])


def flatten_images(images: Any) -> list[Any]:
    """Flatten what a caller may pass for `images` to a list of videos of one frame each; files stay paths."""
    if images is None:
        return []
    if isinstance(images, list | tuple):
        if any(image is None for image in images):
            raise ValueError("one of the images is None")
        return [image for item in images for image in flatten_images(item)]
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return [image[None] for image in images]
    if isinstance(images, str | Path | Image.Image) or getattr(images, "ndim", 0) == 3:
        return [[images]]
    raise ValueError(f"An image must be a PIL image or an array of three dimensions, got {type(images).__name__}.")


__all__ = ["VideoPandaVideoProcessor", "flatten_images", "flatten_videos"]
