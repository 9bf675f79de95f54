"""The shared base of all video processors: choosing and reading frames as 8-bit RGB. Part of exported folders.

Needs neither torchvision nor a video decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.video_utils import VideoMetadata

from .compression import compressed_layout
from .compression_config import CompressionConfig
from .media import check_sampling, read_file, read_picture
from .pictures import WHITE, to_pixels
from .visual import VISUAL_INPUTS

try:
    from transformers.video_processing_utils import VideoProcessorMixin
except ImportError:  # before transformers 5.19 the only base class needs torchvision
    from transformers.video_processing_utils import BaseVideoProcessor as VideoProcessorMixin

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def flatten_videos(videos: Any) -> list[Any]:
    """Flatten the accepted forms of `videos` to a list with one entry per video; None means no videos.

    One video is an object with `frames`, an array or tensor of four dimensions, a list of frames (PIL images or arrays
    of three dimensions), or the path or URL of a file. Lists of videos may be nested, as chat templates nest them
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


def to_uint8_frames(video: Any, background: Sequence[int] = WHITE) -> np.ndarray | list[np.ndarray]:
    """Return the frames of one video as uint8 (T, height, width, 3); PIL images as `to_pixels` reads them.

    Frames of different sizes become a list of (height, width, 3).
    """
    frames = video.frames if hasattr(video, "frames") else video
    if isinstance(frames, list | tuple):
        if not frames:
            raise ValueError("A video needs at least one frame, got none.")
        frames = [
            to_pixels(frame, background) if isinstance(frame, Image.Image) else np.asarray(frame) for frame in frames
        ]
        for t, frame in enumerate(frames):
            if frame.ndim != 3 or 3 not in (frame.shape[-1], frame.shape[0]) or frame.dtype != np.uint8:
                raise ValueError(
                    f"Frames must be RGB uint8 (height, width, 3), got {frame.dtype} {frame.shape} as frame {t}: "
                    "give transparent frames as PIL images, which are put on the background."
                )
        if len({frame.shape for frame in frames}) > 1:
            return [frame if frame.shape[-1] == 3 else frame.transpose(1, 2, 0) for frame in frames]
        frames = np.stack(frames)
    frames = np.asarray(frames)
    if frames.ndim == 4 and frames.shape[-1] != 3 and frames.shape[1] == 3:
        frames = frames.transpose(0, 2, 3, 1)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"Frames must be RGB uint8 (frames, height, width, 3), got {frames.dtype} {frames.shape}.")
    if not len(frames):
        raise ValueError("A video needs at least one frame, got none.")
    return frames


@dataclass
class ClipMetadata(VideoMetadata):
    """What is known of a clip beside its pixels. frame_times: seconds at which its frames are first shown."""

    frame_times: list[float] | None = None

    @property
    def times(self) -> list[float] | None:
        """The same, by the frame rate where only that is known; None without either."""
        if self.frame_times is not None or self.fps is None:
            return self.frame_times
        indices = range(self.total_num_frames) if self.frames_indices is None else self.frames_indices
        return [index / self.fps for index in indices]


class FrameProcessor(VideoProcessorMixin):
    """The base of a family's video processor: choice of frames, files, pictures.

    A family adds `token_count`, `token_layout`, `layout` and `place`, which turns frames into its inputs. With
    `mixed_sizes` the frames of one video may differ in size.
    """

    model_input_names = list(VISUAL_INPUTS["video"])  # noqa: RUF012
    image_input_names = list(VISUAL_INPUTS["image"])  # noqa: RUF012
    # Only for vLLM, which measures memory with made-up videos of this rate: `time_prompt` needs to know their length.
    fps = 1.0
    patch_size: int
    mixed_sizes = False
    changeable: tuple[str, ...] = ("num_frames",)  # settings that another value leaves the weights valid for
    num_frames: int
    do_sample_frames: bool
    frame_sampling: str
    background: list[int]
    compression: dict[str, Any] | None = None  # fields of the `CompressionConfig` of the model; None: no compressor
    max_visual_tokens: int | None = None  # of the memory that the model was trained with, if it was

    def coarse(self) -> "FrameProcessor":
        """A processor that shows frames at a quarter of the resolution; this one, where frames have one size only."""
        return self

    @property
    def frames_per_step(self) -> int:
        """Consecutive frames that share the tokens of one time step, after the compressor of the model."""
        return self.frames_per_number * int((self.compression or {}).get("keep_every", 1))

    @property
    def frames_per_number(self) -> int:
        """Consecutive frames that a compressor averages, and which share a frame number in the layout of its tokens."""
        settings = CompressionConfig(**(self.compression or {}))
        return settings.pool_time if settings.is_active else 1

    def compressed(self, layout_V4: torch.Tensor) -> torch.Tensor:
        """The layout of the tokens of one visual after the compressor of the model, if it has one."""
        return compressed_layout(CompressionConfig(**(self.compression or {})), layout_V4)

    @property
    def cell_size(self) -> int:
        """Pixels per side of the square of 2 × 2 patches that becomes one visual token."""
        return 2 * self.patch_size

    def token_count(self, num_frames: int, height: int, width: int, kind: Literal["video", "image"] = "video") -> int:
        """Count the tokens of a clip of `num_frames` frames, or of an image, of `height` × `width` source pixels."""
        raise NotImplementedError

    def place(self, clips: list[Any], is_image: bool = False) -> dict[str, torch.Tensor]:
        """Make the model's inputs, by name, of uint8 clips (T, H, W, 3)."""
        raise NotImplementedError

    def place_scaled(self, clips: Sequence[Any], scales: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """As `place`, with the sides of each frame scaled. Raises ValueError unless frames may differ in size."""
        raise ValueError("all frames of a video have the same size in this model, so they cannot be scaled one by one")

    def frames_of(self, video: Any) -> np.ndarray | list[np.ndarray]:
        """The frames of one video; see `to_uint8_frames`. Raises ValueError for sizes that the family cannot mix."""
        frames = to_uint8_frames(video, self.background)
        if isinstance(frames, list) and not self.mixed_sizes:
            sizes = sorted({frame.shape[:2] for frame in frames})
            raise ValueError(f"All frames of a video need the same size, got {sizes} (height, width).")
        return frames

    def clip_shape(self, frames: np.ndarray | Sequence[np.ndarray]) -> tuple[int, int, int]:
        """Frames, height and width of a clip; of several sizes the one with the most tokens."""
        sizes = sorted({frame.shape[:2] for frame in frames})
        return len(frames), *max(sizes, key=lambda size: self.token_count(1, *size))

    def place_chunk(self, frames: np.ndarray) -> dict[str, torch.Tensor]:
        """Make the model's inputs of the next frames (T, H, W, 3) of a clip, for `encode_chunk`."""
        return self.place([frames])

    def sample_frames(
        self, metadata: VideoMetadata, num_frames: int | None = None, fps: float | None = None, **kwargs: Any
    ) -> np.ndarray:
        """Return the indices of the frames to use, by the rule `frame_sampling`.

        `fps` takes that many frames per second of a video with known frame rate, `num_frames` a fixed number (default:
        that of the processor). A video with fewer frames is used whole. The rule "released" goes by seconds: if the
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
        """Return the frames chosen by the released code: one per second, but at least 8, thinned to `most`.

        Equal to `videopanda.video.read.released_frame_indices`, duplicated because this folder must be self-contained.
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
        frame_scales: Sequence[np.ndarray] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Process one video or any nesting of them; see `flatten_videos` for what counts as a video.

        `video_metadata` holds one entry per video (frame rate, duration); `num_frames` or `fps` overrides the sampling.
        A file is read by `videopanda.read_video`, with its rules and errors; without sampling, all its frames are read.
        With `return_metadata` the result also has `video_metadata`: duration, frame rate and chosen indices of each
        video. `frame_scales` (T,) of each video are the sides of its frames relative to the full ones, in (0, 1].
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
                raise ValueError("num_frames and fps choose frames of a file; these frames are already decoded")
            if isinstance(video, str | Path):
                video = self._read(video, sample, num_frames, fps)
            frames = self.frames_of(video)
            entry = self._metadata(video, frames, known)
            if sample and not hasattr(video, "frames"):
                indices = self.sample_frames(entry, num_frames, fps)
                frames = [frames[i] for i in indices] if isinstance(frames, list) else frames[indices]
                entry.frames_indices = indices.tolist()
            clips.append(frames)
            metadata.append(entry)
        placed = self.place(clips) if frame_scales is None else self.place_scaled(clips, frame_scales)
        features = BatchFeature(placed, tensor_type=return_tensors)
        if return_metadata:
            features["video_metadata"] = metadata
        return features

    def preprocess_images(self, images: Any, return_tensors: str | None = None) -> BatchFeature:
        """Process images, each as a video of one frame."""
        clips = [self.frames_of(image) for image in flatten_images(self.fetch_images(images))]
        return BatchFeature(self.place(clips, is_image=True), tensor_type=return_tensors)

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
        """Read images given as files, URLs or data URLs; others are unchanged."""
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        return read_picture(images, self.background) if isinstance(images, str | Path) else images

    @staticmethod
    def _metadata(video: Any, frames: np.ndarray | Sequence[np.ndarray], known: Any) -> ClipMetadata:
        """Collect the metadata of a video: from its own fields, else from the caller's metadata."""
        height, width = frames[0].shape[:2]
        entry = ClipMetadata(total_num_frames=len(frames), height=height, width=width)
        if known is not None:
            given = dict(known)
            entry.fps, entry.duration = given.get("fps"), given.get("duration")
            check_sampling(None, entry.fps)
            entry.frames_indices = given.get("frames_indices")
            if entry.duration is None and entry.fps and given.get("total_num_frames"):
                entry.duration = given["total_num_frames"] / entry.fps
        if hasattr(video, "frames"):
            entry.duration = float(video.duration)
            if hasattr(video, "timestamps"):
                entry.frame_times = [float(seconds) for seconds in video.timestamps]
            if hasattr(video, "indices"):  # of `read_video`
                entry.fps, entry.frames_indices = video.source_fps, [int(index) for index in video.indices]
        return entry

    @staticmethod
    def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
        """Resize uint8 frames (T, h, w, 3) with PIL's bicubic filter, the default of the released model.

        Width first, then height: Pillow 13 and later choose the order by size, which changes the intermediate rounding.
        """
        if frames.shape[1:3] == (height, width):
            return np.array(frames)
        bicubic = Image.Resampling.BICUBIC
        wide = [Image.fromarray(frame).resize((width, frame.shape[0]), bicubic) for frame in frames]
        return np.stack([np.asarray(image.resize((width, height), bicubic)) for image in wide])


def flatten_images(images: Any) -> list[Any]:
    """Flatten the accepted forms of `images` to a list of videos of one frame each; files stay paths."""
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
