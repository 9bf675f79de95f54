"""Questions about a video that is still coming, in constant memory and at constant cost per frame.

session = VideoSession(model, processor, max_visual_tokens=2048)
for frame in stream_video("rtsp://camera/live", fps=1, hosts=["camera"]):
    session.push(frame.image, frame.time)
    if frame.index % 250 == 0:
        print(session.ask("What has happened so far?"))
"""

from typing import Any

from videopanda.inference.answer import Chat
from videopanda.inference.reply import Answer
from videopanda.inference.request import MAX_NEW_TOKENS
from videopanda.inference.stream_encoder import StreamEncoder


class VideoSession(StreamEncoder):
    """One stream and the questions about it.

    A question is answered from the frames so far, as if the stream ended there: the answer equals that about the same
    frames offline.

    Args:
        max_new_tokens: maximum length of an answer.
        options: `max_visual_tokens`, `window`, `last_frames` and `total_frames`, see `StreamEncoder`.

    Raises:
        ValueError: the model cannot encode in chunks; the message names what it needs.
    """

    def __init__(self, model: Any, processor: Any, *, max_new_tokens: int = MAX_NEW_TOKENS, **options: Any):
        super().__init__(model, processor, **options)
        self.max_new_tokens = max_new_tokens

    def ask(self, question: str) -> Answer:
        """Answer a question about the stream so far; earlier questions are not seen."""
        chat = Chat(self.model, self.processor, self.clip(), max_new_tokens=self.max_new_tokens)
        return chat.ask_each([question])[0]
