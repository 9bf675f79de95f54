"""From what a request shows to what the engine takes: files found, read once, and cached by content and sampling."""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from videopanda.inference.answer import Message
from videopanda.inference.clip_cache import Visual, VisualCache
from videopanda.serving.decoder_pool import DecoderPool
from videopanda.serving.errors import ServeError, UnfitError
from videopanda.serving.fetch import FetchPolicy, fetch
from videopanda.serving.protocol import ChatMessage, FilePart, FrameChoice, ImagePart, TextPart, VideoPart
from videopanda.serving.uploads import FileStore, LocalMedia, Upload
from videopanda.video.read import Video


class MediaLoader:
    """Reads the videos and images of conversations; one that is being read is read for all who ask for it."""

    def __init__(self, processor: Any, cache: VisualCache, pool: DecoderPool, store: FileStore, policy: FetchPolicy):
        self.processor, self.cache, self.pool, self.store, self.policy = processor, cache, pool, store, policy
        self._reading: dict[str, asyncio.Task[Visual]] = {}

    async def conversation(
        self, messages: Sequence[ChatMessage], choice: FrameChoice, owner: str
    ) -> tuple[list[Message], list[Visual]]:
        """Messages for the chat template, and the visuals they stand for. Raises ServeError."""
        turns, shown = [], []
        for message in messages:
            parts = (
                [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
            )
            here = [part for part in parts if not isinstance(part, TextPart)]
            visuals = [await self._visual(part, choice, owner) for part in here]
            # What is shown comes before what is said of it, in whatever order it was sent: so models were trained.
            content = [{"type": "image" if visual.is_image else "video"} for visual in visuals]
            for part in parts:
                if isinstance(part, TextPart):
                    self._check_text(part.text)
                    content.append({"type": "text", "text": part.text})
            turns.append({"role": message.role, "content": content})
            shown += visuals
        self._check_roles(turns)
        return turns, shown

    def _check_text(self, text: str) -> None:
        for token in (self.processor.video_token, self.processor.image_token):
            if token in text:
                raise ServeError(f"text must not contain {token}: send the video or image as a part of its own")

    def _check_roles(self, turns: Sequence[Message]) -> None:
        template = self.processor.chat_template
        if any(turn["role"] == "system" for turn in turns) and "system" not in str(template):
            raise ServeError("this model knows no system messages: say it in the user's", "messages")
        if not any(part.get("text", "").strip() for part in turns[-1]["content"]):
            raise ServeError("the last message asks nothing: it needs a text", "messages")

    async def _visual(self, part: VideoPart | ImagePart | FilePart, choice: FrameChoice, owner: str) -> Visual:
        if isinstance(part, FilePart):
            source = self._stored(part.file.file_id, owner)
            return await self.read(source, choice, is_image=source.kind == "image")
        is_image = isinstance(part, ImagePart)
        source = await self._find(part.image_url.url if isinstance(part, ImagePart) else part.video_url.url, owner)
        if is_image and source.kind != "image":
            source.close()
            raise UnfitError("image_url holds a video: send it as video_url")
        return await self.read(source, choice, is_image)

    def _stored(self, id_: str, owner: str) -> LocalMedia:
        file = self.store.get(id_, owner)
        return LocalMedia(file.path, file.sha256, file.kind, is_temporary=False)

    async def _find(self, url: str, owner: str) -> LocalMedia:
        """The file behind an address."""
        if url.startswith("file-"):
            return self._stored(url, owner)
        with self.store.new("", owner) as upload:
            if url[:5].lower() == "data:":
                await asyncio.to_thread(_write_data, url, upload)
            else:
                await asyncio.to_thread(fetch, url, upload.write, self.policy)
            return upload.source()

    # -- reading -------------------------------------------------------------------------------------------------------
    def sampling(self, choice: FrameChoice) -> dict[str, Any]:
        """Arguments of `read_video`; without any choice those of `videopanda answer`."""
        processor = self.processor.video_processor
        chosen = choice.model_dump(exclude_none=True)
        if choice.fps is not None:
            return chosen
        return {"num_frames": processor.num_frames, "sampling": processor.frame_sampling} | chosen

    async def read(self, source: LocalMedia, choice: FrameChoice, is_image: bool) -> Visual:
        """The visual of a file, from the cache or read; closes the source."""
        sampling = {"num_frames": 1} if is_image else self.sampling(choice)
        key = f"{'image' if is_image else 'video'} {source.sha256} {sorted(sampling.items())}"
        known = self.cache.get(key)
        if known is not None:
            source.close()
            return known
        task = self._reading.get(key)
        if task is None:
            task = asyncio.create_task(self._read(key, source, sampling, is_image))
            self._reading[key] = task
            task.add_done_callback(partial(self._done, key))
        else:
            source.close()
        return await asyncio.shield(task)  # others may wait for it when this request is given up

    def _done(self, key: str, task: asyncio.Task[Visual]) -> None:
        del self._reading[key]
        if not task.cancelled():
            task.exception()  # told to whoever waits; if nobody does, that is no error

    async def _read(self, key: str, source: LocalMedia, sampling: dict[str, Any], is_image: bool) -> Visual:
        try:
            video = await self.pool.read(source.path, **sampling)
        finally:
            source.close()
        video = replace(video, duration=video.end - video.start)  # what the model is told, as `videopanda answer` does
        times = tuple(float(moment) for moment in video.timestamps)
        visual = Visual(key, is_image, video, times)
        self.cache.put(visual)
        return visual

    async def thumbnails(self, id_: str, choice: FrameChoice, owner: str) -> Video:
        """The frames that a question about a file would look at, small."""
        source = self._stored(id_, owner)
        sampling = {"num_frames": 1} if source.kind == "image" else self.sampling(choice)
        return await self.pool.read(source.path, **sampling)


def _write_data(url: str, upload: Upload) -> None:
    """Decode a data URL in base64."""
    header, comma, data = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise ServeError("a data URL must look like data:video/mp4;base64,…")
    try:
        upload.write(base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError) as error:
        if isinstance(error, ServeError):
            raise
        raise ServeError("the data URL is not base64") from error
