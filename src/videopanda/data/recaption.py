"""Has a stronger model describe the clips of training rows: `videopanda data recaption`.

    recaption("train.json", Path("captions.jsonl"), Remote("qwen2.5-vl-72b", "http://host/v1"), media_root="videos")

Captions that a larger model rewrote train better (docs/elva.md). The output is a file of conversations that `train`
and `data check` read, one line per clip. Each line says in `provenance` which model wrote it, from which frames and
prompt, and what the row said before. The same call continues where an interrupted one stopped.
"""

import base64
import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from videopanda.data.formats.opening import open_sources
from videopanda.data.formats.record import Medium, Record, RowError
from videopanda.data.formats.sources import Source
from videopanda.data.growing_file import append_lines, only_writer
from videopanda.data.openai_client import openai_client
from videopanda.video.read import Video, VideoReadError, read_video

PROMPT = "Describe this video in detail: what is shown, what happens, and in which order."
MAX_NEW_TOKENS = 256
JPEG_QUALITY = 90
_ROW_START = b'{"id": '


class CaptionError(Exception):
    """The model gave no caption for a clip."""


@dataclass(frozen=True)
class CaptionJob:
    """A clip to describe, and the row that it comes from."""

    source: Source
    row: int
    record: Record

    @property
    def medium(self) -> Medium:
        """The only clip of the row."""
        return self.record.media[0]

    @property
    def key(self) -> tuple[str, float | None, float | None]:
        """Identifies the clip."""
        return self.medium.path, self.medium.start, self.medium.end


class Captioner(Protocol):
    """A model that describes clips."""

    name: str

    def describe(self, path: Path, video: Video, prompt: str) -> tuple[str, str]:
        """A caption, and the name of the model that gave it. Raises `CaptionError`."""
        ...


class Remote:
    """A model on a server that speaks the OpenAI protocol; the key is read by the client from OPENAI_API_KEY.

    Args:
        send: "frames" as pictures, which every such server takes, or "video", the file itself as `video_url` (vLLM,
            SGLang, `videopanda serve`), for models that sample frames themselves.
    """

    def __init__(self, name: str, base_url: str, send: str = "frames", retries: int = 5, timeout: float = 120.0):
        if send not in ("frames", "video"):
            raise ValueError(f"send must be frames or video, got {send!r}")
        self.name, self.send = name, send
        self._client = openai_client(base_url, timeout, retries)

    def describe(self, path: Path, video: Video, prompt: str) -> tuple[str, str]:
        """Ask the server once per clip; busy and broken servers are retried with exponential backoff."""
        import openai

        if self.send == "video":
            kind = "mp4" if path.suffix == "" else path.suffix[1:].lower()
            parts: list[Any] = [{"type": "video_url", "video_url": {"url": _data(f"video/{kind}", path.read_bytes())}}]
        else:
            urls = (_data("image/jpeg", _jpeg(frame)) for frame in video.frames)
            parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        messages: list[Any] = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]
        try:
            reply = self._client.chat.completions.create(
                model=self.name, messages=messages, temperature=0.0, max_tokens=MAX_NEW_TOKENS
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise ValueError(f"the server refused the request: {error}") from error
        except openai.OpenAIError as error:
            raise CaptionError(f"{error} {error.__cause__ or ''}".strip()) from error
        return (reply.choices[0].message.content or "").strip(), reply.model


class Local:
    """A checkpoint folder of this package; None is the bundled model."""

    def __init__(self, folder: Path | None):
        from videopanda.inference.load import BUNDLED_MODEL

        self.folder = folder or BUNDLED_MODEL
        self.name = self.folder.resolve().name

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Model and processor, loaded for the first clip: after all rows have been read."""
        from videopanda.inference.load import load

        return load(self.folder)

    def describe(self, path: Path, video: Video, prompt: str) -> tuple[str, str]:
        """Answer the prompt about the clip, greedily."""
        from videopanda.inference.answer import ask

        (answer,) = ask(*self.loaded, video, [prompt], max_new_tokens=MAX_NEW_TOKENS)
        return answer.answer, self.name


@dataclass
class CaptionReport:
    """What was done. `failed` clips have no caption, by path; they are tried again by the next call."""

    written: int = 0
    known: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    skipped_rows: int = 0  # without a clip, with several, or unreadable as a row


def recaption(
    data: str | Path,
    out: Path,
    captioner: Captioner,
    prompt: str = PROMPT,
    num_frames: int = 8,
    format: str = "auto",
    media_root: Path | None = None,
    concurrency: int = 1,
) -> CaptionReport:
    """Describe every clip that the rows name once, and append a row for each to `out`.

    Raises:
        ValueError: the data cannot be read, `out` was written with another model, prompt or number of frames or is
            being written by another process, or the server refuses.
    """
    report = CaptionReport()
    jobs: dict[tuple, CaptionJob] = {}
    for source in open_sources(data, format, media_root):
        for row, record in source.records():
            if isinstance(record, RowError) or len(record.media) != 1 or record.media[0].kind != "video":
                report.skipped_rows += 1
            else:
                job = CaptionJob(source, row.number, record)
                jobs.setdefault(job.key, job)
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    settings = {"model": captioner.name, "prompt_sha256": digest, "num_frames": num_frames}
    with only_writer(out), ThreadPoolExecutor(concurrency) as pool:
        known = _known(out, settings)
        report.known = len(jobs.keys() & known)
        todo = [job for key, job in jobs.items() if key not in known]
        waiting = {pool.submit(_described, job, captioner, prompt, num_frames): job for job in todo}
        try:
            for done in as_completed(waiting):
                job = waiting[done]
                try:
                    line = done.result()
                except (CaptionError, VideoReadError) as error:
                    report.failed[job.medium.path] = " ".join(str(error).split())
                    continue
                line["provenance"] |= settings
                append_lines(out, [json.dumps(line, ensure_ascii=False)])
                report.written += 1
        finally:
            pool.shutdown(cancel_futures=True)
    return report


def _described(job: CaptionJob, captioner: Captioner, prompt: str, num_frames: int) -> dict[str, Any]:
    path, medium = job.source.locate(job.medium), job.medium
    video = read_video(path, num_frames=num_frames, start=medium.start, end=medium.end, image_fps=medium.fps)
    if (medium.start is not None or medium.end is not None) and getattr(captioner, "send", "") == "video":
        raise CaptionError("a part of a clip cannot be sent as a file: use --send frames")
    caption, model = captioner.describe(path, video, prompt)
    if not caption:
        raise CaptionError("the caption is empty")
    part = {key: value for key, value in (("start", medium.start), ("end", medium.end)) if value is not None}
    return {
        "id": job.record.id,
        "video": medium.path,
        **part,
        "conversations": [{"from": "human", "value": f"<video>\n{prompt}"}, {"from": "gpt", "value": caption}],
        "provenance": {
            "answered_by": model,
            "source": job.source.name,
            "row": job.row,
            "before": [turn.answer for turn in job.record.turns],
            "frame_times": [round(float(t), 3) for t in video.timestamps],
            "date": date.today().isoformat(),
        },
    }


def _known(out: Path, settings: dict[str, Any]) -> set[tuple]:
    """The clips that a file describes; a partial last line is that of an interruption, and not counted."""
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    torn = content[len(whole) :]
    if torn and (not torn.startswith(_ROW_START[: len(torn)]) or _is_json(torn)):
        raise ValueError(f"{out}: its last line was not written by this command: use another --output")
    known = set()
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            there = {key: row["provenance"][key] for key in settings}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{out}: line {number} was not written by this command: use another --output") from error
        for key, value in settings.items():
            if there[key] != value:
                raise ValueError(f"{out} was written with {key} {there[key]}, not {value}: use another --output")
        known.add((row["video"], row.get("start"), row.get("end")))
    return known


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _jpeg(frame: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
