"""The house plan as data: which package may import what. The tests enforce it and docs/architecture.md prints it.

python tests/house_plan.py      # writes the table into docs/architecture.md again
"""

from pathlib import Path

ARCHITECTURE = Path(__file__).parents[1] / "docs" / "architecture.md"
BEGIN, END = "<!-- import table: begin -->\n", "<!-- import table: end -->\n"

# Every package: what it may import from this package, and from other packages. Modules are matched by their longest
# prefix; "." stands for the package itself, "" for `videopanda/__init__.py`.
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "": ({"_auto", "models", "inference", "video"}, set()),  # inference and video for type checkers and on first use
    "__main__": ({"cli"}, set()),
    "_auto": ({"models", "video"}, set()),
    "models": ({".", "models.pictures"}, {"torch", "transformers", "numpy", "PIL", "mamba_ssm"}),
    "models.videopanda.convert": (
        {"models", "checkpoints"},
        {"torch", "transformers", "tokenizers", "rich", "sentencepiece", "google"},
    ),
    "models.pictures": (set(), {"numpy", "PIL"}),
    "video": ({".", "models.pictures"}, {"av", "torchcodec", "numpy", "PIL"}),
    "hub": (set(), {"huggingface_hub"}),
    "plan": ({".", "models", "hub"}, {"torch", "transformers", "psutil", "rich"}),
    "inference": (
        {".", "", "models", "plan", "video", "hub"},
        {"torch", "transformers", "tokenizers", "safetensors", "bitsandbytes", "llguidance", "numpy"},
    ),
    "data": ({".", "", "video", "models"}, {"torch", "torchdata", "numpy", "PIL", "rich", "yaml", "jinja2"}),
    "data.worlds.scenes.render": ({"."}, {"numpy", "PIL", "av"}),  # encodes clips
    "data.worlds.tabletop.render": ({".", "data"}, {"numpy", "panda3d"}),
    "data.openai_client": (set(), {"openai"}),
    "data.recaption": ({".", "data", "inference", "video"}, {"PIL", "openai"}),  # a model of one's own, or a server
    "data.worlds.long": ({".", "data.worlds.scenes"}, {"numpy"}),
    "encoders": ({".", "checkpoints", "hub", "models"}, {"torch", "transformers"}),
    "checkpoints": ({".", "", "models"}, {"torch"}),
    "checkpoints.verify": ({".", "", "models", "inference"}, {"torch", "rich"}),
    "checkpoints.behavior_checks": ({".", "", "models", "inference"}, {"torch", "numpy"}),
    "training": (
        {".", "", "data", "models", "encoders", "checkpoints", "hub", "video"},
        {"torch", "transformers", "accelerate", "tokenizers", "safetensors", "peft", "jinja2", "numpy", "matplotlib"}
        | {"rich"},
    ),
    "evaluation": (
        {".", "", "data", "video", "models", "inference", "hub"},
        {"torch", "transformers", "numpy", "rich", "av", "matplotlib", "openai", "pyarrow", "ray"}
        | {"accelerate", "datasets", "lmms_eval"},  # for the lmms-eval plug-in
    ),
    "serving": (
        {".", "", "data", "video", "models", "plan", "inference", "hub"},
        {"torch", "transformers", "fastapi", "uvicorn", "starlette", "pydantic", "prometheus_client", "numpy", "PIL"}
        | {"h11", "jinja2"},
    ),
    "bench": (
        {".", "", "plan", "data", "video", "models", "inference", "encoders", "training"},
        {"torch", "transformers", "numpy", "matplotlib", "rich", "av"},
    ),
    "teach": ({"data", "evaluation", "hub", "inference", "models", "training", "video"}, {"rich"}),
    "mcp_server": ({"inference", "video"}, {"mcp"}),
    "lab": (
        {".", "", "data", "encoders", "evaluation", "models", "plan", "training", "video"},
        {"torch", "transformers", "numpy", "matplotlib", "yaml", "PIL", "safetensors"},
    ),
    "doctor": ({"video"}, {"torch", "psutil", "packaging", "huggingface_hub"}),
    "cli": (
        {".", "", "models", "video", "inference", "plan", "data", "checkpoints", "training", "evaluation", "serving"}
        | {"bench", "doctor", "hub", "lab", "mcp_server", "teach"},
        {"typer", "rich", "transformers", "torch", "numpy"},
    ),
}


def import_table() -> str:
    """The rule as a Markdown table."""
    lines = ["| package | may import from this package | and from others |", "|---|---|---|"]
    for room, (own, others) in ROOMS.items():
        names = {"": "`videopanda/__init__.py`", ".": "itself"}
        mine = [names.get(name, f"`{name}`") for name in sorted(own)]
        lines.append(
            f"| {names.get(room, f'`{room}`')} | {', '.join(mine) or '–'} | {', '.join(sorted(others)) or '–'} |"
        )
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """The architecture page with the current table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + import_table() + END + after


if __name__ == "__main__":
    ARCHITECTURE.write_text(with_table(ARCHITECTURE.read_text(encoding="utf-8")), encoding="utf-8")
