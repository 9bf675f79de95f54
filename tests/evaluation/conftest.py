"""A tiny random model that several files of tests ask."""

from pathlib import Path

import pytest

from tiny import tiny_model, tiny_processor


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder
