"""What holds for every test: offline, one thread (with more, kernels add up in another order), GPU tests only on a GPU,
the same random examples in every run.

That this file is here also puts its folder on the import path, for `tiny.py` and `media.py`.
"""

import os

import hypothesis
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported; subprocesses inherit it
torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if config.option.markexpr == "gpu":  # asked for: skipped by name instead of left out in silence
        for item in needs_gpu:
            reason = f"no GPU that torch {torch.__version__} can use: {item.name} was not run"
            item.add_marker(pytest.mark.skip(reason=reason))
    elif needs_gpu:
        config.hook.pytest_deselected(items=needs_gpu)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
