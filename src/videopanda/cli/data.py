"""The verbs `videopanda data …`. Heavy imports are inside the functions."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from videopanda.cli.checks import existing_file, no_file, require_checkpoint, require_stage, size_in_bytes
from videopanda.cli.options import AsJson, BaseUrl, MediaRoot, Set, TestShare, quiet, show

data_app = typer.Typer(help="Check and prepare training data.", no_args_is_help=True)

Format = Annotated[str, Option("--format", metavar="NAME", help="Annotation format, if it cannot be detected.")]


@data_app.command("check")
def check_verb(
    data: Annotated[list[str], Argument(help="Annotation files, mixtures, or DATA_ROOT of the official layout.")],
    media_root: MediaRoot = None,
    format_: Format = "auto",
    manifest: Annotated[Path, Option(metavar="FILE", help="Manifest to write or resume.")] = Path("manifest.jsonl"),
    against: Annotated[
        Path | None,
        Option(metavar="FILE", help="Test set whose clips must not appear in the data.", callback=existing_file),
    ] = None,
    workers: Annotated[
        int | None, Option(metavar="N", min=1, help="Number of processes. Default: one per CPU.")
    ] = None,
    num_frames: Annotated[int, Option(metavar="N", min=1, help="Frames per clip that training will read.")] = 8,
    sampling: Annotated[
        Literal["uniform", "released"], Option(metavar="RULE", help="uniform, or released for the published weights.")
    ] = "uniform",
    words: Annotated[str, Option(metavar="A,B", help="Also count these words in the answers, such as dog,cat.")] = "",
    as_json: AsJson = False,
) -> None:
    """Check every row and every clip once; list what is wrong, so that training can skip it.

    Exit code 1 means that something is wrong.

    Example:  videopanda data check train.json --media-root videos --manifest manifest.jsonl --against test_q.json
    """
    import os

    from videopanda.data.doctor import check, tables

    processes = workers or os.cpu_count() or 1
    listed = [word.strip() for word in words.split(",") if word.strip()]
    report = check(data, manifest, format_, media_root, against, processes, num_frames, sampling, listed)
    then = f"manifest: {manifest}; to skip bad rows:  videopanda train STAGE --set manifest={manifest}"
    show(report.as_dict(), as_json, *tables(report), then)
    if not report.passed:
        raise typer.Exit(1)


@data_app.command("label")
def label_verb(
    clips: Annotated[Path, Argument(help="Folder with one subfolder of clips per class.")],
    out: Annotated[Path, Argument(help="Folder to write.")],
    question: Annotated[str, Option(metavar="TEXT", help="The question about every clip.")],
    test_share: TestShare = 0.2,
    copies: Annotated[int, Option(metavar="N", min=0, help="Number of altered copies of each training recording.")] = 0,
    seed: Annotated[int, Option(metavar="S", min=0, help="Random seed of the split and the alterations.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make train.jsonl and test.jsonl from one folder of clips per class, with one question about each clip.

    Example:  videopanda data label clips out/my --question "Which word is signed?"
    """
    from videopanda.data.class_folders import write_labeled

    counts = write_labeled(clips, out, question, test_share, copies, seed)
    lines = [f"{counts['classes']} classes: {counts['train']} training rows, {counts['test']} test rows: {out}"]
    if counts["test_altered_copies"]:
        lines.append(
            f"{counts['test_altered_copies']} test rows show altered copies of training recordings: they test "
            "whether a recording is recognized, not whether its class is"
        )
    show(counts, as_json, *lines)


@data_app.command("shard")
def shard_verb(
    data: Annotated[str, Argument(help="Annotations or a mixture.")],
    out: Annotated[Path, Argument(help="Folder to write or resume.")],
    media_root: MediaRoot = None,
    format_: Format = "auto",
    manifest: Annotated[
        Path | None, Option(metavar="FILE", help="Skip the rows that `data check` found bad.", callback=existing_file)
    ] = None,
    max_bad_share: Annotated[
        float, Option(metavar="X", min=0, max=1, help="Fail if a larger share of the rows is bad.")
    ] = 0.01,
    shard_size: Annotated[int, Option(metavar="N", min=1, help="Clips per shard.")] = 1000,
    seed: Annotated[int, Option(metavar="S", min=0, help="Random seed of the shard assignment.")] = 0,
) -> None:
    """Pack annotations and clips into WebDataset shards; train on them with the setting data=OUT.

    Example:  videopanda data shard train.json out/shards --media-root videos --manifest manifest.jsonl
    """
    import logging

    from videopanda.data.conversations import ConversationDataset
    from videopanda.data.shards import write_shards

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    dataset = ConversationDataset(
        data, media_root, seed=seed, format=format_, group_by_clip=True, manifest=manifest, max_bad_share=max_bad_share
    )
    written = write_shards(dataset, out, shard_size)
    print(f"{written['samples']} clips with their conversations in {written['shards']} shards: {out}")


@data_app.command("cache")
def cache_verb(
    folder: Annotated[Path, Argument(help="Folder of decoded frames or visual tokens.")],
    cache_size: Annotated[
        int | None,
        Option(metavar="SIZE", help="Evict the least recently used entries above this size.", parser=size_in_bytes),
    ] = None,
    clear: Annotated[bool, Option("--clear", help="Remove all entries.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the size of a cache, limit it, or empty it. Safe while other processes use the cache.

    `videopanda train` caches decoded frames (setting frame_cache=DIR), `answer`
    and `evaluate` cache visual tokens (--cache DIR).

    Example:  videopanda data cache out/frames --cache-size 20GiB
    """
    from videopanda.video.disk_cache import evict, files_in

    if not folder.is_dir():
        raise ValueError(f"no cache at {folder}")
    if clear and cache_size is not None:
        raise ValueError("--clear and --cache-size are mutually exclusive")
    most = 0 if clear else cache_size
    if most is not None:
        evict(folder, most)
    sizes = [size for _, size, _ in files_in(folder)]
    report = {"entries": len(sizes), "bytes": sum(sizes)}
    show(report, as_json, f"{len(sizes):,} entries, {sum(sizes) / 1e9:.2f} GB: {folder}")


@data_app.command("features")
def features_verb(
    stage: Annotated[str, Argument(help="Training stage whose clips are encoded.")],
    out: Annotated[Path, Argument(help="Folder to write or resume.", callback=no_file)],
    model: Annotated[Path, Option(metavar="DIR|NAME", help="Checkpoint that the stage starts from.")],
    config: Annotated[str, Option(metavar="NAME|FILE", help="Settings, as for videopanda train.")] = "paper",
    set_: Set = None,
) -> None:
    """Compute a teacher's features once; train on them with the setting teacher_features=OUT.

    Example:  videopanda data features pretrain out/features --model out/prealign --config my.json
    """
    require_stage(stage, config)
    start = require_checkpoint(model)
    assert start is not None
    import logging

    from videopanda.training.run import make_features, shutdown_distributed

    quiet()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    written = make_features(stage, config, set_ or [], start, out)
    shutdown_distributed()
    print(f"features of {written} clips written: {out}")


@data_app.command("recaption")
def recaption_verb(
    data: Annotated[str, Argument(help="Annotations or a mixture.")],
    output: Annotated[Path, Option(metavar="FILE", help="JSON Lines file to write or resume.")],
    media_root: MediaRoot = None,
    format_: Format = "auto",
    base_url: BaseUrl = None,
    name: Annotated[str, Option(metavar="ID", help="Name of the model on that server.")] = "",
    model: Annotated[
        Path | None, Option(metavar="DIR|NAME", help="Checkpoint to caption with, instead of a server.")
    ] = None,
    send: Annotated[
        Literal["frames", "video"],
        Option(metavar="WHAT", help="What to send to the server: frames (as images) or video (the file)."),
    ] = "frames",
    prompt: Annotated[str, Option(metavar="TEXT", help="What to ask. Default: a detailed description.")] = "",
    num_frames: Annotated[int, Option(metavar="N", min=1, help="Frames per clip.")] = 8,
    concurrency: Annotated[int, Option(metavar="N", min=1, help="Concurrent calls.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Describe every clip of training data with a stronger model; the same command resumes.

    Exit code 1 means that some clips have no caption; they are listed, and the
    next call tries them again.

    Example:  videopanda data recaption train.json --output new.jsonl --base-url http://host/v1 --name ID
    """
    from dataclasses import asdict

    if bool(base_url) == bool(model):
        raise ValueError("choose a model: either --base-url and --name, or --model")
    if bool(base_url) != bool(name):
        raise ValueError("--base-url needs --name, the name of a model on that server")
    model = require_checkpoint(model)
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder: choose a file")
    from videopanda.data.recaption import PROMPT, Captioner, Local, Remote, recaption

    quiet()
    captioner: Captioner = Remote(name, base_url, send) if base_url else Local(model)
    calls = concurrency if base_url else 1
    report = recaption(data, output, captioner, prompt or PROMPT, num_frames, format_, media_root, calls)
    lines = [f"{path}: {reason}" for path, reason in list(report.failed.items())[:3]]
    skipped = f", {report.skipped_rows} rows without exactly one clip" if report.skipped_rows else ""
    counts = f"{report.written} captions written, {report.known} kept, {len(report.failed)} failed{skipped}: {output}"
    show(asdict(report), as_json, *lines, counts)
    if report.failed:
        raise typer.Exit(1)
