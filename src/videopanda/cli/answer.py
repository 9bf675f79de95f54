"""The verbs `videopanda answer` and `videopanda chat`. Heavy imports are inside the functions."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from typer import Argument, Option

from videopanda.cli.checks import finite, refuse, require_checkpoint, require_video, seconds
from videopanda.cli.options import (
    AsJson,
    Cache,
    CacheSize,
    Change,
    Device,
    Dtype,
    Fps,
    FramesBy,
    LookTwice,
    MaxNewTokens,
    MaxVisualTokens,
    Model,
    NumFrames,
    Quantize,
    cache_bytes,
    load_model,
    progress_bar,
    show,
)

Video = Annotated[str, Argument(help="Video file, GIF, image, folder of images, or URL (see --allow-host).")]
Start = Annotated[float | None, Option(metavar="S", parser=seconds, help="Start of the range, in seconds.")]
End = Annotated[float | None, Option(metavar="S", parser=seconds, help="End of the range, in seconds.")]
Temperature = Annotated[
    float,
    Option(metavar="X", min=0.0, callback=finite, help="Sampling temperature; 0 takes the most likely tokens."),
]


def _seed_of_torch(seed: int | None) -> int | None:
    """A bound on the option itself would fill the column of ranges in --help."""
    if seed is not None and seed >= 2**63:
        raise ValueError(f"--seed must be at most {2**63 - 1}, got {seed}")
    return seed


AnswerSeed = Annotated[
    int | None, Option(metavar="S", min=0, callback=_seed_of_torch, help="Random seed of the sampling.")
]
AllowHost = Annotated[list[str] | None, Option(metavar="HOST", help="Fetch videos from this host; may be repeated.")]


def answer_verb(
    video: Video,
    question: Annotated[list[str], Argument(help="Question about the video; several are answered independently.")],
    model: Model = None,
    num_frames: NumFrames = None,
    fps: Fps = None,
    max_visual_tokens: MaxVisualTokens = None,
    frames_by: FramesBy = None,
    look_twice: LookTwice = False,
    start: Start = None,
    end: End = None,
    device: Device = None,
    dtype: Dtype = None,
    cache: Cache = None,
    cache_size: CacheSize = None,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = 0.0,
    seed: AnswerSeed = None,
    quantize: Quantize = "",
    set_: Change = None,
    stream: Annotated[bool, Option("--stream", help="Print an answer as it is generated.")] = False,
    explain: Annotated[bool, Option("--explain", help="Show how much each frame contributes to the answer.")] = False,
    picture: Annotated[
        Path | None, Option(metavar="FILE", help="With --explain: frames and regions as a picture.")
    ] = None,
    server: Annotated[
        str | None, Option(metavar="URL", help="Ask a running server instead of loading a model.")
    ] = None,
    api_key: Annotated[str | None, Option(metavar="KEY", help="API key of the server.")] = None,
    allow_host: AllowHost = None,
    as_json: AsJson = False,
) -> None:
    """Answer questions about a video, one answer per line.

    Example:  videopanda answer clip.mp4 "Which way does the red circle move?" --json

    Hours of video:  videopanda answer lecture.mp4 "What comes last?" --fps 1 --max-visual-tokens 2048

    Ask a running server:  videopanda answer clip.mp4 "How many objects are there?" --server http://127.0.0.1:8000

    Merge similar visual tokens in the language model:  videopanda answer clip.mp4 "What moves?" --set merge.layers=2
    """
    if stream:
        refuse("--stream prints plain answers", json=as_json, explain=explain)
    if picture is not None and not explain:
        raise ValueError("--picture requires --explain")
    if picture is not None and (picture.is_dir() or picture.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp")):
        raise ValueError(f"--picture must be a file such as why.png, .jpg or .webp, got {str(picture)!r}")
    if picture is not None and picture.exists() and os.path.exists(video) and picture.samefile(video):
        raise ValueError(f"--picture {picture} would replace the video: choose another file")
    elsewhere: dict[str, Any] = {"cache": cache, "server": server}
    if explain:
        refuse("--explain needs the model and all frames here", max_visual_tokens=max_visual_tokens, **elsewhere)
    part: dict[str, Any] = {"start": start, "end": end, **elsewhere}
    if look_twice:
        other = {"frames_by": frames_by, "explain": explain, "stream": stream}
        refuse("--look-twice chooses frames of the whole file", **other, **part)
    if max_visual_tokens is not None:
        frames = None if look_twice else num_frames
        refuse("--max-visual-tokens reads the whole clip at --fps", num_frames=frames, **elsewhere)
    if frames_by is not None:
        refuse("--frames-by chooses frames of the whole file", fps=fps, max_visual_tokens=max_visual_tokens, **part)
    max_bytes = cache_bytes(cache, cache_size)
    if server is None and api_key is not None:
        raise ValueError("--api-key requires --server")
    if server is not None:
        own = {"device": device, "dtype": dtype, "quantize": quantize, "set": set_, "cache": cache}
        refuse("the server has loaded its model already", model=model, **own)
    model = require_checkpoint(model)
    with local_video(video, allow_host) as path:
        require_video(path, start, end, fps, num_frames, question)
        choice = {"num_frames": num_frames, "fps": fps, "start": start, "end": end}
        sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        if server is not None:
            from videopanda.cli.remote import ask_server

            _print(ask_server(server, path, question, choice, sampling, api_key), stream, as_json)
            return
        from videopanda.inference.visual_cache import TokenDiskCache

        kept = TokenDiskCache(cache, max_bytes) if cache else None
        network, processor = load_model(model, device, dtype, set_, quantize)
        options = {**choice, **_chat_options(**sampling), "cache": kept, "max_visual_tokens": max_visual_tokens}
        options["frames_by"] = frames_by
        if explain:
            del options["cache"]
            _explain(network, processor, path, question, options, picture, as_json)
            return
        if look_twice:
            from videopanda.inference.look_twice import ask_twice

            chosen: dict[str, Any] = {"num_frames": num_frames, "fps": fps, "max_visual_tokens": max_visual_tokens}
            answers = ask_twice(network, processor, path, question, **chosen, **_chat_options(**sampling))
            _print((one.as_dict() for one in answers), stream, as_json)
            return
        if stream:
            _print(_streamed(network, processor, path, question, options), stream, as_json)
            return
        from videopanda.inference.answer import ask

        _print((one.as_dict() for one in ask(network, processor, path, question, **options)), stream, as_json)


def chat_verb(
    video: Video,
    model: Model = None,
    num_frames: NumFrames = None,
    fps: Fps = None,
    start: Start = None,
    end: End = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = "",
    set_: Change = None,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = 0.0,
    seed: AnswerSeed = None,
    allow_host: AllowHost = None,
) -> None:
    """Chat about a video: one question per line. An empty line ends the chat, Ctrl-C stops an answer.

    Example:  videopanda chat clip.mp4
    """
    model = require_checkpoint(model)
    with suppress(ImportError):  # line editing with the arrow keys, where the system has it
        import readline  # noqa: F401
    with local_video(video, allow_host) as path:
        require_video(path, start, end, fps, num_frames)
        from videopanda.inference.answer import Chat

        network, processor = load_model(model, device, dtype, set_, quantize)
        options = _chat_options(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        chat = Chat(network, processor, path, num_frames=num_frames, fps=fps, start=start, end=end, **options)
        while question := _read_question():
            try:
                for text in chat.stream(question):
                    print(text, end="", flush=True)
            except KeyboardInterrupt:  # the conversation is as it was before the question
                print(" …", end="")
            except ValueError as error:
                print(f"videopanda: error: {error}", file=sys.stderr)
                continue
            print(flush=True)


def _read_question() -> str:
    """Read the next line of the chat; empty at the end."""
    prompt = "> " if sys.stdin.isatty() else ""
    try:
        return input(prompt).strip()
    except (EOFError, KeyboardInterrupt):
        print(end=prompt and "\n")  # the shell's prompt starts a line
        return ""


def _chat_options(max_new_tokens: int, temperature: float, seed: int | None) -> dict[str, Any]:
    from videopanda.inference.sampling import Sampling

    return {"max_new_tokens": max_new_tokens, "sampling": Sampling(temperature, seed=seed)}


@contextmanager
def local_video(video: str, allowed: list[str] | None) -> Iterator[Path]:
    """The file of a video; a URL of an allowed host is downloaded first."""
    if not video.strip():
        raise ValueError("the video is empty: pass a file")
    if "://" not in video:
        yield Path(video)
        return
    address = urlsplit(video)
    if address.scheme == "file":
        raise ValueError(f"pass the path of the file instead of its URL: {unquote(address.path)}")
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"only http and https URLs can be fetched, got {video!r}")
    if not allowed:
        raise ValueError(f"videos are fetched only from hosts that you allow: add  --allow-host {address.hostname}")
    from videopanda.serving.errors import ForbiddenError
    from videopanda.serving.fetch import FetchPolicy, fetch

    with TemporaryDirectory() as folder:
        path = Path(folder, Path(address.path).name or "video")
        try:
            with path.open("wb") as file:
                fetch(video, file.write, FetchPolicy(hosts=tuple(allowed)))
        except ForbiddenError as error:
            raise ValueError(f"cannot fetch {video}: {error}") from error
        yield path


def _streamed(
    network: Any, processor: Any, path: Path, questions: list[str], options: dict[str, Any]
) -> Iterator[str | dict[str, Any]]:
    """For each question, the pieces of its answer and then its report. Questions do not see each other."""
    from videopanda.inference.answer import Chat

    chat = Chat(network, processor, path, **options)
    for question in questions:
        chat.messages = []
        answer = yield from chat.stream(question)
        yield answer.as_dict()


def _explain(
    network: Any,
    processor: Any,
    path: Path,
    questions: list[str],
    options: dict[str, Any],
    picture: Path | None,
    as_json: bool,
) -> None:
    """Print each answer and how much each frame contributes to it."""
    from videopanda.inference import explain

    reports, lines = [], list[str]()
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
    for number, question in enumerate(questions):
        with progress_bar("removing frames") as progress:
            found = explain.explain(network, processor, path, question, progress=progress, **options)
        reports.append(found.as_dict())
        if picture is not None:
            file = picture if number == 0 else picture.with_stem(f"{picture.stem}-{number + 1}")
            explain.picture(found).save(file)
        lines.append(f"{found.answer}  (probability {found.probability:.1%}, with an empty clip {found.empty:.1%})")
        lines.append("      time  without it    alone")
        most = max(frame.weight for frame in found.frames) or 1.0
        for frame in found.frames:
            bar = "█" * round(30 * max(0.0, frame.weight) / most)
            lines.append(f"{frame.time:8.2f} s  {-100 * frame.fall:+8.1f} %  {100 * frame.alone:+5.0f} %  {bar}")
    lines.append("Changes in probability; the bars show the sum of both, as logarithms.")
    show(reports[0] if len(reports) == 1 else {"answers": reports}, as_json, *lines)


def _print(answers: Iterator[str | dict[str, Any]], stream: bool, as_json: bool) -> None:
    """Print answers: for each, its pieces, if there are any, and its report."""
    reports = []
    for part in answers:
        if isinstance(part, str):
            print(part * stream, end="", flush=True)
        elif as_json:
            reports.append(part)
        else:
            print("" if stream else part["answer"], flush=True)
    if as_json:
        print(json.dumps(reports[0] if len(reports) == 1 else {"answers": reports}))
