"""What is installed, whether it works, and how to fix it: `videopanda doctor`.

The tested bounds are those of the package's own metadata (`pyproject.toml`); nothing is repeated here.
"""

import importlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.version import Version

ASSETS = Path(__file__).parent / "assets"
# Import names that differ from package names.
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "protobuf": "google.protobuf", "python-multipart": "python_multipart"}
# Packages that transformers imports if they are installed, and that fail with another build of torch.
POISON = ("torchvision", "torchaudio")
MIN_DISK = 5 << 30  # bytes; a 7B checkpoint takes 14 GB, the bundled model nothing


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    state: "ok"; "missing" (optional), "untested" (outside the tested bounds), "low" (space); "broken" is
        something that is needed and does not work.
    fix: what to do about it, one line; empty where there is nothing to do.
    """

    name: str
    found: str
    tested: str = ""
    state: str = "ok"
    fix: str = ""


def examine() -> list[Finding]:
    """Check everything, the most basic things first."""
    parts = (_python, _packages, _poison, _model, _torch_device, _decoders, _programs, _extras, _disk)
    return [check for part in parts for check in part()]


def _python() -> Iterator[Finding]:
    found = metadata.metadata("videopanda").get_all("Classifier") or []
    tested = [name.rpartition(" ")[2] for name in found if name.startswith("Programming Language :: Python :: 3.")]
    version = "{}.{}".format(*sys.version_info)
    fix = "" if not tested or version in tested else f"use Python {tested[0]} to {tested[-1]}"
    yield Finding("python", sys.version.split()[0], ", ".join(tested), "untested" if fix else "ok", fix)


def _requirements(extra: str = "") -> list[Requirement]:
    """The requirements of the package itself, or of one of its extras."""
    found = map(Requirement, metadata.requires("videopanda") or [])
    if extra:
        return [one for one in found if one.marker and one.marker.evaluate({"extra": extra})]
    return [one for one in found if one.marker is None or "extra" not in str(one.marker)]


def _bounds(wanted: Requirement) -> str:
    return ",".join(sorted(map(str, wanted.specifier), reverse=True))  # lower, upper


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _import(name: str) -> str:
    """Import a package; the reason why it fails, or nothing."""
    try:
        importlib.import_module(MODULES.get(name, name.replace("-", "_")))
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _package(wanted: Requirement, needed: bool) -> Finding:
    """An installed package against its tested bounds; a needed one is imported, too."""
    found, bounds = metadata.version(wanted.name), _bounds(wanted)
    fix = f"pip install '{wanted.name}{bounds}'"
    reason = _import(wanted.name) if needed else ""
    if reason:
        fix = f"pip install --force-reinstall '{wanted.name}{bounds}'"
        return Finding(wanted.name, f"{found}, does not import: {reason}", bounds, "broken", fix)
    if wanted.specifier.contains(Version(found), prereleases=True):
        return Finding(wanted.name, found, bounds)
    old = any(one.operator == ">=" and Version(found) < Version(one.version) for one in wanted.specifier)
    return Finding(wanted.name, found, bounds, "broken" if old and needed else "untested", fix)


def _packages() -> Iterator[Finding]:
    for wanted in _requirements():
        if _installed(wanted.name) is None:
            bounds = _bounds(wanted)
            yield Finding(wanted.name, "not installed", bounds, "broken", f"pip install '{wanted.name}{bounds}'")
        else:
            yield _package(wanted, needed=True)


def _poison() -> Iterator[Finding]:
    for name in POISON:
        version, reason = _installed(name), _import(name)
        if version is None:
            continue
        if reason:
            fix = f"pip uninstall {name} (it is not needed), or install the build for this torch"
            yield Finding(name, f"{version}, does not import: {reason}", "", "broken", fix)
        else:
            yield Finding(name, f"{version}, fits this torch")


def _model() -> Iterator[Finding]:
    found = (ASSETS / "nano" / "model.safetensors").is_file() and (ASSETS / "demo.mp4").is_file()
    fix = "" if found else "install the package again: its assets are incomplete"
    yield Finding("bundled model", "nano" if found else "missing", "", "ok" if found else "broken", fix)


def _torch_device() -> Iterator[Finding]:
    if _installed("torch") is None or _import("torch"):
        return
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") is None:
            yield Finding("gpu", "none: everything runs on the CPU", "", "missing")
            return
        built = "a CPU build" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        fix = "install a build of torch for your driver: https://pytorch.org/get-started/locally"
        yield Finding(
            "gpu", f"a GPU is present, but torch {torch.__version__} ({built}) cannot use it", "", "broken", fix
        )
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        name = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, compute capability {facts.major}.{facts.minor}"
        try:
            ones = torch.ones(2, 2, device=f"cuda:{index}")
            works = (ones @ ones).sum().item() == 8
        except RuntimeError:  # no kernel in this build for the device
            works = False
        fix = "" if works else f"torch {torch.__version__} has no kernels for it: install a build for a newer CUDA"
        yield Finding(f"gpu {index}", name, "", "ok" if works else "broken", fix)


def _decoders() -> Iterator[Finding]:
    if _installed("av") is None or _import("av"):
        return
    from videopanda.video.read import VideoReadError, read_video
    from videopanda.video.torchcodec import load

    try:
        read_video(ASSETS / "demo.mp4", num_frames=1)
        yield Finding("decoder pyav", "reads the bundled clip")
    except (VideoReadError, OSError) as error:
        yield Finding(
            "decoder pyav", f"does not read the bundled clip: {error}", "", "broken", "pip install --force-reinstall av"
        )
    decoder, reason = load()
    if decoder is not None:
        yield Finding("decoder torchcodec", f"{reason} loads")
    elif _installed("torchcodec"):
        fix = "apt install ffmpeg, then install the torchcodec build for this torch; until then PyAV is used"
        yield Finding("decoder torchcodec", f"does not load ({reason})", "", "missing", fix)


def _programs() -> Iterator[Finding]:
    browsers = ("chromium", "chromium-browser", "google-chrome")
    for name, programs, fix in (
        ("compiler", ("c++", "g++", "clang++"), "apt install g++ (needed for --compile and DeepSpeed only)"),
        ("browser", browsers, "apt install chromium (needed only to test the page of `videopanda serve`)"),
    ):
        found = next(filter(None, map(shutil.which, programs)), None)
        yield Finding(name, found or "none", "", "ok" if found else "missing", "" if found else fix)


def _extras() -> Iterator[Finding]:
    seen: set[str] = set()
    for extra in metadata.metadata("videopanda").get_all("Provides-Extra") or []:
        wanted = [one for one in _requirements(extra) if one.name != "videopanda"]
        absent = [one.name for one in wanted if _installed(one.name) is None]
        fix = f"pip install 'videopanda[{extra}]'" if absent else ""
        found = f"without {', '.join(absent)}" if absent else "complete"
        yield Finding(f"extra {extra}", found, "", "missing" if absent else "ok", fix)
        for one in wanted:
            if extra != "dev" and one.name not in seen and _installed(one.name):
                seen.add(one.name)
                yield _package(one, needed=False)


def _disk() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for name, folder in (("here", Path.cwd()), ("Hugging Face cache", Path(HF_HUB_CACHE))):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free
        fix = "" if free >= MIN_DISK else f"free some disk space under {there}"
        yield Finding(f"disk, {name}", f"{free / 2**30:.0f} GiB free", "", "low" if fix else "ok", fix)
    yield Finding("memory", f"{psutil.virtual_memory().available / 2**30:.0f} GiB free")
