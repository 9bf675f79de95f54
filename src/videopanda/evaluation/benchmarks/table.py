"""The table of benchmarks, and reading one: `load("mvbench", "MVBench/json")`."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from videopanda.evaluation.benchmarks import (
    charades_sta,
    custom,
    egoschema,
    hourvideo,
    long_video_bench,
    lvbench,
    mlvu,
    mvbench,
    nextqa,
    ovo_bench,
    scenes,
    tempcompass,
    tgif,
    timelens,
    video_chatgpt,
    video_mme,
    video_mme_v2,
    videoeval_pro,
    zero_shot_qa,
)
from videopanda.evaluation.benchmarks.errata import COMMON, MODES, Erratum, apply
from videopanda.evaluation.benchmarks.files import AnnotationError, Rejected
from videopanda.evaluation.benchmarks.item import Item


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its reader, its known errors, and what is published about its size."""

    title: str
    read: Callable[[Path], Iterator[Item | Rejected]]
    errata: tuple[Erratum, ...] = COMMON
    published_rows: str = ""  # to compare with what was read
    mean_over_types: bool = False  # its headline number is the mean of the accuracies of its types
    groups: tuple[str, ...] = ()  # names of the groups of its questions, in the order of reports
    # The score, from 0 to 1, of all questions about a video together, given which of them were answered right; None
    # where some are missing.
    group_score: Callable[[Sequence[Item], Sequence[bool]], float | None] | None = None


BENCHMARKS = {
    "msvd-qa": Benchmark("MSVD-QA", zero_shot_qa.read_msvd, published_rows="13,157"),
    "msrvtt-qa": Benchmark("MSRVTT-QA", zero_shot_qa.read_msrvtt, published_rows="about 73,000"),
    "tgif-qa": Benchmark("TGIF-QA", tgif.read, tgif.ERRATA, "frameqa 13,691"),
    "activitynet-qa": Benchmark("ActivityNet-QA", zero_shot_qa.read_activitynet, published_rows="8,000"),
    "video-chatgpt": Benchmark("Video-ChatGPT, five aspects", video_chatgpt.read),
    "egoschema": Benchmark("EgoSchema", egoschema.read, published_rows="5,031, 500 with public answers"),
    "video-mme": Benchmark(
        "Video-MME without subtitles", video_mme.read, published_rows="2,700", groups=video_mme.GROUPS
    ),
    "video-mme-subtitles": Benchmark(
        "Video-MME with subtitles",
        video_mme.read_with_subtitles,
        published_rows="2,700, 744 of 900 videos with subtitles",
        groups=video_mme.GROUPS,
    ),
    "mvbench": Benchmark("MVBench", mvbench.read, mvbench.ERRATA, "4,000, 200 per task", mean_over_types=True),
    "mlvu": Benchmark("MLVU", mlvu.read, mlvu.ERRATA, "2,593 in the development split", True, mlvu.GROUPS),
    "longvideobench": Benchmark(
        "LongVideoBench without subtitles",
        long_video_bench.read,
        published_rows="1,337 in lvb_val.json",
        groups=long_video_bench.GROUPS,
    ),
    "longvideobench-subtitles": Benchmark(
        "LongVideoBench with subtitles",
        long_video_bench.read_with_subtitles,
        published_rows="1,337 in lvb_val.json",
        groups=long_video_bench.GROUPS,
    ),
    "lvbench": Benchmark("LVBench", lvbench.read, lvbench.ERRATA, "1,549, 1,519 in lvbench_clean.json"),
    "next-qa": Benchmark("NExT-QA, multiple choice", nextqa.read),
    "next-qa-open": Benchmark("NExT-QA, open-ended", nextqa.read_open),
    "tempcompass": Benchmark("TempCompass", tempcompass.read),
    "hourvideo": Benchmark(
        "HourVideo", hourvideo.read, published_rows="1,182 in the development file", groups=hourvideo.GROUPS
    ),
    "video-mme-v2": Benchmark(
        "Video-MME-v2 without subtitles",
        video_mme_v2.read,
        published_rows="3,200, four per video",
        groups=video_mme_v2.GROUPS,
        group_score=video_mme_v2.group_score,
    ),
    "videoeval-pro": Benchmark("VideoEval-Pro", videoeval_pro.read),
    "videoeval-pro-choice": Benchmark("VideoEval-Pro, multiple choice", videoeval_pro.read_choice),
    "ovo-bench": Benchmark("OVO-Bench", ovo_bench.read, mean_over_types=True, groups=ovo_bench.GROUPS),
    "charades-sta": Benchmark("Charades-STA", charades_sta.read, charades_sta.ERRATA, "3,720"),
    "timelens-bench": Benchmark("TimeLens-Bench", timelens.read, charades_sta.ERRATA, groups=timelens.GROUPS),
    "scenes": Benchmark("Scenes", scenes.read),
    "custom": Benchmark("Custom questions", custom.read),
}


@dataclass(frozen=True)
class Duplicate:
    """Two rows that are, or look like, the same question."""

    place: str
    first: str  # place of the earlier row
    id: str
    kind: str  # "same id, same content" and "same id, other content" are left out, "other id, same content" is kept


@dataclass(frozen=True)
class Loaded:
    """The result of reading: the items, the rejected rows, and everything irregular."""

    name: str
    mode: str
    items: tuple[Item, ...]
    rejected: tuple[Rejected, ...]  # every row that is not an item, with its reason
    duplicates: tuple[Duplicate, ...]
    errata: dict[str, tuple[str, ...]]  # name of an erratum: ids of the questions that it is in, as published
    beyond_limit: int = 0  # questions that a limit leaves out

    @property
    def sha256(self) -> str:
        """Digest of the items, equal for equal content in any layout and order of files."""
        digest = hashlib.sha256()
        for item in sorted(self.items, key=lambda item: item.id):
            # Groups are made from `extra`, so they change nothing.
            content = {key: value for key, value in asdict(item).items() if key not in ("place", "groups")}
            digest.update(json.dumps(content, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()


def benchmark(name: str) -> Benchmark:
    """The entry of a benchmark.

    Raises:
        ValueError: there is no such benchmark.
    """
    if name not in BENCHMARKS:
        near = get_close_matches(name, BENCHMARKS, 1)
        known = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(BENCHMARKS)}"
        raise ValueError(f"unknown benchmark {name!r}; {known}")
    return BENCHMARKS[name]


def load(name: str, path: str | Path, mode: str = "as-published", limit: int | None = None) -> Loaded:
    """Read the original annotation files of a benchmark, a folder or one file.

    Args:
        limit: keep only this many questions, chosen by a digest of their ids: the same ones every time, and those of a
            smaller limit are among those of a larger one.

    Raises:
        AnnotationError: the files are missing or contain no questions.
        ValueError: unknown benchmark or mode.
    """
    entry = benchmark(name)
    if mode not in MODES:
        raise ValueError(f"unknown errata mode {mode!r}; choose from {', '.join(MODES)}")
    kept: list[Item] = []
    rejected: list[Rejected] = []
    duplicates: list[Duplicate] = []
    errata: dict[str, list[str]] = {erratum.name: [] for erratum in entry.errata}
    by_id: dict[str, Item] = {}
    by_content: dict[str, Item] = {}
    for item in entry.read(Path(path)):
        if isinstance(item, Rejected):
            rejected.append(item)
            continue
        first = by_id.setdefault(item.id, item)
        if first is not item:
            kind = "same content" if first == item else "other content"
            duplicates.append(Duplicate(item.place, first.place, item.id, f"same id, {kind}"))
            rejected.append(
                Rejected(item.place, f"the id of {first.place} again, with {kind.split()[0]} content", item.id)
            )
            continue
        twin = by_content.setdefault(_content(item), item)
        if twin is not item:
            duplicates.append(Duplicate(item.place, twin.place, item.id, "other id, same content"))
        outcome, names = apply(item, entry.errata, mode)
        for erratum in names:
            errata[erratum].append(item.id)
        if isinstance(outcome, Rejected):
            rejected.append(outcome)
        else:
            kept.append(outcome)
    if not by_id:
        reasons = f"; first: {rejected[0].place}: {rejected[0].reason}" if rejected else ""
        raise AnnotationError(f"{path} contains no usable questions of {name} ({len(rejected)} rows rejected{reasons})")
    found = {erratum: tuple(ids) for erratum, ids in errata.items()}
    items = _limited(kept, limit)
    return Loaded(name, mode, items, tuple(rejected), tuple(duplicates), found, len(kept) - len(items))


def _limited(items: list[Item], limit: int | None) -> tuple[Item, ...]:
    chosen = {item.id for item in sorted(items, key=lambda item: hashlib.sha256(item.id.encode()).digest())[:limit]}
    return tuple(item for item in items if item.id in chosen)


def _content(item: Item) -> str:
    return repr(replace(item, id="", place=""))
