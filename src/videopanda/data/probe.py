"""Reads every clip once, in several processes, and says what is wrong with it. Imports no torch: workers start fast."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from videopanda.data.manifest import CheckedClip, file_sha256
from videopanda.video.read import Sampling, VideoReadError, read_video

TIMEOUT = 120.0  # seconds per clip


@dataclass(frozen=True, slots=True)
class ProbeJob:
    """What to probe: a path, whether it is an image, the rate of a folder of frames, and what training reads from it.

    ranges: (start, end) in seconds of the parts used by rows; None is the beginning or the end of the clip.
    """

    path: str
    is_image: bool = False
    fps: float = 1.0
    ranges: frozenset[tuple[float | None, float | None]] = frozenset({(None, None)})
    num_frames: int = 8
    sampling: Sampling = "uniform"

    @property
    def frames(self) -> str:
        """Which frames are read, as written in the manifest."""
        return f"{self.num_frames} {self.sampling}"


def fingerprint(path: str) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds; for a folder, of all its files. Raises OSError."""
    status = [entry.stat() for entry in os.scandir(path)] if os.path.isdir(path) else [os.stat(path)]
    return sum(s.st_size for s in status), max((s.st_mtime_ns for s in status), default=0)


def probe(job: ProbeJob) -> CheckedClip:
    """Hash the file and read the frames that training reads, for every range."""
    clip = CheckedClip(job.path, frames=job.frames)
    try:
        size, modified = fingerprint(job.path)
        clip = replace(clip, size=size, modified=modified, sha256=_content_sha256(Path(job.path)))
    except FileNotFoundError:
        return replace(clip, kind="missing_file", reason=f"{job.path} does not exist")
    except OSError as error:
        return replace(clip, kind="unreadable", reason=f"{job.path}: {error.strerror}")
    found = []
    for start, end in sorted(job.ranges, key=str):
        reason = ""
        try:
            # PyAV has the last word on what can be read, and needs no torch.
            video = read_video(
                job.path,
                num_frames=1 if job.is_image else job.num_frames,
                sampling=job.sampling,
                start=start,
                end=end,
                image_fps=job.fps,
                decoder="pyav",
                timeout=TIMEOUT,
            )
            clip = replace(clip, duration=video.duration, width=video.width, height=video.height, fps=video.source_fps)
        except VideoReadError as error:
            reason = f"unreadable: {job.path}: {error.reason}"
        except ValueError as error:
            reason = f"range: {job.path}: {error}"
        found.append((start, end, reason))
    if all(reason.startswith("unreadable") for _, _, reason in found):
        clip = replace(clip, kind="unreadable", reason=found[0][2].partition(": ")[2])
    return replace(clip, ranges=tuple(found))


def _content_sha256(path: Path) -> str:
    if not path.is_dir():
        return file_sha256(path)
    files = sorted(file for file in path.iterdir() if file.is_file())
    listed = "".join(f"{file_sha256(file)} {file.name}\n" for file in files)
    return hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()


def probe_all(
    jobs: Iterable[ProbeJob], workers: int, work: Callable[[ProbeJob], CheckedClip] = probe
) -> Iterator[CheckedClip]:
    """Results as they arrive. With one worker, in this process; else a clip that kills its process is a bad clip."""
    if workers == 1:
        yield from map(work, jobs)
        return
    waiting = iter(jobs)
    left: list[ProbeJob] | None = None
    while left is None or left:
        for job in left or ():
            yield _alone(job, work)
        left = []
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            running: dict[Future[CheckedClip], ProbeJob] = {}
            try:
                for job in waiting:
                    left.append(job)
                    running[pool.submit(work, job)] = job
                    left.remove(job)
                    if len(running) >= 4 * workers:
                        yield from _finished(running)
                while running:
                    yield from _finished(running)
            except BrokenProcessPool:
                left += running.values()


def _finished(running: dict[Future[CheckedClip], ProbeJob]) -> Iterator[CheckedClip]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in sorted(done, key=lambda f: f.exception() is not None):  # a crash fails all others that run, too
        clip = future.result()
        del running[future]
        yield clip


def _alone(job: ProbeJob, work: Callable[[ProbeJob], CheckedClip]) -> CheckedClip:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(work, job).result()
        except BrokenProcessPool:
            return CheckedClip(job.path, "unreadable", f"{job.path}: the decoder crashed")
