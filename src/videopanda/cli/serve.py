"""The verb `videopanda serve`. Heavy imports stand inside it, as in `cli`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from videopanda.cli.options import Model, quiet


def serve_verb(
    model: Model = None,
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=1, max=65535, help="Port to listen on.")] = 8000,
    api_key: Annotated[
        list[str] | None, typer.Option("--api-key", metavar="KEY", help="Answer only with this key; may be repeated.")
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option("--api-keys", metavar="FILE", help="The same from a file, one per line: not seen by ps."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What clients call the model. Default: its folder's name."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, … Default: CUDA where there is one.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="HOST",
            help="Fetch videos from this host, if it is a public one (*.example.org: all below); may be repeated.",
        ),
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option("--files", metavar="DIR", help="Folder for uploads. Default: below the system's /tmp."),
    ] = None,
    keep: Annotated[float, typer.Option("--keep", metavar="H", min=0.0, help="Hours that an upload is kept.")] = 24.0,
    max_upload: Annotated[int, typer.Option("--max-upload", metavar="MB", min=1, help="Largest upload.")] = 512,
    max_files: Annotated[int, typer.Option("--max-files", metavar="GB", min=1, help="All uploads together.")] = 8,
    max_tokens: Annotated[int, typer.Option("--max-tokens", metavar="N", min=1, help="Longest answer.")] = 1024,
    max_frames: Annotated[int, typer.Option("--max-frames", metavar="N", min=1, help="Most frames per video.")] = 64,
    max_pixels: Annotated[int, typer.Option("--max-pixels", metavar="N", min=1, help="Largest picture of a video.")] = 1
    << 25,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Conversations answered at the same time.")
    ] = 32,
    queue: Annotated[int, typer.Option("--queue", metavar="N", min=0, help="Conversations that may wait.")] = 256,
    cache: Annotated[
        float, typer.Option("--cache", metavar="GB", min=0.0, help="Memory for clips asked before.")
    ] = 1.0,
    readers: Annotated[int, typer.Option("--readers", metavar="N", min=1, help="Processes that decode videos.")] = 2,
    read_timeout: Annotated[
        float, typer.Option("--read-timeout", metavar="S", min=0.1, help="Longest time to fetch or decode a video.")
    ] = 30.0,
) -> None:
    """Serve a model: a page to talk about videos, and an API that OpenAI's clients understand.

    The page is at http://HOST:PORT/, the API below http://HOST:PORT/v1. Ctrl-C ends the server after the answers
    under way. More in docs/serving.md.

    Example:  videopanda serve --model out/video-panda-7b --port 8000 --api-keys keys.txt

    Ask it:   curl -F file=@clip.mp4 localhost:8000/v1/files, then POST its id to /v1/chat/completions
    """
    try:
        from videopanda.serving.run import default_files, serve
    except ImportError as error:
        raise ValueError(f"serving needs {error.name}: pip install 'videopanda\\[serve]'") from error
    from videopanda.inference.engine import Limits
    from videopanda.serving.api import ServerSettings
    from videopanda.serving.decoder_pool import DecodeLimits
    from videopanda.serving.fetch import FetchPolicy
    from videopanda.serving.uploads import FileLimits
    from videopanda.video.read import VideoLimits

    keys = [*(api_key or []), *(api_keys.read_text(encoding="utf-8").split() if api_keys else [])]
    if host not in ("127.0.0.1", "::1", "localhost") and not keys:
        print("videopanda: everybody who reaches this machine may use the server (see --api-keys)", file=sys.stderr)
    if model is None:
        print("videopanda: using the bundled nano model, which knows moving shapes only (see --model)", file=sys.stderr)
    quiet()
    settings = ServerSettings(
        name=name or "",
        files=files or default_files(port),
        max_tokens=max_tokens,
        keys=tuple(keys),
        file_limits=FileLimits(max_upload << 20, max_files << 30, keep * 3600),
        decode=DecodeLimits(readers, read_timeout, limits=VideoLimits(500_000, max_pixels, max_frames)),
        fetch=FetchPolicy(tuple(allow_host or ()), max_upload << 20, read_timeout),
    )
    limits = Limits(max_rows=batch, max_waiting=queue, cache_bytes=int(cache * (1 << 30)))
    serve(model, device, host, port, limits, settings)
