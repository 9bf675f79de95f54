"""The verb `videopanda serve`. Heavy imports are inside the function."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from videopanda.cli.options import Device, Model, quiet


def serve_verb(
    model: Model = None,
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=1, max=65535, help="Port to listen on.")] = 8000,
    api_key: Annotated[
        list[str] | None, typer.Option("--api-key", metavar="KEY", help="Require this API key; may be repeated.")
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            "--api-keys", metavar="FILE", help="Require one of the keys in this file, one per line (hidden from ps)."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Model name in the API. Default: the name of its folder."),
    ] = None,
    device: Device = None,
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
    keep: Annotated[float, typer.Option("--keep", metavar="H", min=0.0, help="Hours to keep an upload.")] = 24.0,
    max_upload: Annotated[
        int, typer.Option("--max-upload", metavar="MB", min=1, help="Maximum size of an upload.")
    ] = 512,
    max_files: Annotated[
        int, typer.Option("--max-files", metavar="GB", min=1, help="Maximum size of all uploads together.")
    ] = 8,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Maximum length of an answer, in tokens.")
    ] = 1024,
    max_frames: Annotated[int, typer.Option("--max-frames", metavar="N", min=1, help="Maximum frames per video.")] = 64,
    max_pixels: Annotated[int, typer.Option("--max-pixels", metavar="N", min=1, help="Maximum pixels per frame.")] = 1
    << 25,
    max_num_seqs: Annotated[
        int, typer.Option("--max-num-seqs", metavar="N", min=1, help="Maximum sequences decoded at the same time.")
    ] = 32,
    max_queue: Annotated[int, typer.Option("--max-queue", metavar="N", min=0, help="Maximum waiting requests.")] = 256,
    clip_cache: Annotated[
        float,
        typer.Option("--clip-cache", metavar="GB", min=0.0, help="Memory for the encoded-clip and KV-prefix cache."),
    ] = 1.0,
    decoders: Annotated[int, typer.Option("--decoders", metavar="N", min=1, help="Video decoder processes.")] = 2,
    decode_timeout: Annotated[
        float, typer.Option("--decode-timeout", metavar="S", min=0.1, help="Time limit to fetch or decode a video.")
    ] = 30.0,
) -> None:
    """Serve a model: a web page to ask about videos, and an OpenAI-compatible API.

    The page is at http://HOST:PORT/, the API below http://HOST:PORT/v1. Ctrl-C stops the server after the running
    answers are complete. More in docs/serving.md.

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
        print(
            "videopanda: WARNING: no API key set; anyone who can reach this host can use the server (see --api-keys)",
            file=sys.stderr,
        )
    if model is None:
        print("videopanda: using the bundled nano model, trained on moving shapes only (see --model)", file=sys.stderr)
    quiet()
    settings = ServerSettings(
        name=name or "",
        files=files or default_files(port),
        max_tokens=max_new_tokens,
        keys=tuple(keys),
        file_limits=FileLimits(max_upload << 20, max_files << 30, keep * 3600),
        decode=DecodeLimits(decoders, decode_timeout, limits=VideoLimits(500_000, max_pixels, max_frames)),
        fetch=FetchPolicy(tuple(allow_host or ()), max_upload << 20, decode_timeout),
    )
    limits = Limits(max_rows=max_num_seqs, max_waiting=max_queue, cache_bytes=int(clip_cache * (1 << 30)))
    serve(model, device, host, port, limits, settings)
