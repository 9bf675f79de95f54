"""Loads a model and serves it until a signal ends the process."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import uvicorn

from videopanda.inference.engine import Engine, Limits
from videopanda.inference.load import BUNDLED_MODEL, load
from videopanda.serving.api import ServerSettings, create_app

DRAIN_SECONDS = 30


def default_files(port: int) -> Path:
    """Where uploaded files are kept unless a folder is named: one for each user and port."""
    return Path(tempfile.gettempdir()) / f"videopanda-{os.getuid()}" / f"port-{port}"


def serve(
    model: Path | None, device: str | None, host: str, port: int, limits: Limits, settings: ServerSettings
) -> None:
    """Serve a checkpoint (None: the bundled one) until SIGINT or SIGTERM; answers under way are finished first.

    Raises:
        ValueError, OSError: the checkpoint cannot be loaded, or the folder of files cannot be used.
    """
    network, processor = load(model, device)
    name = settings.name or (model or BUNDLED_MODEL).resolve().name
    app = create_app(Engine(network, processor, limits), replace(settings, name=name))
    uvicorn.run(app, host=host, port=port, access_log=False, timeout_graceful_shutdown=DRAIN_SECONDS)
