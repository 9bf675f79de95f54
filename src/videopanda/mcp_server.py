"""Videos for agents: a server of the Model Context Protocol, over stdio, with the official SDK.

    videopanda mcp --media-root videos
    {"command": "videopanda", "args": ["mcp", "--media-root", "videos"]}     # the same in the configuration of a client

Tools read only files below the allowed folders, after resolving links.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Image
from mcp.server.mcpserver.exceptions import ToolError

from videopanda.inference.answer import Chat
from videopanda.inference.find import find as find_intervals
from videopanda.video.contact_sheet import SheetRow, contact_sheet
from videopanda.video.read import VideoReadError, read_video

_MAX_FRAMES = 32
_SIDE = 512  # pixels of frames that are sent


def _find(path: str, allowed: Sequence[Path]) -> Path:
    """A file or a folder of images, below an allowed folder; relative paths are looked for in each.

    Raises:
        ValueError: there is none, or it leads outside.
    """
    for folder in map(Path.resolve, allowed):
        found = (folder / path).resolve()
        if not found.is_relative_to(folder) or not found.exists():
            continue
        if all(one.resolve().is_relative_to(folder) for one in (found.iterdir() if found.is_dir() else ())):
            return found
    raise ValueError(f"no video {path} below {', '.join(map(str, allowed))}, the folders that may be read")


def make_server(loaded: tuple[Any, Any], allowed: Sequence[Path]) -> MCPServer:
    """A server with the tools `describe`, `ask`, `analyze_moment`, `find` and `frames`.

    Args:
        loaded: model and processor.
        allowed: folders whose videos may be read.
    """
    server = MCPServer("videopanda", instructions="Answers questions about video files, and shows their frames.")

    def tool(function: Callable[..., Any]) -> None:
        """Offer a function as a tool; errors that a caller can correct are returned with their reason."""

        @wraps(function)
        def told(**arguments: Any) -> Any:
            try:
                return function(**arguments)
            except (ValueError, VideoReadError) as error:
                raise ToolError(str(error)) from error

        server.tool()(told)

    def asked(path: str, question: str, start: float | None, end: float | None) -> dict[str, Any]:
        answer = Chat(*loaded, _find(path, allowed), start=start, end=end).ask(question)
        return {
            "answer": answer.answer,
            "frame_times": [round(moment, 3) for moment in answer.frame_times],
            "visual_tokens": answer.visual_tokens,
        }

    @tool
    def describe(path: str) -> dict[str, Any]:
        """Length, size and frame rate of a video, and what the model says about it.

        Args:
            path: of the video, below an allowed folder.
        """
        file = _find(path, allowed)
        video = read_video(file, num_frames=1)
        return {
            "duration": round(video.duration, 3),
            "width": video.width,
            "height": video.height,
            "fps": round(video.source_fps, 3),
            "description": str(Chat(*loaded, file).ask("Describe the video.")),
        }

    @tool
    def ask(path: str, question: str) -> dict[str, Any]:
        """Answer a question about a whole video.

        Args:
            path: of the video, below an allowed folder.
            question: in plain words, about what can be seen.
        """
        return asked(path, question, None, None)

    @tool
    def analyze_moment(path: str, question: str, start: float, end: float) -> dict[str, Any]:
        """Answer a question about a part of a video, looked at more closely.

        Args:
            path: of the video, below an allowed folder.
            question: in plain words, about what can be seen.
            start: of the part, in seconds.
            end: of the part, in seconds.
        """
        return asked(path, question, start, end)

    @tool
    def find(path: str, description: str) -> dict[str, Any]:
        """Find when something happens in a video: intervals in seconds with a confidence, the most likely one first.

        Args:
            path: of the video, below an allowed folder.
            description: a statement, such as "the red circle turns white".
        """
        found = find_intervals(_find(path, allowed), description, model=loaded)
        return {"intervals": [asdict(interval) for interval in found.intervals], "reason": found.reason}

    @tool
    def frames(path: str, count: int = 8, start: float | None = None, end: float | None = None) -> Image:
        """Frames of a video in one picture, each with its time.

        Args:
            path: of the video, below an allowed folder.
            count: number of frames, evenly spread, at most 32.
            start: of the part, in seconds; default the beginning.
            end: of the part, in seconds; default the end.
        """
        if not 1 <= count <= _MAX_FRAMES:
            raise ValueError(f"count must be between 1 and {_MAX_FRAMES}")
        video = read_video(_find(path, allowed), num_frames=count, start=start, end=end, max_side=_SIDE)
        picture = io.BytesIO()
        contact_sheet([SheetRow(video.frames, [], video.timestamps)]).save(picture, "PNG")
        return Image(data=picture.getvalue(), format="png")

    return server
