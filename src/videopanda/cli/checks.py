"""Checks of what a user typed, before torch is imported: each costs milliseconds and ends in one line.

They raise ValueError or OSError, which `cli.app` prints.
"""

import json
import socket
from importlib.util import find_spec
from pathlib import Path


def require_extra(extra: str, *modules: str) -> None:
    """See that the modules of an optional dependency are installed."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ValueError(f"this needs {missing[0]}: pip install 'videopanda\\[{extra}]'")


def require_checkpoint(folder: Path | None) -> None:
    """See that a folder can be a checkpoint; None is the bundled one."""
    if folder is None:
        return
    if not folder.is_dir():
        is_hub_id = not folder.is_absolute() and len(folder.parts) == 2 and not folder.parent.exists()
        hub = f": if it is on the Hub, first run  hf download {folder} --local-dir {folder}" if is_hub_id else ""
        raise FileNotFoundError(f"no model folder at {folder}{hub}")
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"{folder} is not a videopanda checkpoint: it has no config.json")
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder} is not a videopanda checkpoint: its config.json is damaged") from error


def listen(host: str, port: int) -> socket.socket:
    """A socket that holds the port; the server listens on it when the model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ValueError(f"--host {host} is not an address of this machine: {error.strerror}") from error
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
