"""`import videopanda` stays light, and afterwards the Auto classes know our models in any order of imports."""

import subprocess
import sys

import pytest
import torch

from tiny import clip, realign, tiny_model, tiny_processor

PRINT = """
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor  # the short name needs torchvision
folder = sys.argv[1]
print(type(AutoConfig.from_pretrained(folder)).__name__)
print(type(AutoModelForImageTextToText.from_pretrained(folder)).__name__)
print(type(AutoModel.from_pretrained(folder)).__name__)
print(type(AutoVideoProcessor.from_pretrained(folder)).__name__)
print(type(AutoProcessor.from_pretrained(folder)).__name__)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    tiny_model().save_pretrained(path)
    tiny_processor().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "imports",
    [
        "import videopanda",
        "import transformers; from transformers import AutoModelForImageTextToText, AutoProcessor; import videopanda",
        "from videopanda.models.videopanda.modeling_videopanda import VideoPandaModel",
    ],
)
def test_auto_classes(folder, imports):
    run = subprocess.run(
        [sys.executable, "-c", f"import sys\n{imports}\n{PRINT}", folder], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [
        "VideoPandaConfig",
        "VideoPandaForConditionalGeneration",
        "VideoPandaModel",
        "VideoPandaVideoProcessor",
        "VideoPandaProcessor",
    ]


def test_import_is_light():
    code = "import sys, time; t = time.perf_counter(); import videopanda; print(time.perf_counter() - t, *sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *modules = run.stdout.split()
    assert float(seconds) < 0.3  # measured: 0.015
    assert not {"torch", "transformers", "numpy", "PIL"} & set(modules)


def test_saved_folder_answers_as_the_model(folder):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, loaded = tiny_model(), realign(AutoModelForImageTextToText.from_pretrained(folder))
    inputs = AutoProcessor.from_pretrained(folder)(text="<video>What?", videos=clip())
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)
