"""Checks of user input before torch is imported: each takes milliseconds and fails with one line.

They raise ValueError or OSError, which `cli.app` prints. The first group are callbacks of options.
"""

import json
import math
import os
import re
import socket
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from typer import CallbackParam

# Repeated here so that a typo is reported without importing torch.
STAGES = ("language", "prealign", "spatial", "spatiotemporal", "pretrain", "finetune")
PRESETS = ("paper", "scripts", "nano", "elva", "custom")


# -- of one option -----------------------------------------------------------------------------------------------------
def existing_folder(param: CallbackParam, folders: Any) -> Any:
    """The folder, or each of several, must exist."""
    for folder in folders if isinstance(folders, list) else [folders]:
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"{param.opts[0]} {folder}: no such folder")
    return folders


def existing_file(param: CallbackParam, file: Path | None) -> Path | None:
    """The file must exist."""
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"{param.opts[0]} {file}: no such file")
    return file


def no_file(output: Path | None) -> Path | None:
    """A folder to write must not be a file."""
    if output is not None and output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: choose a folder")
    return output


def server_url(param: CallbackParam, url: str | None) -> str | None:
    """The URL must be that of an OpenAI-compatible server."""
    if url and not url.startswith(("http://", "https://")):
        raise ValueError(f"{param.opts[0]} must be a URL such as http://127.0.0.1:8000/v1, got {url!r}")
    return url


def known_device(device: str | None) -> str | None:
    """The installed torch must support the device; torch itself checks whether it exists."""
    if device is not None and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise ValueError(f"unknown device {device!r}: use cpu, cuda, cuda:1 or mps")
    if device is not None and device.startswith("cuda") and version("torch").endswith("+cpu"):
        raise ValueError(f"device {device} is not available: torch {version('torch')} is built for CPUs; use cpu")
    return device


def key_value(settings: list[str] | None) -> list[str] | None:
    """Each setting must be KEY=VALUE."""
    for setting in settings or []:
        if "=" not in setting:
            raise ValueError(f"--set {setting}: write it as key=value")
    return settings


def seconds(text: str) -> float:
    """Parse a time: 90.5, 1:30.5, 1:02:03, 2m5s."""
    from videopanda.video import times

    return times.seconds(text)


def duration(text: str) -> float:
    """Parse a time that is more than 0."""
    length = seconds(text)
    if not length:
        raise ValueError(f"expected a time of more than 0 s, got {text!r}")
    return length


def finite(param: CallbackParam, number: float | None) -> float | None:
    """Infinity and NaN pass bounds."""
    if number is not None and not math.isfinite(number):
        raise ValueError(f"{param.opts[0]} must be a finite number, got {number}")
    return number


def frame_size(text: str) -> tuple[int, int]:
    """Parse --resolution, such as 1280x720, into width and height."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise ValueError(f"--resolution must be a size such as 1280x720, got {text!r}")
    return int(found[1]), int(found[2])


def size_in_bytes(text: str) -> int:
    """Parse a size such as 24GiB into bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text)
    if not found:
        raise ValueError(f"expected a size such as 24GiB, got {text!r}")
    return int(float(found[1]) * 2 ** (10 * " KMGT".index(found[2] or " ")))


# -- of several, or of what an argument names --------------------------------------------------------------------------
def refuse(reason: str, **options: Any) -> None:
    """Refuse the options that were given, because they would have no effect."""
    given = [name for name, value in options.items() if value or (value is not None and type(value) in (int, float))]
    if given:
        raise ValueError(f"{reason}: omit {' and '.join('--' + name.replace('_', '-') for name in given)}")


def require_extra(extra: str, *modules: str) -> None:
    """Check that the modules of an optional dependency are installed."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ValueError(f"this needs {missing[0]}: pip install 'videopanda[{extra}]'")


def require_checkpoint(name: Path | None, *, plain: bool = False) -> Path | None:
    """Check that a model is a checkpoint with complete weight files; returns its folder. None means the bundled model.

    A model on the Hub is downloaded to the cache once its configuration has been checked. `plain` also accepts a
    language model without a vision part.
    """
    if name is None:
        return None
    from videopanda.hub import folder_of, parse

    if parse(name) is not None and not plain:
        first = folder_of(name, files=("*.json",))
        if not (first / "processor_config.json").is_file():
            raise ValueError(
                f"{name} has no processor_config.json: if it is an official checkpoint, first run  "
                f"videopanda pull {name} --output DIR"
            )
    folder = folder_of(name)
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"{folder} is not a videopanda checkpoint: it has no config.json")
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder} is not a videopanda checkpoint: its config.json is damaged") from error
    for file in sorted(folder.glob("*.safetensors")):
        if not _is_whole(file):
            raise ValueError(f"{file} is damaged or truncated: download or copy it again")
    return folder


def _is_whole(file: Path) -> bool:
    """Whether a safetensors file has a readable header and all the bytes that the header lists."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 0 < length <= min(size - 8, 100 << 20):
            return False
        try:
            header = json.loads(opened.read(length))
            ends = [int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return False
    return size == 8 + length + max(ends, default=0)


def require_language_model(name: str) -> None:
    """Check that a name can be a language model: a folder, or OWNER/NAME as on the Hub."""
    from videopanda.hub import parse

    if not Path(name).is_dir() and parse(name) is None:
        raise FileNotFoundError(f"no language model at {name}: pass a folder, or a Hub name OWNER/{Path(name).name}")


def require_rows(data: str, media_root: Path | None) -> None:
    """Check that all rows of annotations can be used, and that the clips of the first one are there."""
    from videopanda.data.conversations import ConversationDataset

    missing = [file for file in ConversationDataset(data, media_root, 1).files(0) if not Path(file).exists()]
    if missing:
        raise FileNotFoundError(f"no video at {missing[0]}: pass the folder of the clips with --media-root")


def require_paths(*paths: Path | str | None) -> None:
    """Check that inputs exist."""
    for path in paths:
        if path is not None and not Path(path).exists():
            raise FileNotFoundError(f"no such file or folder: {path}")


def require_new(*outputs: Path) -> None:
    """Check that output folders do not exist yet."""
    for output in outputs:
        if output.exists():
            raise ValueError(f"{output} already exists: choose a new folder")


def require_stage(stage: str, config: str) -> None:
    """Check that a stage of training exists, and that its settings are a preset or a JSON file."""
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}: choose one of {', '.join(STAGES)}")
    if config in PRESETS:
        return
    if not Path(config).is_file():
        raise ValueError(f"--config {config}: neither a file nor one of {', '.join(PRESETS)}")
    try:
        json.loads(Path(config).read_text(encoding="utf-8"), object_pairs_hook=partial(_each_once, config))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{config} is not valid JSON: {error}") from error


def _each_once(config: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the file whose keys differ."""
    found = dict(pairs)
    if twice := [key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place])]:
        raise ValueError(f"{config}: {twice[0]!r} is given twice")
    return found


def require_video(
    video: Path,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    num_frames: int | None = None,
    questions: Sequence[str] = (),
) -> Any:
    """Check that the clip exists and can be read, the choice of frames is valid, and no question is empty; returns the
    clip with one frame.
    """
    if fps is not None and num_frames is not None:
        raise ValueError("--num-frames and --fps are mutually exclusive")
    files = [question for question in questions if os.path.exists(question)]
    if not video.exists():
        raise FileNotFoundError(f"no video at {video}" + ": the video comes first, then the question" * bool(files))
    if not all(question.strip() for question in questions):
        raise ValueError("the question is empty: ask something")
    if files:
        raise ValueError(f"{files[0]} is a file, not a question: a command answers questions about one video")
    are_words = len(questions) > 1 and all(re.fullmatch(r"[!-~]+", question) for question in questions)
    if are_words and not re.search(r"[?.!]$", questions[0]):
        raise ValueError(f'write the question in quotes: "{" ".join(questions)}"')
    from videopanda.video.read import read_video

    return read_video(video, num_frames=1, start=start, end=end, decoder="pyav")


def listen(host: str, port: int) -> socket.socket:
    """Bind the port now; the server listens on the socket once the model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ValueError(
            f"--host {host} is not an address of this machine: {error.strerror}; use 127.0.0.1, or 0.0.0.0 for all"
        ) from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        raise ValueError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host"
        ) from error
    return listener
