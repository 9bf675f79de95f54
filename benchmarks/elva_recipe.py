"""How an ELVA learned Scenes without labels of cells: the losses of its stages, and how much text looks at the video.

    python benchmarks/elva_recipe.py out/language out/prealign out/spatial … --evaluation out/eval --output recipe.json

Takes folders of `videopanda train` in the order of training, and that of `videopanda evaluate scenes` of the last one.
The share of attention from text to visual tokens is the mean over heads and over the text tokens after the clip, per
layer, on 24 clips of the split `validation`, one question each.
"""

import argparse
import json
from pathlib import Path

import torch

from videopanda.data.collate import Collator
from videopanda.data.worlds.scenes.dataset import ScenesDataset
from videopanda.models.load import load_checkpoint
from videopanda.models.merge_schedule import MergeSchedule

CLIPS = 24


@torch.no_grad()
def attention_to_video(folder: Path) -> list[float]:
    """The share of attention that text pays to visual tokens, for every layer."""
    model, processor = load_checkpoint(folder, torch.float32)
    model.get_decoder().set_attn_implementation("eager")
    model.model.merge_schedule = MergeSchedule(())  # every visual token is there in every layer
    data = ScenesDataset(CLIPS, split="validation", num_frames=processor.video_processor.num_frames, captions=0)
    collate, shares = Collator(processor, 2048), []
    for i in range(CLIPS):
        sample = data[i]
        batch = collate([type(sample)(sample.id, sample.videos, sample.conversations[:1])])
        is_visual_N = batch["input_ids"][0] == model.config.video_token_id
        after_N = torch.arange(len(is_visual_N)) > is_visual_N.nonzero().max()
        del batch["labels"]
        attentions = model.eval()(**batch, output_attentions=True, use_cache=False).attentions
        shares.append(torch.stack([layer[0].mean(0)[after_N][:, is_visual_N].sum(1).mean() for layer in attentions]))
    return [round(share, 4) for share in torch.stack(shares).mean(0).tolist()]


def row_of(folder: Path) -> dict:
    """Settings, curves and attention of one stage."""
    record = json.loads((folder / "run.json").read_text())
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = ("text_loss", "align_loss", "validation_loss", "validation_accuracy", "validation_loss_no_video",
             "validation_accuracy_no_video")  # fmt: skip
    curves = {name: [[log["step"], round(log[name], 4)] for log in logs if name in log] for name in names}
    row = {"name": folder.name, "settings": record["stage"], "curves": {k: v for k, v in curves.items() if v}}
    row["steps"] = max(log["step"] for log in logs)
    if (folder / "processor_config.json").exists():
        row["attention_to_video_by_layer"] = attention_to_video(folder)
    return row


def main() -> None:
    """Read the runs and write one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--evaluation", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict = {"rows": [row_of(folder) for folder in options.runs]}
    if options.evaluation:
        found["evaluation"] = json.loads((options.evaluation / "report.json").read_text())
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
