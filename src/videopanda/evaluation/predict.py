"""Writes a model's answers to all questions of a benchmark to a file that survives interruptions.

    predict("mvbench", "MVBench/json", "predictions.jsonl", model="out/7b", videos="MVBench/video")

Work is cut into batches that are always the same, and each batch is appended at once. A run that finds its file adds
what is missing; the result is identical to that of an uninterrupted run. Several processes, started by torchrun or by
Ray, share the batches; every torchrun process writes its own part, and the last one joins them.
"""

import glob
import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from videopanda.data.growing_file import only_writer, remove_torn_line
from videopanda.evaluation.benchmarks import subtitles
from videopanda.evaluation.benchmarks.files import AnnotationError, Rejected
from videopanda.evaluation.benchmarks.item import Item
from videopanda.evaluation.benchmarks.table import load
from videopanda.evaluation.benchmarks.videos import Videos
from videopanda.evaluation.conditions import Asked, ClipRef, Shown, asked, show, told_length
from videopanda.evaluation.predictions import (
    Failure,
    Prediction,
    Protocol,
    append_predictions,
    check_appendable,
    read_predictions,
    watched,
)
from videopanda.evaluation.prompts import Prompts
from videopanda.evaluation.provenance import versions, weights_sha256
from videopanda.hub import name_of
from videopanda.inference.answer import build_prompt, question_messages
from videopanda.inference.changes import changes_of
from videopanda.inference.clip import EncodedClip, encode_clips
from videopanda.inference.engine import Engine, Limits
from videopanda.inference.load import BUNDLED_MODEL
from videopanda.inference.load import load as load_model
from videopanda.inference.look_twice import FirstLook, first_look, second_look
from videopanda.inference.request import Failed, GenerateRequest
from videopanda.inference.stream_encoder import encode_long
from videopanda.inference.visual_cache import TokenDiskCache
from videopanda.video.activity import Rule, chosen_times
from videopanda.video.read import VideoReadError, read_video

WITH_SUBTITLES = ("video-mme-subtitles", "longvideobench-subtitles")  # benchmarks whose prompts hold subtitles


@dataclass(frozen=True)
class PredictJob:
    """What to ask which model. Can be sent to another process."""

    bench: str
    path: Path  # annotations
    videos: Path
    model: Path | None = None  # None: the bundled one
    condition: str = "full"
    _: KW_ONLY
    errata: str = "as-published"
    num_frames: int | None = None  # None: the model's own number
    fps: float = 1.0  # with one of the next two
    max_visual_tokens: int | None = None  # encode the whole clip at `fps` into a memory of this size
    last_frames: int = 0  # encode the last frames at `fps`, and nothing else
    frames_by: Rule | None = None  # choose `num_frames` frames by a rule of `chosen_times`
    look_twice: bool = False  # choose `num_frames` frames for each question, by a first look at the whole clip
    batch_size: int = 8
    max_new_tokens: int = 64
    seed: int = 0  # of the shuffled frames
    prompts: Prompts = field(default_factory=Prompts)
    cache: Path | None = None  # folder of visual tokens; answers do not depend on it
    cache_bytes: int = 10 * 2**30
    limit: int | None = None  # ask only this many questions, the same ones every time
    settings: Mapping[str, Any] = field(default_factory=dict)  # to change in the model that is loaded for this job

    @cached_property
    def batches(self) -> list[list[Asked]]:
        """The questions in the order in which they are asked.

        Raises:
            ValueError: unknown benchmark, errata mode or condition; no annotations, videos or subtitles.
        """
        items = load(self.bench, self.path, self.errata, self.limit).items
        if self.bench in WITH_SUBTITLES and not any("subtitles" in item.extra for item in items):
            raise ValueError(f"there are no subtitles below {self.path}: pass the folder that contains them")
        all_ = asked(items, Videos(self.videos), self.condition)
        return [all_[i : i + self.batch_size] for i in range(0, len(all_), self.batch_size)]


# Frames; why there are none; for the condition no_video what the prompt tells about the clip.
_Read = Shown | tuple[Failure, str] | str


class Predictor:
    """A loaded model that answers the batches of a job."""

    def __init__(self, job: PredictJob, device: str | None = None, loaded: tuple[Any, Any] | None = None):
        self.job = job
        self.model, self.processor = loaded or load_model(job.model, device, settings=job.settings)
        self.engine = Engine(self.model, self.processor, Limits(max_num_seqs=job.batch_size))
        self.cache = TokenDiskCache(job.cache, job.cache_bytes) if job.cache else None
        in_memory = job.max_visual_tokens is not None and not job.look_twice
        special = (in_memory, job.last_frames > 0, job.frames_by is not None, job.look_twice)
        if sum(special) > 1 or (any(special) and (job.condition not in ("full", "no_video") or job.cache)):
            raise ValueError(
                "max_visual_tokens, last_frames, frames_by and look_twice are mutually exclusive, and need the "
                "condition full or no_video and no cache"
            )
        video_processor = self.processor.video_processor
        self.num_frames = job.num_frames or video_processor.num_frames
        folder = job.model or BUNDLED_MODEL
        vision = self.model.vision_modules().values()
        self.protocol = Protocol(
            benchmark=job.bench,
            errata=job.errata,
            condition=job.condition,
            model=name_of(folder),
            model_sha256=weights_sha256(folder),
            vision_parameters=sum(p.numel() for part in vision for p in part.parameters()),
            num_frames=self.num_frames,
            sampling=self._sampling(),
            prompt_sha256=job.prompts.sha256,
            generation={"do_sample": False, "max_new_tokens": job.max_new_tokens, "batch_size": job.batch_size},
            seed=job.seed,
            versions=versions(),
            settings=changes_of(self.model),
        )

    def _sampling(self) -> str:
        """How frames are chosen, in words."""
        job = self.job
        if job.look_twice:
            return "two looks" + f", the first in {job.max_visual_tokens} visual tokens" * bool(job.max_visual_tokens)
        if job.max_visual_tokens is not None:
            return f"{job.fps:g} fps, at most {job.max_visual_tokens} visual tokens"
        if job.last_frames:
            return f"the last {job.last_frames} frames at {job.fps:g} fps"
        return job.frames_by or str(self.processor.video_processor.frame_sampling)

    def _read_whole(self, source: ClipRef) -> Shown:
        """The clip in a memory of bounded size, or its last frames; encoded already."""
        job = self.job
        clip, _, log = encode_long(
            self.model,
            self.processor,
            source.path,
            fps=job.fps,
            max_visual_tokens=job.max_visual_tokens,
            last_frames=job.last_frames,
            start=source.start,
            end=source.end,
        )
        return Shown(clip, (), tuple(start for start, *_ in log.steps), "pyav")

    def _look(self, source: ClipRef) -> Shown:
        """The first look at a whole file."""
        if source.start is not None or source.end is not None:
            raise ValueError("look_twice reads whole files, and this question is about a part of one")
        first = first_look(
            self.model,
            self.processor,
            source.path,
            num_frames=self.num_frames,
            fps=self.job.fps,
            max_visual_tokens=self.job.max_visual_tokens,
        )
        return Shown(first, (), first.clip.times, "pyav")

    def answers(self, numbers: Iterable[int]) -> Iterator[list[Prediction]]:
        """Answer batches; while the model works on one, the videos of the next are read."""
        batches = [self.job.batches[number] for number in numbers]
        with ThreadPoolExecutor(1) as reader:
            following = [reader.submit(self._read, batch) for batch in batches[:1]]
            for i, batch in enumerate(batches):
                videos = following.pop().result()
                following = [reader.submit(self._read, next_) for next_ in batches[i + 1 : i + 2]]
                yield self._answer(batch, videos)

    def _read(self, batch: Sequence[Asked]) -> dict[ClipRef, _Read]:
        read = self._read_length if self.job.condition == "no_video" else self._read_one
        return {source: read(source) for source in dict.fromkeys(question.source for question in batch)}

    def _read_length(self, source: ClipRef) -> str:
        """What the prompts of the other conditions say about the clip; "" without a readable file."""
        stamped = self.processor.timestamps != "none"
        if source.path is None or not (self.processor.time_prompt or stamped):
            return ""
        sampling = self.processor.video_processor.frame_sampling if stamped else "uniform"
        try:
            clip = show(source, "full", self.num_frames if stamped else 1, sampling, 0).clip
        except (VideoReadError, ValueError):  # a question can also be asked without its video
            return ""
        assert not isinstance(clip, EncodedClip | FirstLook)
        return told_length(self.processor, clip)

    def _read_one(self, source: ClipRef) -> _Read:
        if source.path is None:
            return "missing_video", "no file of this name, or several, below the folder of videos"
        sampling = self.processor.video_processor.frame_sampling
        try:
            if self.job.look_twice:
                return self._look(source)
            if self.job.max_visual_tokens is not None or self.job.last_frames:
                return self._read_whole(source)
            if self.job.frames_by is not None:
                times, _ = chosen_times(source.path, self.num_frames, self.job.frames_by)
                video = read_video(source.path, timestamps=times, background=self.processor.video_processor.background)
                return Shown(video, tuple(video.indices.tolist()), tuple(video.timestamps.tolist()), video.decoder)
            return show(source, self.job.condition, self.num_frames, sampling, self.job.seed)
        except VideoReadError as error:
            return "unreadable_video", error.reason
        except ValueError as error:
            return "error", str(error)

    def _answer(self, batch: Sequence[Asked], videos: dict[ClipRef, _Read]) -> list[Prediction]:
        readable = {source: video for source, video in videos.items() if isinstance(video, Shown)}
        clips = {source: video.clip for source, video in readable.items() if isinstance(video.clip, EncodedClip)}
        looks = {source: video.clip for source, video in readable.items() if isinstance(video.clip, FirstLook)}
        shown = {source: video.clip for source, video in readable.items() if source not in clips | looks}
        if shown:
            clips.update(zip(shown, encode_clips(self.model, self.processor, list(shown.values()), self.cache)))
        rows: list[Prediction] = []
        prompts: dict[int, tuple[list[Any], EncodedClip | None]] = {}  # by the place of the row
        for question in batch:
            row, messages = self._ask(question, videos[question.source])
            if messages is not None and question.source in looks:
                text = messages[0]["content"][-1]["text"]
                clip, _ = second_look(
                    self.model, self.processor, looks[question.source], text, num_frames=self.num_frames
                )
                row = replace(row, frame_times=clip.times, frame_indices=clip.indices or (), decoder=clip.decoder or "")
                prompts[len(rows)] = messages, clip
            elif messages is not None:
                prompts[len(rows)] = messages, clips.get(question.source)
            rows.append(row)
        for place, answer in self._reply(prompts).items():
            rows[place] = replace(rows[place], **answer)
        return rows

    def _ask(self, question: Asked, video: _Read) -> tuple[Prediction, list[Any] | None]:
        """The row without its answer, and the conversation to answer; None if there is none."""
        row = Prediction(question.item.id, "", protocol=self.protocol)
        if not isinstance(video, str):
            row = replace(row, video=question.source.name)
        if isinstance(video, tuple):
            return replace(row, prediction=None, failure=video[0], reason=video[1]), None
        shown = video if isinstance(video, Shown) else None
        if shown:
            row = replace(row, frame_indices=shown.indices, frame_times=shown.times, decoder=shown.decoder)
        try:
            text = self.job.prompts.ask(question.item, self._subtitles(question.subtitles, shown))
            text = f"{video}{text}" if isinstance(video, str) else text
            messages = question_messages(self.processor, text, has_video=shown is not None)
        except ValueError as error:
            return replace(row, prediction=None, failure="error", reason=str(error)), None
        prompt = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return replace(row, prompt_sha256=hashlib.sha256(prompt.encode()).hexdigest()), messages

    def _subtitles(self, item: Item, video: Shown | None) -> list[str]:
        """The lines at the times of the frames, for benchmarks with subtitles; none without a video."""
        if video is None or self.job.bench not in WITH_SUBTITLES or "subtitles" not in item.extra:
            return []
        root = self.job.path if self.job.path.is_dir() else self.job.path.parent
        cues = subtitles.read(root / item.extra["subtitles"], float(item.extra.get("subtitle_offset", 0.0)))
        times = video.clip.times if isinstance(video.clip, EncodedClip) else video.times  # all that are in a memory
        return [cue.text for cue in subtitles.at_times(cues, times)]

    def _reply(self, prompts: dict[int, tuple[list[Any], EncodedClip | None]]) -> dict[int, dict[str, Any]]:
        requests = []
        for messages, clip in prompts.values():
            clips = [] if clip is None else [clip]
            ids = build_prompt(self.processor, messages, clips)
            requests.append(GenerateRequest(ids, clips, self.job.max_new_tokens))
        answers: dict[int, dict[str, Any]] = {}
        for place, result in zip(prompts, self.engine.generate(requests)):
            if not isinstance(result, Failed):
                answers[place] = {"prediction": result.text, "finish_reason": result.finish_reason}
            elif isinstance(result.error, ValueError):  # a prompt that is too long
                answers[place] = {"prediction": None, "failure": "error", "reason": str(result.error)}
            else:  # out of memory, or a bug of this program: a later run asks again
                raise result.error
        return answers


# -- the file ----------------------------------------------------------------------------------------------------------
def parts(out: Path) -> list[Path]:
    """The files in which other processes keep their share."""
    return sorted(out.parent.glob(f"{glob.escape(out.stem)}.rank-*{out.suffix}"))


def stored(out: Path, own: Path, job: PredictJob, protocol: Protocol) -> dict[str, Prediction]:
    """The stored predictions, by id; a partial last line of `own` is removed.

    Raises:
        ValueError: the file contains anything but predictions of this job.
    """
    check_appendable(own, b'{"id": ')
    if own.exists():
        with own.open("r+b") as opened:
            remove_torn_line(opened)
    ids = {question.item.id for batch in job.batches for question in batch}
    found: dict[str, Prediction] = {}
    wanted = json.loads(json.dumps(asdict(protocol)))
    for file in (*parts(out), out):  # in this order: a part is removed once it is in `out`
        try:
            rows = list(read_predictions(file))
        except AnnotationError:  # not there yet, or gone since the parts were listed
            continue
        for row in rows:
            if isinstance(row, Rejected):
                if file == own:
                    raise ValueError(f"{own} contains rows that are not predictions: {row.place}: {row.reason}")
                continue  # a line that another process is writing
            there = asdict(row.protocol) if row.protocol else {}
            other = [name for name, value in wanted.items() if there.get(name) != value]
            if other or row.id not in ids:
                what = f"{other[0]} {there.get(other[0])!r:.40}" if other else f"question {row.id!r}"
                raise ValueError(f"{file} contains predictions of another run ({what}): choose another --output")
            found[row.id] = row
    return found


def finish(out: Path, job: PredictJob, protocol: Protocol) -> dict[str, Prediction] | None:
    """Join all parts into `out` in the order of the job, if nothing is missing. Returns the rows, or None."""
    found = stored(out, out, job, protocol)
    order = [question.item.id for batch in job.batches for question in batch]
    if any(id_ not in found for id_ in order):
        return None
    rows = {id_: found[id_] for id_ in order}
    content = "".join(row.as_json() + "\n" for row in rows.values())
    if not out.exists() or out.read_text(encoding="utf-8") != content:
        joined = out.with_name(f"{out.name}.{uuid.uuid4().hex}")  # several processes may finish at the same time
        joined.write_text(content, encoding="utf-8", newline="\n")
        joined.replace(out)
    for part in parts(out):
        part.unlink(missing_ok=True)  # another process may have been faster
    return rows


# -- the run -----------------------------------------------------------------------------------------------------------
def predict(
    job: PredictJob,
    out: Path,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: str | None = None,
    ray_workers: int | None = None,
    loaded: tuple[Any, Any] | None = None,
) -> dict[str, Any]:
    """Answer the open questions; process `rank` of `world_size` takes every `world_size`-th batch.

    With `ray_workers`, that many Ray actors answer the batches, on all machines of the cluster that Ray knows.
    `loaded` is the job's model and processor, if the caller already has them.

    Returns:
        Counts: questions, answered, failures (kind: ids), complete, out.

    Raises:
        ValueError: the job cannot be done, `out` contains something else, or another process is writing it.
    """
    if out.suffix != ".jsonl":
        raise ValueError(f"{out}: predictions are JSON Lines, so the name must end with .jsonl")
    batches = job.batches
    predictor = Predictor(job, "cpu" if ray_workers else device, loaded)
    own = out if world_size == 1 else out.with_name(f"{out.stem}.rank-{rank}{out.suffix}")
    with only_writer(own):
        done = stored(out, own, job, predictor.protocol)
        mine = [
            number
            for number in range(rank, len(batches), world_size)
            if any(question.item.id not in done for question in batches[number])
        ]
        if ray_workers and mine:
            from videopanda.evaluation.predict_ray import answers

            results = answers(partial(Predictor, replace(job)), mine, ray_workers)
        else:
            results = predictor.answers(mine)
        for rows in watched(results, "batches", len(mine)):
            append_predictions(own, [row for row in rows if row.id not in done])
        all_rows = finish(out, job, predictor.protocol)
        there = all_rows or stored(out, own, job, predictor.protocol)
    failures: defaultdict[str, list[str]] = defaultdict(list)
    for row in there.values():
        if row.failure:
            failures[row.failure].append(row.id)
    return {
        "questions": sum(map(len, batches)),
        "answered": sum(row.prediction is not None for row in there.values()),
        "failures": dict(sorted(failures.items())),
        "complete": all_rows is not None,
        "out": str(out),
    }
