"""Protects the trained module: what of a step is drawn at random, and on what it depends."""

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from videopanda.training.arguments import arguments
from videopanda.training.stages import CUSTOM
from videopanda.training.trainer import TaskModule


class Drops(nn.Module):
    """A model that is nothing but dropout."""

    def forward(self) -> torch.Tensor:
        return nn.functional.dropout(torch.ones(1000), 0.5, self.training)


class Look:
    """A task that shows what the model computed."""

    head = None

    def step(self, model, batch):
        return {"loss": model()}


def drawn(seed: int, number: int) -> torch.Tensor:
    torch.manual_seed(torch.seed())  # whatever was drawn before
    return TaskModule(Drops(), Look(), seed)({"number": number})["loss"]


@pytest.mark.parametrize(("device", "expected"), [("cpu:1", "cpu"), ("cuda:1", "cuda:1")])
def test_processes_on_cpus_resume_from_a_device_that_torch_can_load_to(tmp_path, monkeypatch, device, expected):
    monkeypatch.setattr(TrainingArguments, "_setup_devices", torch.device(device))
    assert arguments(CUSTOM["finetune"], tmp_path).device == torch.device(expected)


def test_dropout_depends_on_seed_and_batch_number_alone():
    assert torch.equal(drawn(3, 7), drawn(3, 7))
    draws = [drawn(seed, number) for seed in (3, 4) for number in (0, 1, 2, 7)]
    for i, one in enumerate(draws):
        assert 300 < one.count_nonzero() < 700
        assert not any(torch.equal(one, other) for other in draws[:i])


def test_a_step_leaves_the_batch_as_it_was():
    """The number is taken out of a copy: a batch may be seen twice."""
    batch = {"number": 1}
    TaskModule(Drops(), Look(), 0)(batch)
    assert batch == {"number": 1}
