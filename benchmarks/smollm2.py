"""What SmolLM2-135M-Instruct sees of Scenes after `runs/laptop_smollm2.sh`, and what it still knows.

    python benchmarks/smollm2.py --backbone DIR --frozen DIR --model DIR --output benchmarks/smollm2.json [--num 240]

Three things: accuracy on unseen Scenes with the baselines, beside the bundled nano, as written and in the wordings of a
hand that neither was trained on; the perplexity of this repository's docs, which no language model has read; ten plain
questions without video. Repeat the command to resume: parts that are in the output are not measured again.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from videopanda.bench.timing import machine
from videopanda.inference.load import load

ROOT = Path(__file__).resolve().parents[1]
BY_HAND = ROOT / "src/videopanda/data/worlds/scenes/hand_written.json"
SEED = 11
KEPT = ("accuracy", "ci95", "families", "baselines", "most_frequent_answer", "num_questions", "declined", "seconds")
PLAIN = {
    "What is the capital of France?": ("paris",),
    "How many days are there in a week?": ("seven", "7"),
    "What is the opposite of hot?": ("cold",),
    "What is frozen water called?": ("ice",),
    "Which insect makes honey?": ("bee",),
    "In which country is Tokyo?": ("japan",),
    "What is 2 + 3?": ("5", "five"),
    "Which planet do we live on?": ("earth",),
    "What language is mainly spoken in Brazil?": ("portuguese",),
    "What color is the sky on a clear day?": ("blue",),
}


def scenes(model: str | None, num: int, wordings: str, baselines: bool) -> dict:
    """What `videopanda evaluate scenes` says of a model, None for the bundled one."""
    command = ["evaluate", "scenes", "--num", str(num), "--seed", str(SEED), "--wordings", wordings]
    command += [] if baselines else ["--no-baselines"]
    command += ["--model", model] if model else []
    done = subprocess.run(
        [sys.executable, "-m", "videopanda", *command, "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    return {key: value for key, value in json.loads(done.stdout).items() if key in KEPT}


def perplexity(language_model, tokenizer, length: int = 512, most: int = 12) -> float:
    """Of the pages in docs/, in pieces of `length` tokens."""
    total, count = 0.0, 0
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    text = text.replace("<video>", "video").replace("<image>", "image")  # else placeholders without a video
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    step = max(length, len(ids) // most)
    for start in range(0, len(ids) - length, step):
        piece = ids[None, start : start + length]
        with torch.inference_mode():
            logits = language_model(input_ids=piece, use_cache=False).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum"))
        count += length - 1
    return math.exp(total / count)


def plain_answers(language_model, tokenizer) -> list[dict]:
    """Greedy answers to the plain questions; right if one of the expected words is in it."""
    rows = []
    for question, expected in PLAIN.items():
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            made = language_model.generate(**prompt, max_new_tokens=40, do_sample=False)
        answer = tokenizer.decode(made[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        rows.append({"question": question, "answer": answer, "right": any(w in answer.lower() for w in expected)})
    return rows


def language(folder: str, is_backbone: bool) -> dict:
    """Perplexity and plain answers of a language model alone, or inside a video model."""
    if is_backbone:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    else:
        model, processor = load(folder, "cpu")
        tokenizer = processor.tokenizer
    model = model.eval().float()
    rows = plain_answers(model, tokenizer)
    right = sum(row["right"] for row in rows)
    return {"perplexity": round(perplexity(model, tokenizer), 3), "plain_right": right, "plain": rows}


def main() -> None:
    """Write the report part by part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--frozen", required=True, help="trained with the language model frozen")
    parser.add_argument("--model", required=True, help="trained fully")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--num", type=int, default=240)
    arguments = parser.parse_args()
    parts = {
        "scenes/full/by_hand": lambda: scenes(arguments.model, arguments.num, str(BY_HAND), False),
        "scenes/nano/by_hand": lambda: scenes(None, arguments.num, str(BY_HAND), False),
        "scenes/nano/written": lambda: scenes(None, arguments.num, "written", False),
        "scenes/frozen/written": lambda: scenes(arguments.frozen, arguments.num, "written", False),
        "scenes/full/written": lambda: scenes(arguments.model, arguments.num, "written", True),
        "language/backbone": lambda: language(arguments.backbone, True),
        "language/frozen": lambda: language(arguments.frozen, False),
        "language/full": lambda: language(arguments.model, False),
    }
    report = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    report = {"machine": machine(), "num": arguments.num, "seed": SEED, **report}
    for name, measure in parts.items():
        if name in report:
            continue
        began = time.perf_counter()
        report[name] = measure()
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
