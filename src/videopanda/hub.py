"""Models by their name on the Hub, through huggingface_hub: its cache, its progress, HF_ENDPOINT, offline mode, tokens.

    folder_of("org/name")                     # a local folder as it is; else the files of a Hub model, downloaded once
    folder_of("nano-long")                    # a model that comes with this package, unless there is such a folder
    folder_of("org/name@v1.0:subfolder")      # a revision, and a folder in the repository

Files are chosen by what they are: configurations, tokenizers, templates and safetensors. Code is never downloaded, and
pickled weights (`.bin`) only for `convert`, which reads them without executing anything.
"""

import re
from pathlib import Path
from typing import NamedTuple

_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<subfolder>[\w./-]+))?")
FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
PICKLED = ("*.bin",)
BUNDLED = ("nano", "nano-long", "nano-elva")  # folders of `assets`


class HubName(NamedTuple):
    """A repository on the Hub, or a folder in it."""

    repo: str
    revision: str | None
    subfolder: str

    def __str__(self) -> str:
        return self.repo + f"@{self.revision}" * bool(self.revision) + f":{self.subfolder}" * bool(self.subfolder)


def parse(name: str | Path) -> HubName | None:
    """The parts of `org/name[@revision][:subfolder]`; None for others, and for paths in folders that exist."""
    found = _NAME.fullmatch(str(name))
    if found is None or ".." in str(name) or Path(name).exists() or Path(found["repo"]).parent.is_dir():
        return None
    return HubName(found["repo"], found["revision"], (found["subfolder"] or "").strip("/"))


def folder_of(name: str | Path, *, pickled: bool = False, files: tuple[str, ...] = FILES) -> Path:
    """The folder of a model: a local one, one of this package, or that of a Hub model in the cache, where missing files
    are downloaded.

    An interrupted download resumes where it ended. With HF_HUB_OFFLINE=1 only the cache is used.

    Args:
        pickled: download `.bin` files too, where the repository has no safetensors.
        files: patterns of the files that are needed.

    Raises:
        FileNotFoundError: neither a folder nor a model on the Hub.
        ValueError: the model is gated or private, the Hub cannot be reached, or there is no such revision or subfolder.
    """
    hub = parse(name)
    if hub is None:
        if Path(name).is_dir():
            return Path(name)
        if str(name) in BUNDLED:
            return Path(__file__).parent / "assets" / name
        if Path(name).is_file():
            raise FileNotFoundError(f"{name} is a file: pass the folder of the model")
        if page := re.match(r"https?:/+huggingface\.co/([\w.-]+/[\w.-]+)", str(name)):
            raise FileNotFoundError(f"{name} is a page: pass the name of the model, {page[1]}")
        raise FileNotFoundError(
            f"no model folder at {name}, and it is neither a Hub name such as org/name nor one of {', '.join(BUNDLED)}"
        )
    from huggingface_hub import constants, errors, snapshot_download

    if not constants.ENDPOINT.startswith(("http://", "https://")):
        raise ValueError(f"HF_ENDPOINT must be a URL such as https://huggingface.co, got {constants.ENDPOINT!r}")
    place = f"{hub.subfolder}/" * bool(hub.subfolder)

    def download(patterns: tuple[str, ...]) -> Path:
        root = snapshot_download(
            hub.repo,
            revision=hub.revision,
            allow_patterns=[f"{place}{pattern}" for pattern in patterns],
            ignore_patterns=[f"{place}*/*"],  # patterns also match in subfolders, which contain other models
        )
        return Path(root, hub.subfolder)

    try:
        folder = download(files)
        if pickled and not any(folder.glob("*.safetensors")):
            folder = download(PICKLED)
        if not any(folder.glob("*.json")):
            raise ValueError(_elsewhere(hub))
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{hub.repo} is gated: accept its terms at its page on the Hub, then run  hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"no model {hub.repo} on the Hub, and no folder of this name; if it is private, run  hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{hub.repo} has no revision {hub.revision}") from error
    except errors.EntryNotFoundError as error:
        raise ValueError(
            f"{hub.repo} is not in the cache, and the Hub cannot be reached (or HF_HUB_OFFLINE is set)"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.HTTPError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"cannot download {hub.repo}: {reason[0]}; the same command continues") from error
    return folder


def _elsewhere(hub: HubName) -> str:
    """Where a repository has models, if not in the requested place."""
    from huggingface_hub import HfApi

    files = [Path(file) for file in HfApi().list_repo_files(hub.repo, revision=hub.revision)]
    found = sorted({file.parent.as_posix() for file in files if file.name == "config.json"} - {"."})
    names = ", ".join(str(hub._replace(subfolder=name)) for name in found)
    return f"{hub} contains no model" + (f": choose from {names}" if found else "")


def name_of(folder: Path) -> str:
    """The name of a model: that on the Hub for a folder of the cache, else that of the folder."""
    parts = folder.absolute().parts
    for place, part in enumerate(parts):
        if part.startswith("models--") and parts[place + 1 : place + 2] == ("snapshots",):
            return "/".join([*part.split("--")[1:], *parts[place + 3 :]])
    return folder.resolve().name


def upload(folder: Path, repo: str, private: bool = False) -> str:
    """Upload a folder to a repository, which is created if it does not exist; returns its URL.

    Raises:
        ValueError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi, errors

    try:
        api = HfApi()
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload of videopanda")
    except errors.LocalTokenNotFoundError as error:
        raise ValueError("not logged in to the Hub: run  hf auth login") from error
    except (errors.HfHubHTTPError, errors.HTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = ": run  hf auth login  with a token that may write there" if status in (401, 403) else ""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the Hub refuses {repo}{hint} ({reason})") from error
    return str(address)
