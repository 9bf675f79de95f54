"""Video-Panda as a chat model of lmms-eval 0.7.

    python -m lmms_eval --model videopanda --model_args pretrained=out/7b,num_frames=8 --tasks mvbench --batch_size 8

Only lmms-eval imports this module. Answers are greedy, whatever a task asks for. A video that cannot be read gives an
empty reply, which a task counts as wrong, and a warning; it does not end the run.
"""

import logging
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from videopanda.inference.answer import Message, build_prompt
from videopanda.inference.clip import EncodedClip, encode_clips
from videopanda.inference.engine import Engine, Limits
from videopanda.inference.load import load
from videopanda.inference.request import MAX_NEW_TOKENS, Failed, GenerateRequest
from videopanda.video.read import VideoReadError, read_video

logger = logging.getLogger(__name__)


class VideoPanda(lmms):
    """A checkpoint folder; `pretrained` empty is the bundled model. Under accelerate, each process takes its share."""

    is_simple = False

    def __init__(
        self,
        pretrained: str = "",
        num_frames: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        shared = str(self.accelerator.device) if self._world_size > 1 else device
        self.network, self.processor = load(Path(pretrained) if pretrained else None, shared)
        self.num_frames = int(num_frames or self.processor.video_processor.num_frames)
        self.batch_size = min(int(batch_size), int(max_batch_size or batch_size))
        self.engine = Engine(self.network, self.processor, Limits(max_num_seqs=self.batch_size))

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One reply per request, in their order."""
        replies: list[str] = []
        for options, group in groupby((request.args for request in requests), key=lambda args: _options(args[2])):
            chunk = list(group)
            for i in range(0, len(chunk), self.batch_size):
                replies += self._answer(chunk[i : i + self.batch_size], *options)
        return replies

    def _answer(self, batch: list[tuple[Any, ...]], max_new_tokens: int, until: tuple[str, ...]) -> list[str]:
        answers = [""] * len(batch)
        requests: dict[int, GenerateRequest] = {}
        for place, (_, doc_to_messages, _, doc_id, task, split) in enumerate(batch):
            messages, source = _split(doc_to_messages(self.task_dict[task][split][doc_id]))
            try:
                clips = [self._encode(source)] if source is not None else []
            except VideoReadError as error:
                logger.warning("%s, question %s gets an empty answer: %s", task, doc_id, error)
                continue
            ids = build_prompt(self.processor, messages, clips)
            requests[place] = GenerateRequest(ids, clips, max_new_tokens, stop=until)
        for place, result in zip(requests, self.engine.generate(list(requests.values()))):
            if isinstance(result, Failed):
                raise result.error
            answers[place] = result.text
        return answers

    def _encode(self, source: str) -> EncodedClip:
        sampling = self.processor.video_processor.frame_sampling
        video = read_video(source, num_frames=self.num_frames, sampling=sampling)
        (clip,) = encode_clips(self.network, self.processor, [replace(video, duration=video.end - video.start)])
        return clip

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported: our scores come from generated text."""
        raise NotImplementedError("videopanda answers generate_until tasks only")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported."""
        raise NotImplementedError("videopanda answers generate_until tasks only")


def _options(given: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Maximum length of an answer, and the stop strings."""
    until = given.get("until") or ()
    return int(given.get("max_new_tokens", MAX_NEW_TOKENS)), (until,) if isinstance(until, str) else tuple(until)


def _split(messages: list[Message]) -> tuple[list[Message], str | None]:
    """Messages with a placeholder for the one video of the conversation, and its path.

    lmms-eval takes GIF files for images and WebM files for sounds; a path is read by its content.

    Raises:
        ValueError: there are several videos, or something that is not a file.
    """
    sources: list[str] = []
    ours: list[Message] = []
    for message in messages:
        content: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "text":
                content.append({"type": "text", "text": part["text"]})
                continue
            if not isinstance(part["url"], str) or sources:
                raise ValueError("videopanda takes one video file per conversation")
            sources.append(part["url"])
            content.append({"type": "video"})
        ours.append({"role": message["role"], "content": content})
    return ours, sources[0] if sources else None
