"""Predictions by Ray Data: a pool of actors on the machines of a cluster, each with its own model.

Every machine reads annotations, videos and the checkpoint by the same paths.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from videopanda.evaluation.benchmarks.files import AnnotationRow
from videopanda.evaluation.predictions import Prediction, prediction_of


class _PredictActor:
    """An actor; takes numbers of batches and returns their rows as JSON."""

    def __init__(self, build: Callable[[], Any]):
        self.predictor = build()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        rows = self.predictor.answers(int(number) for number in batch["id"])
        return {"rows": [json.dumps([asdict(row) for row in part]) for part in rows]}


def answers(build: Callable[[], Any], numbers: list[int], workers: int) -> Iterator[list[Prediction]]:
    """The answers of batches, in the order in which they become ready. `build` makes the predictor of an actor.

    Connects to the cluster that Ray finds, or starts one on this machine.

    Raises:
        ValueError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError("the Ray engine needs Ray: pip install 'videopanda[ray]'") from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    pool = ray.data.ActorPoolStrategy(size=min(workers, len(numbers)))
    results = ray.data.from_items([{"id": number} for number in numbers], override_num_blocks=len(numbers)).map_batches(
        _PredictActor,
        fn_constructor_args=(build,),
        batch_size=1,
        compute=pool,
        num_gpus=1 if torch.cuda.is_available() else 0,
    )
    for result in results.iter_rows():
        yield [prediction_of(AnnotationRow("", row)) for row in json.loads(result["rows"])]
