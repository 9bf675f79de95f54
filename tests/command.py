"""Runs the command line in this process: `run("evaluate", "inspect", …)` gives exit code, stdout and stderr."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest

from videopanda.cli import app as cli


def run(*arguments: str | Path) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    argv = mock.patch.object(sys, "argv", ["videopanda", *map(str, arguments)])
    with argv, redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0), out.getvalue(), err.getvalue()
