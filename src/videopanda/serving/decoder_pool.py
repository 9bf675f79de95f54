"""Decoder processes: a crash, hang or memory blow-up affects one request only.

pool = DecoderPool(DecodeLimits())
await pool.start()
video = await pool.read(path, num_frames=8)
await pool.close()
"""

import asyncio
import json
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from videopanda.serving.errors import ShuttingDownError, UnfitError
from videopanda.video.read import Video, VideoLimits

_HEADER_BYTES = 1 << 20
_START_SECONDS = 60.0
_GRACE_SECONDS = 2.0  # a worker that does not stop at its time limit is killed this many seconds later


@dataclass(frozen=True)
class DecodeLimits:
    """How files are decoded: processes, seconds and bytes of memory per file, and size limits."""

    workers: int = 2
    timeout: float = 30.0
    memory: int = 4 << 30
    limits: VideoLimits = field(default_factory=lambda: VideoLimits(source_frames=500_000, pixels=1 << 25, frames=64))


class _DecoderProcess:
    """One process, started when needed and replaced after it was killed."""

    def __init__(self, memory: int):
        self._memory = memory
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "videopanda.serving.decoder_worker",
                str(self._memory),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=_HEADER_BYTES,
            )
            await asyncio.wait_for(self._answer(), _START_SECONDS)

    async def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Header and frames. Raises OSError or EOFError if the process ends before sending them."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        await self._process.stdin.drain()
        return await self._answer()

    async def _answer(self) -> tuple[dict[str, Any], bytes]:
        assert self._process is not None
        stdout = self._process.stdout
        assert stdout is not None
        header = json.loads(await stdout.readuntil(b"\n"))
        return header, await stdout.readexactly(math.prod(header["frames"])) if "frames" in header else b""

    async def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


class DecoderPool:
    """Decodes files in its own processes."""

    def __init__(self, limits: DecodeLimits):
        self.limits = limits
        self._workers = [_DecoderProcess(limits.memory) for _ in range(limits.workers)]
        self._free: asyncio.Queue[_DecoderProcess] = asyncio.Queue()
        self._closed = False

    async def start(self) -> None:
        """Start the processes."""
        await asyncio.gather(*(worker.start() for worker in self._workers))
        for worker in self._workers:
            self._free.put_nowait(worker)

    async def close(self) -> None:
        """End the processes and their work."""
        self._closed = True
        await asyncio.gather(*(worker.kill() for worker in self._workers))

    async def read(self, path: Path, **choice: Any) -> Video:
        """As `read_video`, with its arguments `num_frames`, `fps`, `sampling`, `start`, `end` and `max_side`.

        Raises:
            UnfitError: the file cannot be read, is too large, or the choice of frames is invalid.
            ShuttingDownError: the pool was closed.
        """
        request = {"path": str(path), "timeout": self.limits.timeout, "limits": asdict(self.limits.limits), **choice}
        worker = await self._free.get()
        answered = False
        try:
            if self._closed:
                raise ShuttingDownError("the server is shutting down: retry later")
            await worker.start()
            header, frames = await asyncio.wait_for(worker.ask(request), self.limits.timeout + _GRACE_SECONDS)
            answered = True
        except asyncio.TimeoutError as error:
            raise UnfitError(f"cannot read this video: timed out after {self.limits.timeout:g} s") from error
        except (OSError, EOFError) as error:
            raise UnfitError("cannot read this video: the decoder crashed on it") from error
        finally:
            try:
                if not answered:  # a late answer would belong to no request
                    await worker.kill()
            finally:  # also where waiting for its end is cancelled
                self._free.put_nowait(worker)
        if "reason" in header:
            raise UnfitError(f"cannot read this video: {header['reason']}")
        values: dict[str, Any] = {
            name: np.array(value) if isinstance(value, list) else value for name, value in header.items()
        }
        return Video(**{**values, "frames": np.frombuffer(frames, np.uint8).reshape(header["frames"])})
