"""The shared base of all processors: text with placeholders, and their visuals. Part of exported folders."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import BatchFeature, ProcessingKwargs, ProcessorMixin
from transformers.processing_utils import MultiModalData

from .configuration import TIMESTAMPS, check_choice
from .frames import FrameProcessor, VideoProcessorMixin, flatten_images, flatten_videos
from .hub import add_code
from .prompts import VICUNA_CHAT_TEMPLATE


class VisualProcessorKwargs(ProcessingKwargs, total=False):
    """Keyword arguments of the processor with our defaults, in a form that transformers before 5.20 also supports."""

    _defaults = {"text_kwargs": {"return_tensors": "pt", "padding": True, "padding_side": "left"}}  # type: ignore[misc]  # noqa: RUF012


class VisualProcessor(ProcessorMixin):
    """Tokenizer, video processor and chat template of a family, which adds `config_class` and `video_processor_for`.

    Texts are padded on the left, as `generate` requires, unless the tokenizer or the caller says otherwise.

    Args:
        video_processor: makes pixels and placements, and counts tokens.
        tokenizer: has `<video>` and `<image>` in its vocabulary.
        chat_template: jinja template; default the Vicuna layout of the released model.
        time_prompt: put the length of the clip in front of its tokens, as in "12.5 seconds: ". Needs the duration, from
            the video object or from `video_metadata`.
        timestamps: "frame" puts the time of every frame in front of its tokens, as in "<1.5 seconds>", the form of
            Qwen3-VL (2511.21631). Needs the times of the frames, from the video object or from `video_metadata`.
    """

    valid_processor_kwargs = VisualProcessorKwargs
    config_class: type  # of the family

    def __init__(
        self,
        video_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        time_prompt: bool = False,
        timestamps: Literal["none", "frame"] = "none",
        **kwargs: Any,
    ):
        check_choice("timestamps", timestamps, TIMESTAMPS)
        self.time_prompt, self.timestamps = time_prompt, timestamps
        self._check_stamps(video_processor)
        self.video_token, self.image_token = "<video>", "<image>"
        vocabulary = tokenizer.get_vocab()
        for token in (self.video_token, self.image_token):
            if token not in vocabulary:
                raise ValueError(
                    f"The tokenizer has no {token}: add it with "
                    f"`tokenizer.add_special_tokens({{'additional_special_tokens': ['<video>', '<image>']}})`."
                )
        self.video_token_id = vocabulary[self.video_token]
        self.image_token_id = vocabulary[self.image_token]
        tokenizer.padding_side = "left"  # as `generate` needs it, also where a pipeline pads by itself
        if chat_template is None:
            chat_template = VICUNA_CHAT_TEMPLATE
        super().__init__(video_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def for_config(cls, config: Any, tokenizer: Any, chat_template: str | None = None) -> Any:
        """Return the processor of a new model, which states the clip's length in the prompt."""
        told: dict[str, Any] = {"time_prompt": True, "timestamps": config.timestamps}
        return cls(cls.video_processor_for(config), tokenizer, chat_template, **told)

    @staticmethod
    def video_processor_for(config: Any) -> FrameProcessor:
        """Return the video processor of a new model."""
        raise NotImplementedError

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Accept our video processor: transformers resolves the base class only if torchvision is installed."""
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        # Remote code may load our class twice under one name, so only the base class is asked for.
        if not isinstance(argument, VideoProcessorMixin):
            raise TypeError(f"The video processor must be a FrameProcessor, got {type(argument).__name__}.")
        return VideoProcessorMixin

    @property
    def image_processor(self) -> FrameProcessor:
        """The video processor with the names of image inputs: an image is a video of one frame."""
        image_processor = copy(self.video_processor)
        image_processor.model_input_names = image_processor.image_input_names
        return image_processor

    @property
    def model_input_names(self) -> list[str]:
        """Names of everything the processor returns."""
        own = self.video_processor
        return [*self.tokenizer.model_input_names, *own.model_input_names, *own.image_input_names]

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> BatchFeature:
        """Tokenize texts with `<video>` and `<image>` placeholders and process the visuals that belong to them.

        Visuals replace the placeholders in order, across all texts; nested lists are checked text by text. Texts that
        already begin with the start token get no second one.

        Raises:
            ValueError: when placeholders and visuals differ in number, or truncation would cut visual tokens.
        """
        images = None if not flatten_images(images) else images
        videos = None if not flatten_videos(videos) else videos
        texts = [text] if isinstance(text, str) else text or []
        start = self.tokenizer.bos_token
        if start and any(str(entry).startswith(start) for entry in texts):  # the chat template has written it already
            kwargs.setdefault("add_special_tokens", False)
        return super().__call__(images=images, text=text, videos=videos, **kwargs)

    def validate_inputs(
        self, images: Any = None, text: Any = None, videos: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Check that there are as many placeholders as visuals."""
        if images is None and text is None and videos is None:
            raise ValueError("There is nothing to process: give text, videos or images.")
        if text is None:
            return
        texts = [text] if isinstance(text, str) else list(text)
        if not all(isinstance(entry, str) for entry in texts):
            raise ValueError("`text` must be a string or a list of strings.")
        if not texts or not all(entry.strip() for entry in texts):
            raise ValueError("`text` is empty: give a question, with one placeholder per visual.")
        for token, visuals, flatten in (
            (self.video_token, videos, flatten_videos),
            (self.image_token, images, flatten_images),
        ):
            markers = [entry.count(token) for entry in texts]
            given = flatten(visuals)
            if sum(markers) != len(given):
                raise ValueError(f"The text has {sum(markers)} {token} placeholders, but {len(given)} were given.")
            nested = isinstance(visuals, list | tuple) and all(isinstance(item, list | tuple) for item in visuals)
            if nested and len(visuals) == len(texts) and given:
                for number, (marked, item) in enumerate(zip(markers, visuals)):
                    if marked != len(flatten(item)):
                        raise ValueError(
                            f"Text {number} has {marked} {token} placeholders, but {len(flatten(item))} given for it."
                        )

    def save_pretrained(
        self, save_directory: str | Path, *args: Any, self_contained: bool = False, **kwargs: Any
    ) -> Any:
        """Write tokenizer, chat template and settings to a folder; see `ProcessorMixin.save_pretrained`.

        Args:
            self_contained: write the code too, so that the folder loads with `trust_remote_code=True` where this
                package is missing. A processor that came from such a folder is always saved with its code.
        """
        files = super().save_pretrained(str(save_directory), *args, **kwargs)
        if self_contained or "auto_map" in vars(self.video_processor):
            files += add_code(Path(save_directory) / "processor_config.json", self.config_class)
        return files

    def _process_videos(self, videos: Any, **kwargs: Any) -> tuple[BatchFeature, list[str]]:
        kwargs["return_metadata"] = True
        features = self.video_processor(videos, **kwargs)
        return features, [self.placeholder_text(features, i) for i in range(len(features["video_metadata"]))]

    def _process_images(self, images: Any, **kwargs: Any) -> tuple[BatchFeature, list[str]]:
        features = self.video_processor.preprocess_images(images)
        count = len(flatten_images(images))
        return features, [self.placeholder_text(features, i, "image") for i in range(count)]

    def placeholder_text(self, inputs: Any, i: int, kind: Literal["video", "image"] = "video") -> str:
        """Return what replaces the placeholder of visual `i` of a batch: its tokens, and its times if wanted."""
        layout = self.video_processor.token_layout(inputs, i, kind)
        if kind == "image":
            return self.image_token * len(layout)
        known = inputs["video_metadata"][i] if "video_metadata" in inputs else None
        times = None if known is None or self.timestamps == "none" else known.times
        steps = None if times is None else times[:: self.video_processor.frames_per_step]
        return self.video_text(layout, None if known is None else known.duration, steps)

    def video_text(self, layout_V4: torch.Tensor, duration: float | None, times: Sequence[float] | None) -> str:
        """What stands for the tokens of a video that lasts `duration` seconds and whose time steps start at `times`.

        A time step is a frame, or the frames that a compressor averages; padding frames have no time.

        Raises:
            ValueError: duration or times are part of the prompt, and unknown.
        """
        text = self._time_text(duration)
        if self.timestamps == "none":
            return text + self.video_token * len(layout_V4)
        self._check_stamps(self.video_processor)
        if times is None:
            raise ValueError(
                "This processor states the time of every frame in the prompt (`timestamps`), but the times are "
                "unknown: pass the result of `read_video`, or `video_metadata` with a frame rate."
            )
        counts = torch.unique_consecutive(layout_V4[:, 0], return_counts=True)[1].tolist()
        stamps = [*map(self.stamp, times), *[""] * (len(counts) - len(times))]
        return text + "".join(stamp + self.video_token * count for stamp, count in zip(stamps, counts))

    def _check_stamps(self, video_processor: Any) -> None:
        if self.timestamps != "none" and (video_processor.compression or {}).get("merge_tokens"):
            raise ValueError(
                "timestamps=frame states the time of every frame, and compression.merge_tokens leaves tokens of "
                "several frames: set timestamps=none, or compression.merge_tokens=0"
            )

    @staticmethod
    def stamp(seconds: float) -> str:
        """What precedes the tokens of a frame that is first shown at `seconds`."""
        return f"<{seconds:.1f} seconds>"

    def stamp_tokens(self, times: Sequence[float]) -> int:
        """Number of text tokens that the stamps of a clip add to its visual tokens."""
        if self.timestamps == "none":
            return 0
        stamps = [self.stamp(seconds) for seconds in times[:: self.video_processor.frames_per_step]]
        return sum(map(len, self.tokenizer(stamps, add_special_tokens=False)["input_ids"])) if stamps else 0

    def _time_text(self, duration: float | None) -> str:
        if not self.time_prompt:
            return ""
        if duration is None:
            raise ValueError(
                "This processor states the length of a video in the prompt (`time_prompt`), but it is "
                "unknown: pass the result of "
                "`read_video`, or `video_metadata` with a duration."
            )
        return f"{duration:.1f} seconds: "

    def _get_num_multimodal_tokens(
        self, image_sizes: Any = None, video_sizes: Any = None, **kwargs: Any
    ) -> MultiModalData:
        """Count tokens for images (height, width) and videos (frames, height, width) without touching pixels."""
        counts: dict[str, list[int]] = {}
        if image_sizes is not None:
            counts["num_image_tokens"] = [
                self.video_processor.token_count(1, *size, kind="image") for size in image_sizes
            ]
            counts["num_image_patches"] = [1] * len(image_sizes)
        if video_sizes is not None:
            counts["num_video_tokens"] = [self.video_processor.token_count(*size) for size in video_sizes]
        return MultiModalData(**counts)
