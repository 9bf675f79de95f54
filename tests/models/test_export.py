"""A folder that brings its own code loads where this package is missing, and gives the same answers.

"Missing" twice: in a process that refuses to import it, and in a second virtual environment that never had it.
"""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch

from tiny import clip, realign, tiny_model, tiny_processor
from videopanda.checkpoints.export import export
from videopanda.models.videopanda.configuration_videopanda import AUTO_MAP

CODE = {
    "backbone.py",
    "compression.py",
    "compression_config.py",
    "configuration.py",
    "configuration_videopanda.py",
    "generation.py",
    "hub.py",
    "layer_cache.py",
    "layout_videopanda.py",
    "media.py",
    "merge_schedule.py",
    "merging.py",
    "modeling_videopanda.py",
    "modeling_videopanda_layers.py",
    "modeling_videopanda_stab.py",
    "frames.py",
    "pictures.py",
    "processing.py",
    "processing_videopanda.py",
    "prompts.py",
    "state_space.py",
    "video_processing_videopanda.py",
    "visual.py",
}

# Argument: the folder. Prints classes and logits of the question about the clip.
STRANGER = """
import json, sys
BLOCK
import numpy as np, torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
folder, again = sys.argv[1:]
torch.set_num_threads(1)
def load(auto):
    return auto.from_pretrained(folder, trust_remote_code=True)
loaded = [load(auto) for auto in (AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoVideoProcessor)]
model, processor = load(AutoModelForImageTextToText), load(AutoProcessor)
for tensor in [*model.parameters(), *model.buffers()]:
    tensor.data = tensor.data.clone()
frames = np.random.default_rng(0).integers(0, 256, (8, 30, 40, 3), dtype=np.uint8)
inputs = processor(text="<video>What?", videos=frames)
with torch.no_grad():
    logits = model(**inputs).logits[0, -1].tolist()
model.save_pretrained(again)
processor.save_pretrained(again)
names = [type(item).__name__ for item in (*loaded, model, processor)]
homes = sorted({type(item).__module__.split(".")[0] for item in (*loaded, model, processor)})
print(json.dumps({"names": names, "homes": homes, "logits": logits, "package": "videopanda" in sys.modules}))
"""
BLOCK = """
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "videopanda":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
"""
NAMES = [
    "VideoPandaConfig",
    "VideoPandaModel",
    "VideoPandaForConditionalGeneration",
    "VideoPandaVideoProcessor",
    "VideoPandaForConditionalGeneration",
    "VideoPandaProcessor",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An ordinary checkpoint folder, with some training state in it, and its exported copy."""
    plain, out = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("exported") / "model"
    tiny_model().save_pretrained(plain)
    tiny_processor().save_pretrained(plain)
    (plain / "optimizer.pt").write_bytes(b"state")
    (plain / "checkpoint-5").mkdir()
    export(plain, out)
    return plain, out


@pytest.fixture(scope="module")
def expected():
    with torch.no_grad():
        return tiny_model()(**tiny_processor()(text="<video>What?", videos=clip())).logits[0, -1].tolist()


def run(python, script, folder, tmp_path, **environment):
    """Run a script in an empty folder, with a cache of remote code of its own."""
    done = subprocess.run(
        [python, "-I", "-c", script, folder, tmp_path / "again"],
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(report, expected, again):
    assert report["names"] == NAMES
    assert report["homes"] == ["transformers_modules"]
    assert not report["package"]
    assert report["logits"] == expected
    # What the stranger saved has its code, too.
    assert {file.name for file in again.glob("*.py")} == CODE


def test_a_process_that_cannot_import_the_package(saved, expected, tmp_path):
    check(run(sys.executable, STRANGER.replace("BLOCK", BLOCK), saved[1], tmp_path), expected, tmp_path / "again")


def test_an_environment_that_never_had_the_package(saved, expected, tmp_path):
    """A bare environment that sees the packages of this one, but not the link of the editable install."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "videopanda" not in entry.name.lower() and entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    python = home / "bin" / "python"
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('videopanda') is not None)"
    assert subprocess.run([python, "-I", "-c", find], check=False).returncode == 0
    check(run(python, STRANGER.replace("BLOCK", ""), saved[1], tmp_path), expected, tmp_path / "again")


def test_exported_files(saved):
    plain, out = saved
    names = {file.name for file in out.iterdir()}
    assert names == {file.name for file in plain.iterdir()} - {"optimizer.pt", "checkpoint-5"} | CODE
    assert (out / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    config, processor = (json.loads((out / name).read_text()) for name in ("config.json", "processor_config.json"))
    of_processor = {name: place for name, place in AUTO_MAP.items() if "Processor" in name}
    assert config.pop("auto_map") == {name: place for name, place in AUTO_MAP.items() if name not in of_processor}
    assert config == json.loads((plain / "config.json").read_text())
    assert processor["video_processor"].pop("auto_map") == processor.pop("auto_map") == of_processor
    assert processor == json.loads((plain / "processor_config.json").read_text())


def test_save_pretrained_self_contained_is_export(saved, tmp_path):
    tiny_model().save_pretrained(tmp_path, self_contained=True)
    tiny_processor().save_pretrained(tmp_path, self_contained=True)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert files == {file.name: file.read_bytes() for file in saved[1].iterdir()}


def test_with_the_package_its_own_classes_are_used(saved, tmp_path):
    """Whether or not remote code is trusted; and what is saved again keeps its code."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    for options in ({}, {"trust_remote_code": True}):
        model = AutoModelForImageTextToText.from_pretrained(saved[1], **options)
        processor = AutoProcessor.from_pretrained(saved[1], **options)
        assert type(model) is type(tiny_model())
        assert type(model.config) is type(tiny_model().config)
        assert type(processor) is type(tiny_processor())
        assert type(processor.video_processor) is type(tiny_processor().video_processor)
    inputs = processor(text="<video>What?", videos=clip())
    with torch.no_grad():
        assert torch.equal(realign(model)(**inputs).logits, tiny_model()(**inputs).logits)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.glob("*.py")} == CODE


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "processor_config.json").unlink(), "no processor_config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "a plain llama model"),
        (lambda folder: (folder / "config.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
    ],
)
def test_other_folders_are_refused(tmp_path, spoil, message):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    spoil(folder)
    with pytest.raises((ValueError, OSError), match=message):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_in_use_are_kept(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder"):
        export(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ValueError, match="already exists"):
        export(saved[0], saved[1])
