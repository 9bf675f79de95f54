"""Asks an engine and collects what its callbacks are told."""

from __future__ import annotations

import queue

import torch

from videopanda.inference.answer import build_prompt, question_messages
from videopanda.inference.engine import Engine
from videopanda.inference.request import ActiveSequence, Failed, Finished, GenerateRequest, TextDelta

PATIENCE = 120  # seconds; the machine may be busy


class Asked:
    """A submitted request and its events."""

    def __init__(self, engine: Engine, request: GenerateRequest):
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.sequence: ActiveSequence = engine.submit(request, self.events.put)
        self.deltas: list[str] = []

    def next(self) -> TextDelta | Finished | Failed:
        event = self.events.get(timeout=PATIENCE)
        if isinstance(event, TextDelta):
            self.deltas.append(event.text)
        return event

    def end(self) -> Finished:
        """Wait for the end; an error is raised."""
        while isinstance(event := self.next(), TextDelta):
            pass
        if isinstance(event, Failed):
            raise event.error
        assert "".join(self.deltas) == event.text
        return event


def ask_for(processor, text, *clips, max_new_tokens=64, **fields) -> GenerateRequest:
    """The request of one question about clips."""
    messages = question_messages(processor, text, has_video=False)
    messages[0]["content"] = [{"type": clip.kind} for clip in clips] + messages[0]["content"]
    return GenerateRequest(build_prompt(processor, messages, clips), clips, max_new_tokens, **fields)


def finished(engine: Engine, requests) -> list[Finished]:
    """All replies; an error is raised."""
    results = engine.generate(requests)
    for result in results:
        if isinstance(result, Failed):
            raise result.error
    return results


def by_transformers(model, processor, text, *videos, max_new_tokens=64, **options) -> tuple[int, ...]:
    """The token ids of `generate`, with the processor's own calls."""
    messages = question_messages(processor, text, has_video=False)
    messages[0]["content"] = [{"type": "video"} for _ in videos] + messages[0]["content"]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[prompt], videos=list(videos) or None, return_tensors="pt")
    inputs = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, **{"do_sample": False, **options})
    return tuple(output[0, inputs["input_ids"].shape[1] :].tolist())
