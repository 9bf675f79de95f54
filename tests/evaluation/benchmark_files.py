"""Writes a miniature of every benchmark in its original layout. All rows are invented.

WRITERS["mvbench"](folder)      # what the user would name as PATH
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_lines(path: Path, *lines: str | dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def question(video: str, text: str, id_: str | int) -> dict[str, Any]:
    return {"video_name": video, "question": text, "question_id": id_}


def msvd(folder: Path) -> Path:
    """No types; answers in another order than the questions; the first with int ids."""
    own = folder / "MSVD_Zero_Shot_QA"
    questions = [question("inv_vid_1_8", "what is a dog doing?", 7), question("inv_vid_1_8", "who jumps?", "8")]
    write_json(own / "test_q.json", questions)
    write_json(own / "test_a.json", [{"answer": "man", "question_id": "8"}, {"answer": "run", "question_id": "7"}])
    return folder


def msrvtt(folder: Path) -> Path:
    write_json(folder / "test_q.json", [question("video9001", "what is shown?", "v_video9001_1")])
    write_json(folder / "test_a.json", [{"answer": "cake", "question_id": "v_video9001_1"}])
    return folder


def activitynet(folder: Path) -> Path:
    texts = ("is the dog wearing a collar", "what color is the boat", "how many people run")
    write_json(folder / "test_q.json", [question("zzINVENT0", t, f"v_zzINVENT0_{i}") for i, t in enumerate(texts)])
    answers = [("yes", 3), ("teal", 4), ("3", 7)]
    write_json(
        folder / "test_a.json",
        [{"answer": a, "type": t, "question_id": f"v_zzINVENT0_{i}"} for i, (a, t) in enumerate(answers)],
    )
    return folder


def tgif(folder: Path) -> Path:
    """The tables are tab-separated although they are called .csv; questions about one GIF share their key."""
    write_lines(
        folder / "Test_frameqa_question.csv",
        "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription",
        'tumblr_inv1\thow many "cups" stand near the fiFRAMEQAlace ?\ttwo\t1\tFRAMEQA11\t5\ttwo cups',
    )
    write_lines(
        folder / "Test_count_question.csv",
        "gif_name\tquestion\tanswer\tvid_id\tkey",
        "tumblr_inv2\tHow many times does the bird hop ?\t4\tCOUNT3\t9",
    )
    write_lines(
        folder / "Test_transition_question.csv",
        "gif_name\tquestion\ta1\ta2\ta3\ta4\ta5\tanswer\tvid_id\tkey",
        "tumblr_inv2\tWhat does it do before hopping ?\tsing\tsit\teat\tfly\thide\t1\tTRANS1\t9",
        "tumblr_inv2\tWhat does it do after sitting ?\tsing\thop\teat\tfly\thide\t1\tTRANS2\t9",
    )
    write_lines(folder / "Train_count_question.csv", "gif_name\tquestion\tanswer\tvid_id\tkey", "a\tb\t1\tCOUNT9\t1")
    return folder


def video_chatgpt(folder: Path) -> Path:
    name = "v_INVENT_01"
    write_json(folder / "generic_qa.json", [{"Q": f"What? {i}", "A": "A kite.", "video_name": name} for i in range(2)])
    write_json(folder / "temporal_qa.json", [{"video_name": name, "Q": "What comes first?", "A": "The kite."}])
    pair = {"Q1": "Which colour is it?", "Q2": "Can you tell its colour?", "A": "Orange.", "video_name": name}
    write_json(folder / "consistency_qa.json", [pair])
    return folder


def egoschema(folder: Path) -> Path:
    options = {f"option {i}": text for i, text in enumerate(("Bake", "Fix", "Paint", "Wash", "Plant"))}
    rows = [
        {"q_uid": uid, "google_drive_id": "x", "question": "What is the goal?", **options} for uid in ("u-1", "u-2")
    ]
    write_json(folder / "questions.json", rows)
    write_json(folder / "subset_answers.json", {"u-2": 3})
    write_json(folder / "uid_to_ego4d.json", {"u-2": {"video_uid": "e", "starting_sec": 60, "ending_sec": 240}})
    return folder


VIDEO_MME_ROW = {
    "video_id": "901",
    "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Invented",
    "url": "https://example.invalid/x",
    "videoID": "INVENTED_01",
    "question_id": "901-2",
    "task_type": "Counting Problem",
    "question": "How many cups appear?",
    "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
    "answer": "B",
}


def video_mme(folder: Path) -> Path:
    rows = [VIDEO_MME_ROW, {**VIDEO_MME_ROW, "question_id": "902-1", "videoID": "INVENTED_02", "answer": "D"}]
    write_parquet(folder / "videomme" / "test-00000-of-00001.parquet", rows)
    write_lines(folder / "subtitle" / "INVENTED_01.srt", "1", "00:00:01,000 --> 00:00:02,500", "Two cups.", "")
    return folder


def mvbench(folder: Path) -> Path:
    row = {"video": "inv_12.mp4", "question": "What then?", "candidates": ["Sat.", "Ran.", "Hid."], "answer": "Ran."}
    write_json(folder / "json" / "action_sequence.json", [{**row, "start": 2.0, "end": 14.5}, row])
    one = {"video": "video_1.mp4", "question": "What if?", "candidates": ["It stops"], "answer": "It stops"}
    write_json(folder / "json" / "counterfactual_inference.json", [one])
    frames = {
        **row,
        "video": "show_s01e01_clip",
        "start": 0,
        "end": 9,
        "fps": 3,
        "subtitle": "Hi.",
        "show_name": "show",
    }
    write_json(folder / "json" / "episodic_reasoning.json", [frames])
    write_json(folder / "json" / "notes.json", [{"of": "somebody else"}])
    return folder


def mlvu(folder: Path) -> Path:
    row = {
        "video": "inv_3.mp4",
        "duration": 481.2,
        "question": "What colour is the tent?",
        "candidates": ["Red", "Green", "Blue", "White"],
        "answer": "Green",
        "question_type": "plotQA",
    }
    twice = {**row, "question": "And the flag?", "candidates": ["Red", "Green", "Green", "White"], "duration": 481}
    write_json(folder / "json" / "1_plotQA.json", [row, twice])
    needle = {**row, "question_type": "findNeedle", "answer": "A small blue tent"}
    write_json(folder / "json" / "2_needle.json", [needle])
    write_json(folder / "json" / "6_anomaly_reco.json", [{**row, "question_type": "anomaly_reco", "duration": 32550}])
    empty = {**row, "question_type": "topic_reasoning", "candidates": ["", "", "", ""], "answer": ""}
    write_json(folder / "json" / "7_topic_reasoning.json", [empty])
    write_json(folder / "json" / "9_summary.json", [{k: v for k, v in row.items() if k != "candidates"}])
    return folder


def longvideobench(folder: Path) -> Path:
    row = {
        "video_id": "INVENT00001",
        "id": "INVENT00001_2",
        "question": "When the star is shown, what does the guide hold?",
        "question_wo_referring_query": "What does the guide hold?",
        "candidates": ["Map", "Flag", "Cup", "Lamp", "Rope"],
        "correct_choice": 1,
        "position": [120, 240],
        "topic_category": "TG-Travel-Guides",
        "question_category": "S2O",
        "level": "L1-Perception",
        "video_path": "INVENT00001.mp4",
        "subtitle_path": "INVENT00001_en.json",
        "duration_group": 60,
        "starting_timestamp_for_subtitles": 5,
        "duration": 44.7,
        "view_count": 10,
    }
    write_json(folder / "lvb_val.json", [row, {**row, "id": "INVENT00001_3", "candidates": ["Map", "Flag", "Cup"]}])
    cue = {"start": "00:00:06.000", "end": "00:00:07.500", "line": "Follow the star."}  # at 1 s: the clip begins at 5
    write_json(folder / "subtitles" / "INVENT00001_en.json", [cue])
    write_json(folder / "lvb_test_wo_gt.json", [{k: v for k, v in row.items() if k != "correct_choice"}])
    return folder


def lvbench(folder: Path) -> Path:
    text = "Which side kicks off?\n(A) Red\n(B) Blue\n(C) White\n(D) Black"
    qa = {"uid": "17", "question": text, "answer": "B", "question_type": ["entity recognition", "reasoning"]}
    video = {"key": "INVENTKEY01", "type": "sport", "qa": [{**qa, "time_reference": "101:10-101:25"}], "video_info": {}}
    write_lines(folder / "video_info.meta.jsonl", video)
    return folder


NEXTQA_HEADER = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"


def nextqa(folder: Path) -> Path:
    write_lines(
        folder / "val.csv",
        NEXTQA_HEADER,
        '4010,369,640,480,"how do they play, together",2,6,CH,roll it,tap feet,strum,hit,pat',
        "4010,369,640,480,why did he smile,0,7,CW,happy,sad,cold,late,tired",
    )
    write_json(folder / "map_vid_vidorID.json", {"4010": "1164/4010"})
    return folder


def nextqa_open(folder: Path) -> Path:
    write_lines(
        folder / "test.csv",
        "video,frame_count,width,height,question,answer,qid,type,additional_ref_answer",
        "4010,369,640,480,how do they play,strum,6,CH,pluck the strings",
        "4010,369,640,480,why did he smile,he was happy,7,CW,",
    )
    write_json(folder / "map_vid_vidorID.json", {"4010": "1164/4010"})
    return folder


def tempcompass(folder: Path) -> Path:
    asked = {
        "multi-choice": ("What does he do?\nA. run\nB. hop\nC. sit", "B. hop"),
        "yes_no": ("Does he hop?", "yes"),
        "caption_matching": ("Which fits?\nOption 1: He runs.\nOption 2: He hops.", "Option 2: He hops."),
        "captioning": ("Choose.\nInformation A: {'a': 'run'}\nInformation B: {'a': 'hop'}\nCaption:", "B. hop"),
    }
    for way, (text, answer) in asked.items():
        content = {"9001": {"action": [{"question": text, "answer": answer}]}}
        write_json(folder / "questions" / f"{way}.json", content)
        write_json(folder / "predictions" / "somebody" / f"{way}.json", {"9001": {"action": [{"response": "x"}]}})
    return folder


def hourvideo(folder: Path) -> Path:
    text = "A) Saw\nB) Plane\nC) Chisel\nD) Drill\nE) File"
    row = {"qid": "INV_1", "task": "perception/tracking", "question": "Which tool is last?", "mcq_test": text}
    pictures = {f"answer_{i}": f"images/{i}.png" for i in range(1, 6)}
    texts = {f"answer_{i}": word for i, word in enumerate(("Saw", "Plane", "Chisel", "Drill", "File"), 1)}
    rows = [
        {**row, "correct_answer_label": "C"},
        {**row, **texts, "qid": "INV_2", "correct_answer_label": "E"},
        {**row, **pictures, "qid": "INV_3", "task": "navigation/room_to_room_image", "correct_answer_label": "A"},
    ]
    content = {"INVENTED-UID": {"video_metadata": {"duration_in_seconds": 3605.0}, "benchmark_dataset": rows}}
    write_json(folder / "v1.0_release" / "json" / "dev_v1.0_annotations.json", content)
    return folder


def charades(folder: Path) -> Path:
    write_lines(
        folder / "charades_sta_test.txt",
        "INV01 4.2 11.0##a person folds a blanket.",
        "INV01 12.0 12.0##a person sneezes.",
    )
    return folder


def video_mme_v2_rows(video: str, kind: str, structure: str | None) -> list[dict[str, Any]]:
    """A group; the right answer of its n-th question is the n-th letter."""
    texts = "\n".join(f"{letter}. choice {i}" for i, letter in enumerate("ABCDEFGH"))
    row = {"video_id": video, "url": "https://example.invalid", "group_type": kind, "group_structure": structure}
    heads = {"level": "2", "second_head": "Order", "third_head": "Steps"}  # only at the last question
    return [
        {
            **row,
            "question_id": f"{video}-{n}",
            "question": f"What is {n}?",
            "options": texts,
            "answer": letter,
            **(heads if n == 4 else dict.fromkeys(heads)),
        }
        for n, letter in enumerate("ABCD", 1)
    ]


def video_mme_v2(folder: Path) -> Path:
    chain = video_mme_v2_rows("002", "logic", "[1, [2, 3], 4]")
    write_parquet(folder / "test.parquet", [*video_mme_v2_rows("001", "relevance", None), *chain])
    return folder


def videoeval_pro(folder: Path) -> Path:
    row = {
        "video": "inv_3.mp4",
        "question": "What color is the tent?",
        "options": ["A. Red", "B. Green"],
        "answer": "B",
        "answer_text": "Dark green",
        "meta": "{}",
        "source": "invented",
        "qa_type": "Local Perception",
        "qa_subtype": "Attribute",
    }
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", [row, {**row, "qa_type": "Holistic Reasoning"}])
    return folder


def ovo_bench(folder: Path) -> Path:
    moments = [{"realtime": 10, "type": 0}, {"realtime": 20.5, "type": 1}]
    rows = [
        {"task": "EPM", "question": "Where was it?", "options": ["here", "there"], "gt": 1, "realtime": 31},
        {"task": "REC", "activity": "jump", "test_info": [{"realtime": 0, "count": 2}]},
        {"task": "SSR", "test_info": [{**moment, "step": "Fold the paper."} for moment in moments]},
        {"task": "CRR", "question": "Who wins?", "answer": "Ann", "ask_time": 5, "test_info": moments},
    ]
    rows = [{"id": i, "video": f"invented/{i}.mp4", **row} for i, row in enumerate(rows)]
    write_json(folder / "data" / "ovo_bench_new.json", rows)
    return folder


def timelens_bench(folder: Path) -> Path:
    queries = {"queries": [" a dog  barks. ", "a dog sleeps"], "spans": [[1, 3.5], [4.0, 30.0]]}
    write_json(folder / "charades-timelens.json", {"INV01": {"duration": 31.5, **queries}})
    one = {"queries": ["a bell rings"], "spans": [[100, 110]]}
    write_json(folder / "qvhighlights-timelens.json", {"v_1.0": {"duration": 150, **one}})
    return folder


def scenes(folder: Path) -> Path:
    turns = [
        {"from": "human", "value": "<video>\nIs there a cross?"},
        {"from": "gpt", "value": "yes"},
        {"from": "human", "value": "How many?"},
        {"from": "gpt", "value": "3"},
    ]
    record = {"id": "test-0-1", "video": "clips/test-0-1.mp4", "conversations": turns, "scene": {}}
    write_json(folder / "annotations.json", [{**record, "families": ["existence", "count"]}])
    return folder


def custom(folder: Path) -> Path:
    turns = [
        {"from": "human", "value": "<video>\nWhich word is signed?"},
        {"from": "gpt", "value": "sad"},
        {"from": "human", "value": "With how many hands?"},
        {"from": "gpt", "value": "2"},
    ]
    row = {"id": "clips/sad/b", "video": "clips/sad/b.mp4", "kind": "unseen recording", "conversations": turns}
    write_lines(folder / "test.jsonl", json.dumps(row), json.dumps({**row, "id": "odd", "conversations": turns[:3]}))
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "msvd-qa": msvd,
    "msrvtt-qa": msrvtt,
    "tgif-qa": tgif,
    "activitynet-qa": activitynet,
    "video-chatgpt": video_chatgpt,
    "egoschema": egoschema,
    "video-mme": video_mme,
    "video-mme-subtitles": video_mme,
    "mvbench": mvbench,
    "mlvu": mlvu,
    "longvideobench": longvideobench,
    "longvideobench-subtitles": longvideobench,
    "lvbench": lvbench,
    "next-qa": nextqa,
    "next-qa-open": nextqa_open,
    "tempcompass": tempcompass,
    "hourvideo": hourvideo,
    "video-mme-v2": video_mme_v2,
    "videoeval-pro": videoeval_pro,
    "videoeval-pro-choice": videoeval_pro,
    "ovo-bench": ovo_bench,
    "charades-sta": charades,
    "timelens-bench": timelens_bench,
    "scenes": scenes,
    "custom": custom,
}
