"""Asks an engine and collects what its listeners are told."""

from __future__ import annotations

import queue

from videopanda.inference.engine import Engine, Failed, Finished, Job, Piece, Question

PATIENCE = 120  # seconds; the machine may be busy


class Asked:
    """A submitted question and its events."""

    def __init__(self, engine: Engine, question: Question):
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.job: Job = engine.submit(question, self.events.put)
        self.pieces: list[str] = []

    def next(self) -> Piece | Finished | Failed:
        event = self.events.get(timeout=PATIENCE)
        if isinstance(event, Piece):
            self.pieces.append(event.text)
        return event

    def end(self) -> Finished:
        """Wait for the end; an error is raised."""
        while isinstance(event := self.next(), Piece):
            pass
        if isinstance(event, Failed):
            raise event.error
        assert "".join(self.pieces) == event.text
        return event
