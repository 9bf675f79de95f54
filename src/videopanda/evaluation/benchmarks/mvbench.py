"""MVBench: twenty files of 200 rows.

    json/<task>.json   [{"video", "question", "candidates", "answer" (the text), "start"?, "end"?}, …]

`video` lies in a folder of its source data set, and the part from `start` to `end` is shown (re-hosted `*_segment`
media are cut already). `episodic_reasoning` names a folder of frames, three per second, instead of a file, and brings
subtitles. Rows have no id; they are numbered per task and video: `action_sequence/abc/0`. Questions have one to five
options, so chance is not 25 %.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from videopanda.evaluation.benchmarks.errata import COMMON, SINGLE_OPTION
from videopanda.evaluation.benchmarks.files import AnnotationRow, AnnotationRowError, Rejected, find, rows
from videopanda.evaluation.benchmarks.item import Item, RunningNumber, items, stem
from videopanda.evaluation.benchmarks.options import same_text

# Task (name of the file) and folder of its source below the folder of videos, as in the official notebook.
FOLDERS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}

ERRATA = tuple(
    replace(erratum, documented="5 in counterfactual_inference") if erratum is SINGLE_OPTION else erratum
    for erratum in COMMON
)


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read the task files of a folder, or one of them; other JSON files next to them are skipped."""
    files = [path] if path.is_file() else [f for f in find(path, "*.json*", "*.parquet") if _task(f) in FOLDERS]
    for file in files or find(path, *(f"{task}.json" for task in FOLDERS)):
        yield from items(rows(file), partial(_item, task=_task(file), number=RunningNumber()))


def _task(file: Path) -> str:
    # Re-hosted tables lie in a folder that is named after the task.
    return file.stem if file.stem in FOLDERS or file.suffix != ".parquet" else file.parent.name


def _item(row: AnnotationRow, task: str, number: RunningNumber) -> Item:
    video, answer = row.text("video"), row.text("answer")
    name = number(f"{task}/{stem(video)}")
    options = row.texts("candidates")
    if not options:
        raise AnnotationRowError("there are no candidates")
    return Item(
        id=name,
        video=f"{FOLDERS[task]}/{video}" if task in FOLDERS else video,
        question=row.text("question"),
        task="choice",
        types=(task,),
        options=options,
        right=same_text(options, answer),
        answers=(answer,),
        start=row.time("start") if row.get("start") is not None else None,
        end=row.time("end") if row.get("end") is not None else None,
        extra={
            **row.extra("subtitle", "show_name"),
            **({"fps": row.number("fps")} if row.get("fps") is not None else {}),
        },
    )
