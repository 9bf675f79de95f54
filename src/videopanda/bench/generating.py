"""The cost of answers: time to first token, tokens per second, a second question, and memory of the weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from videopanda.bench.timing import in_turns, interval, machine, ratios, seconds
from videopanda.inference.answer import Chat
from videopanda.inference.load import load
from videopanda.inference.quantize import FORMATS, quantize
from videopanda.plan.planner import weight_bytes

QUESTIONS = ("What happens in the clip?", "How many objects are there in total?")


def measure(video: Path, model: Path | None, rounds: int, new_tokens: int, device: str | None = None) -> dict[str, Any]:
    """Compare replies about one clip with those of quantized weights, round by round.

    Replies have exactly `new_tokens` tokens; their content does not matter. Returns {"machine", "settings", "rows"}; a
    row has first_token_seconds (file to token), second_question_over_first, tokens_per_second, times_plain (time for
    the tokens after the first) and weight_bytes.
    """
    network, processor = load(model, device)
    subjects: dict[str, Any] = {"plain": network}
    for format in FORMATS:
        smaller = load(model, device)[0]
        quantize(smaller, format)
        subjects[f"{format} weights"] = smaller
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in subjects}

    def round_of(name: str) -> Callable[[], float]:
        def run() -> float:
            began: list[Chat] = []

            def first() -> None:
                chat = Chat(subjects[name], processor, video, max_new_tokens=1)
                chat.ask_each(QUESTIONS[:1])
                began.append(chat)

            one = seconds(first)
            chat = began[0]
            second = seconds(lambda: chat.ask_each(QUESTIONS[1:]))
            chat.max_new_tokens = new_tokens
            tokens = seconds(lambda: chat.ask_each(QUESTIONS[1:]))
            found[name].append((one, second, max(tokens - second, 1e-9)))
            return tokens

        return run

    for subject in subjects.values():
        subject.generation_config.eos_token_id = None
    calls = {name: round_of(name) for name in subjects}
    in_turns(calls, 1)  # warms up
    for values in found.values():
        values.clear()
    in_turns(calls, rounds)
    plain = [tokens for _, _, tokens in found["plain"]]
    rows = [
        {
            "way": name,
            "first_token_seconds": interval([one for one, _, _ in values]),
            "second_question_over_first": ratios([two for _, two, _ in values], [one for one, _, _ in values]),
            "tokens_per_second": interval([(new_tokens - 1) / tokens for _, _, tokens in values]),
            "times_plain": ratios([tokens for _, _, tokens in values], plain),
            "weight_bytes": weight_bytes(subjects[name]),
        }
        for name, values in found.items()
    ]
    name, place = Path(network.name_or_path).name, network.device.type
    settings = {"model": name, "new_tokens": new_tokens, "rounds": rounds, "device": place}
    return {"machine": machine(place), "settings": settings, "rows": rows}
