"""Splits a file of questions about clips into rows to train on and rows to test on, by whole recordings.

split_questions("vqa.jsonl", "out/my")            # as `videopanda teach vqa.jsonl` does

out/my/train.jsonl, out/my/test.jsonl     rows of the LLaVA form, from any format of `formats/`
out/my/clips/                             links to the clips
"""

from pathlib import Path
from typing import Any

from videopanda.data.class_folders import UNSEEN, write_sides
from videopanda.data.formats.opening import open_sources
from videopanda.data.formats.record import Record, RowError
from videopanda.data.shuffling import key_of


def split_questions(
    file: str | Path, out: str | Path, test_share: float = 0.25, seed: int = 0, *, media_root: str | Path | None = None
) -> dict[str, int]:
    """Write the rows and links of a file to the folder `out`; returns the numbers of rows and of test recordings.

    A recording is a clip file, or what the row calls its `recording`; all its rows are on one side. Of a chat of
    several turns the first question alone is tested, since the others are about what was said before.

    Args:
        test_share: of the recordings, chosen by (seed, recording); at least one, and at least one is left to train on.

    Raises:
        ValueError: a row cannot be used, or is about anything but one video; fewer than two recordings; `out` holds
            rows.
    """
    out = Path(out).absolute()
    if (out / "train.jsonl").exists():
        raise ValueError(f"{out} already contains train.jsonl: choose another folder")
    found: list[tuple[str, Path, Record]] = []
    for source in open_sources(file, media_root=media_root):
        for row, record in source.records():
            reason = str(record) if isinstance(record, RowError) else _refusal(record)
            if reason:
                raise ValueError(f"{source.name} row {row.number}: {reason}")
            assert isinstance(record, Record)
            path = source.locate(record.media[0]).absolute()
            found.append((record.recording or str(path), path, record))
    recordings = sorted({recording for recording, _, _ in found}, key=lambda name: key_of(str(seed), name))
    if len(recordings) < 2:
        raise ValueError(f"{file} is about {len(recordings)} recordings: at least 2 are needed, one to test on")
    held = set(recordings[: min(max(1, round(test_share * len(recordings))), len(recordings) - 1)])
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    links: dict[Path, str] = {}
    for recording, path, record in found:
        name = links.setdefault(path, f"clips/{len(links)}/{path.name}")
        side = "test" if recording in held else "train"
        rows[side].append(_row(str(len(rows[side])), name, recording, record, side == "test"))
    for path, name in links.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).unlink(missing_ok=True)  # of a call that was interrupted
        (out / name).symlink_to(path)
    write_sides(out, rows)
    return {"train": len(rows["train"]), "test": len(rows["test"]), "test_recordings": len(held)}


def _refusal(record: Record) -> str:
    """Why a record cannot be tested on; "" if it can."""
    if len(record.media) != 1 or record.media[0].kind != "video":
        return "a row must be about one video"
    if record.system:
        return "rows with their own system prompt are not supported"
    return "folders of frames with their own frame rate are not supported" if record.media[0].fps != 1.0 else ""


def _row(id_: str, video: str, recording: str, record: Record, is_tested: bool) -> dict[str, Any]:
    medium, turns = record.media[0], record.turns[:1] if is_tested else record.turns
    said: list[dict[str, Any]] = []
    for turn in turns:
        said += [{"from": "human", "value": turn.question}, {"from": "gpt", "value": turn.answer}]
        if not turn.is_trained:
            said[-1]["loss"] = False
    if "<video>" not in said[0]["value"]:
        said[0]["value"] = f"<video>\n{said[0]['value']}"
    part = {key: time for key, time in (("start", medium.start), ("end", medium.end)) if time is not None}
    return {"id": id_, "video": video, "kind": UNSEEN, "recording": recording, **part, "conversations": said}
