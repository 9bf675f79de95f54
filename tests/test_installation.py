"""`videopanda doctor` finds what is wrong with an installation, names the fix, and exits with 1 if it cannot work."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from command import run
from videopanda import doctor


def found_by(checks, name):
    (check,) = [check for check in checks if check.name == name]
    return check


def test_this_installation_is_sound():
    code, out, _ = run("doctor", "--json")
    report = json.loads(out)
    assert code == 0, [check for check in report["checks"] if check["state"] == "broken"]
    assert report["ok"]
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["transformers"]["tested"].startswith(">=5.16.1,<5.")
    assert checks["decoder pyav"]["state"] == checks["torch"]["state"] == "ok"
    assert {"python", "compiler", "browser", "extra serve", "disk, here"} <= {*checks}


def distribution(folder, name, version, source=None):
    """What pip leaves of an installed package; with `source` it can be imported, too."""
    (folder / f"{name}-{version}.dist-info").mkdir(parents=True)
    facts = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(facts)
    if source is not None:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(source)


@pytest.mark.parametrize(
    ("name", "version", "state"),
    [("transformers", "4.57.6", "broken"), ("av", "99.0", "untested"), ("peft", "0.1", "untested")],
)
def test_versions_outside_of_the_tested_bounds(tmp_path, monkeypatch, name, version, state):
    distribution(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    check = found_by(doctor.examine(), name)
    assert (check.found, check.state) == (version, state)
    assert check.fix.startswith(f"pip install '{name}>=")


def test_torchvision_beside_another_build_of_torch(tmp_path):
    """As PyPI's torchvision fails beside the CPU build of torch: not for lack of a file, but of an operator."""
    distribution(tmp_path, "torchvision", "0.28.0", "raise RuntimeError('operator torchvision::nms does not exist')")
    command = [sys.executable, "-m", "videopanda", "doctor"]
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    (fix,) = [line for line in done.stdout.splitlines() if line.startswith("torchvision: ")]
    assert "pip uninstall torchvision" in fix


def test_a_gpu_that_torch_cannot_use(tmp_path, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("torch uses a GPU here")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    check = found_by(doctor.examine(), "gpu")
    assert check.state == "broken"
    assert "cannot use it" in check.found
    assert check.fix


def test_a_full_disk(monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    check = found_by(doctor.examine(), "disk, here")
    assert (check.state, check.found) == ("low", "1 GiB free")
    assert check.fix
