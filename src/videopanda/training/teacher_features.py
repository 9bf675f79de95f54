"""A teacher's features on disk, so the teacher need not run during training.

    videopanda data features pretrain --model DIR --set teacher=LanguageBind_Video_merge --output features
    videopanda train pretrain --model DIR --set teacher_features=features

One file per clip of a sample, with features (T, G, G, D) of exactly the frames, and the mirroring, that training with
the same settings sees, and where they lie on the teacher's canvas. For the released model that is 4 MB per clip.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from videopanda.data.loader import EpochDataset
from videopanda.data.sample import Sample
from videopanda.training.stages import StageConfig

_TABLE = "features.json"
# Settings that decide which pixels the teacher sees; features of other settings are not those of the clip.
_SETTINGS = ("num_frames", "official_flip", "seed")


class FeatureFolder:
    """Features written by `write_features`; `read` loads those of a batch.

    Raises:
        ValueError: no such folder, or frames or mirroring that differ from the stage's.
    """

    def __init__(self, folder: str | Path, stage: StageConfig, sampling: str):
        self.folder = Path(folder)
        try:
            self.table = json.loads((self.folder / _TABLE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} has no {_TABLE}: write features with `videopanda data features`") from error
        for name in _SETTINGS if stage.official_flip or self.table["official_flip"] else _SETTINGS[:2]:
            if self.table[name] != getattr(stage, name):
                raise ValueError(f"{folder} was written with {name}={self.table[name]}, not {getattr(stage, name)}")
        if self.table.get("sampling") != sampling:
            raise ValueError(
                f"{folder} was written with frames sampled by {self.table.get('sampling')!r}, but the model samples "
                f"by {sampling!r}: run `videopanda data features` again, into another folder"
            )
        if self.table.get("whole_frames", False) != stage.is_guided:
            raise ValueError(
                f"{folder} was written for {'distill_weight' if stage.is_guided else 'tube_weight and frame_weight'}, "
                "which shows the teacher other pictures: run `videopanda data features` again, into another folder"
            )
        self.size: int = self.table["size"]

    def read(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """`teacher_features` (B, T, G, G, D), with the longest clip's T, and `teacher_origin` (B, 2), if it has any, of
        all clips of some samples.

        Raises:
            ValueError: a clip is missing from the folder.
        """
        found = []
        for sample in samples:
            for video in range(len(sample.videos)):
                path = self.folder / _name(sample.id, video)
                if not path.exists():
                    raise ValueError(f"{path} is missing, for clip {video} of {sample.id}: run data features again")
                found.append(load_file(path))
        features = pad_sequence([clip["features"] for clip in found], batch_first=True)
        origins = {"teacher_origin": torch.stack([clip["origin"] for clip in found])} if "origin" in found[0] else {}
        return {"teacher_features": features, **origins}


def write_features(
    stage: StageConfig,
    dataset: EpochDataset,
    sampling: str,
    collator: Any,
    teacher: Any,
    out: Path,
    rank: int = 0,
    world_size: int = 1,
) -> int:
    """Write the features of every clip of a data set, of this process's share; returns how many were written. An
    interrupted call can be resumed. `collator` makes `teacher_pixels` and `teacher_origin`.

    Raises:
        ValueError: the folder contains features of another teacher or with other settings.
    """
    facts = {"teacher": stage.teacher, "size": teacher.size, "sampling": sampling}
    facts |= {"whole_frames": True} if stage.is_guided else {}
    table = {**facts, **{name: getattr(stage, name) for name in _SETTINGS}}
    out.mkdir(parents=True, exist_ok=True)
    if (out / _TABLE).exists():
        if json.loads((out / _TABLE).read_text(encoding="utf-8")) != table:
            raise ValueError(
                f"{out} contains features of another teacher or with different settings: choose another folder"
            )
    else:
        _replace(out / _TABLE, lambda path: path.write_text(json.dumps(table) + "\n", encoding="utf-8"))
    written = 0
    for index in range(rank, len(dataset), world_size):
        sample = dataset[index]
        paths = [out / _name(sample.id, video) for video in range(len(sample.videos))]
        if all(path.exists() for path in paths):
            continue
        batch = collator([sample])
        for i, (path, features) in enumerate(zip(paths, teacher(batch))):
            path.parent.mkdir(exist_ok=True)
            kept = {"features": features.to(torch.bfloat16).cpu().contiguous()}
            kept |= {"origin": batch["teacher_origin"][i].clone()} if "teacher_origin" in batch else {}
            _replace(path, lambda part, kept=kept: save_file(kept, part))
            written += 1
    return written


def _name(sample_id: str, video: int) -> str:
    digest = hashlib.blake2b(f"{sample_id}\0{video}".encode(), digest_size=16).hexdigest()
    return f"{digest[:2]}/{digest}.safetensors"


def _replace(path: Path, write: Any) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    write(part)
    os.replace(part, path)
