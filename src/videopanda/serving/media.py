"""Turns request parts into clips for the engine: finds files, decodes them once, caches by content and sampling."""

import asyncio
import base64
import binascii
import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np

from videopanda.inference.answer import Message
from videopanda.inference.clip import ClipMemoryCache, EncodedClip, prepare_clips
from videopanda.serving.decoder_pool import DecoderPool
from videopanda.serving.errors import ContextLengthError, ForbiddenError, NotFoundError, ServeError, UnfitError
from videopanda.serving.fetch import FetchPolicy, fetch
from videopanda.serving.prompt import PromptRules
from videopanda.serving.protocol import (
    ChatMessage,
    ChatRequest,
    FilePart,
    FrameChoice,
    FrameListPart,
    ImagePart,
    InputVideoPart,
    MediaPart,
    TextPart,
)
from videopanda.serving.uploads import FileStore, LocalMedia, Upload, open_media
from videopanda.video.order import one_frame_order, shuffled_order
from videopanda.video.read import Video

_DATA_HEADER, _BASE64 = 1000, ";base64,"
_ONE = {"num_frames": 1}  # arguments for reading an image


@dataclass(frozen=True)
class _Shown:
    """A part of a request with its files: one file, or one per frame of a list taken at `fps`."""

    place: str
    files: Sequence[LocalMedia]
    is_image: bool
    sampling: dict[str, Any]
    fps: float | None = None

    @property
    def key(self) -> str:
        """Identifies content and sampling: equal keys mean equal frames."""
        digests = [file.sha256 for file in self.files]
        digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        return f"{'image' if self.is_image else 'video'} {digest} {sorted(self.sampling.items())} {self.fps}"


class MediaLoader:
    """Loads the videos and images of conversations. A clip used by several concurrent requests is decoded once.

    max_frame_bytes: pixels waiting for the engine, over all requests; further clips are decoded later.
    max_recent_bytes: decoded frames of the last videos, kept for analyses and baselines, which need them again.
    media_root: folder whose files may be referred to as file:// URLs, if any.
    """

    def __init__(
        self,
        rules: PromptRules,
        cache: ClipMemoryCache,
        pool: DecoderPool,
        store: FileStore,
        policy: FetchPolicy,
        media_root: Path | None = None,
        max_frame_bytes: int = 1 << 30,
        max_recent_bytes: int = 1 << 27,
    ):
        self.rules, self.cache, self.pool, self.store, self.policy = rules, cache, pool, store, policy
        self.media_root, self.max_frame_bytes = media_root, max_frame_bytes
        self.processor = rules.processor
        self.max_recent_bytes = max_recent_bytes
        self.frame_bytes = 0
        self._recent: OrderedDict[str, Video] = OrderedDict()
        self._freed = asyncio.Event()
        self._decoding: dict[str, asyncio.Task[EncodedClip]] = {}
        self._in_use: set[LocalMedia] = set()  # by tasks, which close them
        self._decoded: weakref.WeakValueDictionary[str, EncodedClip] = weakref.WeakValueDictionary()
        self._slots = asyncio.Semaphore(pool.limits.workers)
        self._fetchers = ThreadPoolExecutor(8, thread_name_prefix="fetch")  # so slow hosts only delay each other

    async def conversation(self, request: ChatRequest, owner: str) -> tuple[list[Message], list[EncodedClip]]:
        """Messages for the chat template, and the visuals for their placeholders. Raises ServeError."""
        turns: list[Message] = []
        shown: list[_Shown] = []
        opened: list[LocalMedia] = []
        try:
            for i, message in enumerate(request.messages):
                content: list[dict[str, Any]] = []
                for j, part in enumerate(message.content):
                    if not isinstance(part, TextPart):
                        place = f"messages[{i}].content[{j}]"
                        with _named(place):
                            shown.append(await self._find(place, part, request, owner, opened))
                        content.append({"type": "image" if shown[-1].is_image else "video"})
                # Videos and images come before the text, in any order of the parts: models were trained this way.
                content += [{"type": "text", "text": part.text} for part in message.content if part.type == "text"]
                turns.append({"role": message.role, "content": content})
            turns = self.rules.fold(turns)
            await asyncio.to_thread(self.rules.check, turns)
            return turns, await self._visuals(shown)
        finally:
            for media in opened:
                if media not in self._in_use:
                    media.close()

    # -- finding -------------------------------------------------------------------------------------------------------
    async def _find(self, place: str, part: MediaPart, request: ChatRequest, owner: str, opened: list) -> _Shown:
        """The files of a part, also added to `opened`, and how to read them."""

        async def find(url: str) -> LocalMedia:
            opened.append(await self._file(url, owner))
            return opened[-1]

        try:
            choice = request.choice_for(part)
        except ValueError as error:
            raise ServeError(str(error)) from error
        if isinstance(part, FrameListPart):
            if choice:
                raise ServeError("all frames of a list are shown: omit the fields that choose frames")
            if len(part.video) > self.pool.limits.limits.frames:
                raise UnfitError(
                    f"a list of {len(part.video)} frames is longer than the limit of {self.pool.limits.limits.frames}"
                )
            files = [await find(url) for url in part.video]
            if any(file.kind != "image" for file in files):
                raise UnfitError("a list of frames holds images only: send a video as video_url")
            return _Shown(place, files, False, _ONE, part.fps)
        if isinstance(part, FilePart):
            if part.file.file_id is not None:
                media = self._stored(part.file.file_id, owner)
            else:
                media = await find(_as_data_url(part.file.file_data))
            return self._shown(place, media, media.kind == "image", choice)
        if isinstance(part, ImagePart):
            media = await find(part.image_url.url)
            if not media.mime.startswith("image/"):  # a GIF may be a picture or a video
                raise UnfitError("image_url holds a video: send it as video_url")
            return self._shown(place, media, True, choice)
        if isinstance(part, InputVideoPart):
            media = await find(part.input_video.url or _as_data_url(part.input_video.data))
        else:
            media = await find(part.video_url.url)
        return self._shown(place, media, False, choice)

    def _shown(self, place: str, media: LocalMedia, is_image: bool, choice: dict[str, Any]) -> _Shown:
        if is_image and "baseline" in choice:
            raise ServeError("baseline needs a video, and this is an image")
        return _Shown(place, [media], is_image, _ONE if is_image else self.sampling(choice))

    def _stored(self, id_: str, owner: str) -> LocalMedia:
        file = self.store.get(id_, owner)
        return LocalMedia(file.path, file.sha256, file.kind, file.mime, is_temporary=False)

    async def _file(self, url: str, owner: str) -> LocalMedia:
        """The file for a URL or an id."""
        if url.startswith("file-"):
            return self._stored(url, owner)
        if url[:7].lower() == "file://":
            return await asyncio.to_thread(self._local, url)
        with self.store.new("", owner) as upload:
            if url[:5].lower() == "data:":
                await asyncio.to_thread(_write_data, url, upload)
            else:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._fetchers, fetch, url, upload.write, self.policy)
            return upload.source()

    def _local(self, url: str) -> LocalMedia:
        """A file below the media root, links resolved."""
        if self.media_root is None:
            raise ForbiddenError("this server reads no file:// URLs (see --media-root): upload the file instead")
        plain = url[7:].removeprefix("localhost")  # some clients percent-encode names, others do not
        path = Path(plain if Path(plain).exists() else unquote(plain)).resolve()
        if not plain.startswith("/") or not path.is_relative_to(self.media_root.resolve()):
            raise ForbiddenError("only file:// URLs below --media-root are read")
        try:
            return open_media(path)
        except (OSError, ValueError) as error:
            if isinstance(error, ServeError):
                raise
            raise NotFoundError(f"no file at {path}") from error

    # -- decoding ------------------------------------------------------------------------------------------------------
    def sampling(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `read_video`; by default those of `videopanda answer`."""
        processor = self.processor.video_processor
        if "fps" in choice:
            return choice
        return {"num_frames": processor.num_frames, "sampling": processor.frame_sampling} | choice

    async def _visuals(self, shown: Sequence[_Shown]) -> list[EncodedClip]:
        """The visuals of one request: cached, or decoded within limits on concurrent decoding and waiting frames."""
        visuals = [visual for one in shown if (visual := self._known(one.key)) is not None]
        if len(visuals) == len(shown):
            return visuals
        async with self._slots:
            while self.frame_bytes >= self.max_frame_bytes:
                self._freed.clear()
                await self._freed.wait()
            visuals, tokens = [], 0
            for one in shown:
                with _named(one.place):
                    visuals.append(await self._visual(one))
                    if (clip := visuals[-1]).source_shape is not None and not one.is_image:
                        tokens += self.processor.video_processor.token_count(*clip.source_shape)
                        if len(visuals) > 1 and tokens > self.rules.context:  # the engine refuses a single one
                            raise ContextLengthError(
                                "the conversation is longer than the model's context length: the videos up to this one "
                                f"take {tokens:,} tokens of {self.rules.context:,}: use fewer frames"
                            )
            return visuals

    def _known(self, key: str) -> EncodedClip | None:
        return self.cache.get(key) or self._decoded.get(key)

    async def _visual(self, shown: _Shown) -> EncodedClip:
        """From the cache, from another request, or decoded."""
        key = shown.key
        if (known := self._known(key)) is not None:
            return known
        task = self._decoding.get(key)
        if task is None:
            self._in_use.update(shown.files)
            task = asyncio.create_task(self._decode(key, shown))
            self._decoding[key] = task
            task.add_done_callback(partial(self._done, key))
        try:
            return await asyncio.shield(task)  # others may wait for it when this request is given up
        except asyncio.CancelledError:
            await asyncio.wait([task])  # so that requests that are given up never decode more than there are slots for
            raise

    def _done(self, key: str, task: asyncio.Task[EncodedClip]) -> None:
        del self._decoding[key]
        if not task.cancelled():
            task.exception()  # whoever is waiting gets the error; if nobody is, it can be ignored

    async def _decode(self, key: str, shown: _Shown) -> EncodedClip:
        try:
            sampling = dict(shown.sampling)
            baseline = sampling.pop("baseline", None)
            video = await self._read(replace(shown, sampling=sampling))
        finally:
            self._in_use.difference_update(shown.files)
            for file in shown.files:
                file.close()
        order = _order(baseline, len(video))
        if baseline is not None:  # other frames in the same places: the prompt keeps the times of the places
            video = replace(video, frames=video.frames[order], indices=video.indices[order])
        video = replace(video, duration=video.end - video.start)  # stated in the prompt, as by `videopanda answer`
        kind: Literal["video", "image"] = "image" if shown.is_image else "video"
        (clip,) = await asyncio.to_thread(prepare_clips, self.processor, [video], kind, [key])
        clip.times = tuple(clip.times[i] for i in order) if baseline is not None else clip.times
        self._count(clip)
        self._decoded[key] = clip
        return clip

    async def _read(self, shown: _Shown) -> Video:
        if (known := self._recent.get(shown.key)) is not None:
            self._recent.move_to_end(shown.key)
            return known
        videos = [await self.pool.read(file.path, **shown.sampling) for file in shown.files]
        video = videos[0] if shown.fps is None else _joined(videos, shown.fps)
        if shown.is_image and not video.is_still:
            raise UnfitError("an animation is not an image: send it as video_url")
        self._recent[shown.key] = video
        while sum(one.frames.nbytes for one in self._recent.values()) > self.max_recent_bytes:
            self._recent.popitem(last=False)
        return video

    async def frames(
        self,
        part: MediaPart,
        owner: str,
        request: ChatRequest | None = None,
        place: str = "video",
        num_frames: int | None = None,
    ) -> Video:
        """The decoded frames of one part that an answer to a `request` uses. Raises ServeError.

        With `num_frames`: that many of a video, unless the part says otherwise, uniform in time whatever the rule of
        the model.
        """
        request = request or ChatRequest(messages=[ChatMessage(role="user", content=[part])])
        opened: list[LocalMedia] = []
        try:
            with _named(place):
                shown = await self._find(place, part, request, owner, opened)
                if num_frames is not None and (shown.is_image or "baseline" in shown.sampling):
                    raise ServeError("find needs an unaltered video: images and baseline are not supported")
                if num_frames is not None and not isinstance(part, FrameListPart):
                    most, choice = min(num_frames, self.pool.limits.limits.frames), request.choice_for(part)
                    shown = replace(shown, sampling=choice if "fps" in choice else {"num_frames": most, **choice})
                async with self._slots:
                    return await self._read(shown)
        finally:
            for media in opened:
                media.close()

    def _count(self, clip: EncodedClip) -> None:
        """Count the pixels of a clip for as long as they are in memory."""
        loop = asyncio.get_running_loop()

        def freed(size: int) -> None:
            self.frame_bytes -= size
            self._freed.set()

        def collected(size: int) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(freed, size)

        self.frame_bytes += clip.num_bytes
        weakref.finalize(clip.inputs, collected, clip.num_bytes).atexit = False

    async def thumbnails(self, id_: str, choice: FrameChoice, owner: str) -> tuple[Video, int]:
        """Thumbnails of the frames that a question about a file would use, and the number of their visual tokens."""
        media = self._stored(id_, owner)
        kind: Literal["video", "image"] = "image" if media.kind == "image" else "video"
        sampling = _ONE if kind == "image" else self.sampling(choice.chosen)
        video = await self.pool.read(media.path, **sampling)
        return video, self.processor.video_processor.token_count(len(video.frames), video.height, video.width, kind)


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Errors raised in the block name the part of the request."""
    try:
        yield
    except ServeError as error:
        if error.param is not None:
            raise
        raise type(error)(f"{place}: {error}", place) from error


def _order(baseline: str | None, num_frames: int) -> np.ndarray:
    """The frame in each place, for a baseline or none. Raises UnfitError."""
    if baseline is None:
        return np.arange(num_frames)
    if baseline == "one_frame":
        return one_frame_order(num_frames)
    if num_frames < 2:
        raise UnfitError("a single frame cannot be shuffled: choose more frames")
    return shuffled_order(num_frames, np.random.default_rng(0))


def _joined(videos: Sequence[Video], fps: float) -> Video:
    """Images, taken `fps` times a second, as one video."""
    sizes = {video.frames.shape[1:3] for video in videos}
    if len(sizes) > 1:
        raise UnfitError("the frames of a list must all have the same size")
    count = len(videos)
    times = np.arange(count) / fps
    return replace(
        videos[0],
        frames=np.concatenate([video.frames for video in videos]),
        timestamps=times,
        times=times,
        indices=np.arange(count),
        source_fps=fps,
        start=0.0,
        end=count / fps,
        decoded_frames=count,
    )


def _as_data_url(data: str | None) -> str:
    """Base64 with or without the prefix of a data URL."""
    assert data is not None
    return data if data[:5].lower() == "data:" else f"data:;base64,{data}"


def _write_data(url: str, upload: Upload) -> None:
    """Decode a data URL in base64 as browsers do: with line breaks, without padding, percent-encoded, or URL-safe.

    Browsers name the codecs of a recording in the header, "video/webm;codecs=vp8,opus", with a comma.
    """
    start = url[:_DATA_HEADER].lower().find(_BASE64)
    if start < 0:
        raise ServeError("a data URL must look like data:video/mp4;base64,…")
    if url[:start].lower() == "data:video/jpeg":
        raise ServeError('video/jpeg, a list of frames, is not supported: send {"type": "video", "video": [URL, …]}')
    data = url[start + len(_BASE64) :]
    data = "".join((unquote(data) if "%" in data else data).split()).replace("-", "+").replace("_", "/")
    try:
        content = base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServeError("the data URL is not base64") from error
    upload.write(content)
