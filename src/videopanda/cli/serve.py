"""The verbs `videopanda serve` and `videopanda mcp`. Heavy imports are inside the function."""

import sys
from pathlib import Path
from typing import Annotated

from typer import Option

from videopanda.cli.checks import existing_file, existing_folder, finite, listen, require_checkpoint, require_extra
from videopanda.cli.options import Change, Device, Model, Quantize, load_model, quiet


def serve_verb(
    model: Model = None,
    host: Annotated[
        str, Option(metavar="HOST", help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(metavar="PORT", min=1, max=65535, help="Port to listen on.")] = 8000,
    api_key: Annotated[list[str] | None, Option(metavar="KEY", help="Require this API key; may be repeated.")] = None,
    api_keys: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Require one of the keys in this file, one per line. Safer than --api-key, which ps shows.",
            callback=existing_file,
        ),
    ] = None,
    name: Annotated[
        str | None, Option(metavar="NAME", help="Model name in the API. Default: the name of its folder.")
    ] = None,
    device: Device = None,
    quantize: Quantize = "",
    set_: Change = None,
    allow_host: Annotated[
        list[str] | None,
        Option(
            metavar="HOST",
            help="Fetch videos from this host, if it is public (*.example.org: all subdomains); may be repeated.",
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        Option(
            metavar="ORIGIN",
            help="Let web pages of this origin, such as https://app.example.org, use the API; may be repeated.",
        ),
    ] = None,
    public_url: Annotated[
        str | None, Option(metavar="URL", help="URL of the server as users see it, when it is behind a reverse proxy.")
    ] = None,
    media_root: Annotated[
        Path | None,
        Option(
            metavar="DIR", help="Let clients use file:// URLs of files below this folder.", callback=existing_folder
        ),
    ] = None,
    files: Annotated[
        Path | None, Option(metavar="DIR", help="Folder for uploads. Default: a folder in the system's /tmp.")
    ] = None,
    keep: Annotated[float, Option(metavar="H", min=0.0, help="Hours until an upload is deleted.")] = 24.0,
    max_upload: Annotated[int, Option(metavar="MB", min=1, help="Maximum size of an upload.")] = 512,
    max_files: Annotated[int, Option(metavar="GB", min=1, help="Maximum total size of all uploads.")] = 8,
    max_new_tokens: Annotated[int, Option(metavar="N", min=1, help="Maximum length of an answer, in tokens.")] = 1024,
    max_frames: Annotated[int, Option(metavar="N", min=1, help="Maximum frames per video.")] = 64,
    max_pixels: Annotated[int, Option(metavar="N", min=1, help="Maximum pixels per frame.")] = 1 << 25,
    max_num_seqs: Annotated[int, Option(metavar="N", min=1, help="Maximum sequences decoded at the same time.")] = 32,
    max_queue: Annotated[int, Option(metavar="N", min=0, help="Maximum waiting requests.")] = 256,
    clip_cache: Annotated[
        float, Option(metavar="GB", min=0.0, callback=finite, help="Memory for the encoded-clip and KV-prefix cache.")
    ] = 1.0,
    decoders: Annotated[int, Option(metavar="N", min=1, help="Video decoder processes.")] = 2,
    decode_timeout: Annotated[float, Option(metavar="S", min=0.1, help="Seconds to fetch or decode a video.")] = 30.0,
) -> None:
    """Serve a model: a web page to ask about videos, and an OpenAI-compatible API.

    The page is at http://HOST:PORT/, the API below http://HOST:PORT/v1. Ctrl-C
    finishes the running answers, then stops the server. More in
    docs/serving.md.

    Example:  videopanda serve --model out/video-panda-7b --port 8000 --api-keys keys.txt

    Ask it:   curl -F file=@clip.mp4 localhost:8000/v1/files, then POST its id to /v1/chat/completions
    """
    require_extra("serve", "fastapi", "uvicorn", "multipart", "prometheus_client", "websockets")
    from videopanda.serving.fetch import FetchPolicy
    from videopanda.serving.uploads import FileLimits, FileStore, default_files

    if quantize:
        require_extra("qlora", "bitsandbytes")
    model = require_checkpoint(model)
    keys = [*(api_key or []), *(_keys(api_keys) if api_keys else [])]
    hosts, origins = _names(host, public_url, allow_origin or [], bool(keys))
    file_limits = FileLimits(max_upload << 20, max_files << 30, keep * 3600)
    listener = listen(host, port)
    files = files or default_files(port)
    FileStore(files, file_limits).close()  # fails here if the folder cannot be used, before the model is loaded
    if not hosts and not keys:
        print(
            "videopanda: WARNING: no API key set; anyone who can reach this host can use the server (see --api-keys)",
            file=sys.stderr,
        )
    if model is None:
        print("videopanda: using the bundled nano model, trained on moving shapes only (see --model)", file=sys.stderr)
    from videopanda.inference.engine import Limits
    from videopanda.models.fields import parse_settings
    from videopanda.serving.api import ServerSettings
    from videopanda.serving.decoder_pool import DecodeLimits
    from videopanda.serving.run import serve
    from videopanda.video.read import VideoLimits

    quiet()
    settings = ServerSettings(
        name=name or "",
        files=files,
        max_tokens=max_new_tokens,
        keys=tuple(keys),
        file_limits=file_limits,
        decode=DecodeLimits(decoders, decode_timeout, limits=VideoLimits(500_000, max_pixels, max_frames)),
        fetch=FetchPolicy(tuple(allow_host or ()), max_upload << 20, decode_timeout),
        hosts=hosts,
        origins=origins,
        media_root=media_root,
    )
    limits = Limits(max_num_seqs=max_num_seqs, max_queue=max_queue, cache_bytes=int(clip_cache * (1 << 30)))
    serve(model, device, listener, limits, settings, parse_settings(set_ or []), quantize)


def _keys(file: Path) -> list[str]:
    try:
        keys = file.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file of API keys") from error
    if not keys:
        raise ValueError(f"{file} contains no API key")
    return keys


def mcp_verb(
    media_root: Annotated[
        list[Path],
        Option(metavar="DIR", help="Folder whose videos may be read; may be repeated.", callback=existing_folder),
    ],
    model: Model = None,
    device: Device = None,
) -> None:
    """Serve videos to agents with the Model Context Protocol over stdio.

    Tools: describe, ask, analyze_moment, find, frames.

    Example:  videopanda mcp --media-root videos
    """
    require_extra("mcp", "mcp")
    from videopanda.mcp_server import make_server

    make_server(load_model(model, device), media_root).run("stdio")


def _names(
    host: str, public_url: str | None, allowed: list[str], has_keys: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Allowed Host headers (empty: any), and origins of web pages that may use the server.

    On loopback the names are fixed: otherwise a web page whose name resolves to 127.0.0.1 (DNS rebinding) could use it.
    """
    from urllib.parse import urlsplit

    for origin in allowed:
        if origin != "*" and (urlsplit(origin).path or not urlsplit(origin).netloc):
            raise ValueError(f"--allow-origin must be scheme and host, such as https://app.example.org, got {origin!r}")
    if "*" in allowed and not has_keys:
        raise ValueError("--allow-origin * lets every web page use this server: it requires --api-keys")
    names = ["localhost", "127.0.0.1", "::1", host]
    if public_url is not None:
        parts = urlsplit(public_url.rstrip("/"))
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path:
            raise ValueError(
                f"--public-url must be scheme and host, such as https://video.example.org, got {public_url!r}"
            )
        names.append(parts.hostname)
        allowed = [*allowed, f"{parts.scheme}://{parts.netloc}"]
    on_loopback = host in ("localhost", "::1") or host.startswith("127.")
    return tuple(names) if on_loopback else (), tuple(allowed)
