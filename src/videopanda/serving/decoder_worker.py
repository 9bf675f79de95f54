"""A process that decodes videos for a server, one at a time, isolated from the server.

python -m videopanda.serving.decoder_worker 4294967296      # memory limit in bytes

Requests come on stdin, one JSON object per line. An answer is one line of JSON, followed by the bytes of the frames;
a first empty answer says that the process is ready.
"""

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from videopanda.video.read import Video, VideoLimits, VideoReadError, read_video


def main() -> None:
    """Answer requests until stdin ends."""
    # Frames go through the only copy of stdout: whatever a library prints goes to stderr.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the server, which ends its workers
    _confine(int(sys.argv[1]))
    with suppress(VideoReadError):
        read_video(b"no video", num_frames=1)  # loads the decoders now, so that this time does not count as reading
    _send({}, b"", out)
    for line in sys.stdin.buffer:
        _answer(json.loads(line), out)


def _confine(memory: int) -> None:
    """Restrict this process: limited memory, no writing of files, no core dumps."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(request: dict[str, Any], out: BinaryIO) -> None:
    limits = VideoLimits(**request.pop("limits"))
    Image.MAX_IMAGE_PIXELS = limits.pixels // 2  # Pillow warns at this number and refuses at twice as many
    video: Video | None = None
    try:
        # PyAV gives the same frames as torchcodec and starts without torch.
        video = read_video(request.pop("path"), decoder="pyav", limits=limits, **request)
        facts = {**vars(video), "frames": np.array(video.frames.shape)}  # whose bytes follow
        header = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in facts.items()}
    except VideoReadError as error:
        header = {"reason": error.reason}
    except ValueError as error:
        header = {"reason": str(error)}
    except MemoryError:
        header = {"reason": "decoding needs more memory than is available"}
    _send(header, b"" if video is None else video.frames.tobytes(), out)


def _send(header: dict[str, Any], frames: bytes, out: BinaryIO) -> None:
    out.write(json.dumps(header).encode() + b"\n" + frames)
    out.flush()


if __name__ == "__main__":
    main()
