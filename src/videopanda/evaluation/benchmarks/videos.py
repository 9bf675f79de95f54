"""Where the videos of a benchmark are: folders differ from copy to copy, and annotations leave out suffixes."""

import os
from collections import defaultdict
from pathlib import Path

from videopanda.evaluation.benchmarks.item import VIDEO_SUFFIXES


class Videos:
    """The files below a folder, found by the names that annotations use.

        Videos(Path("MSVD/videos")).find("abc_10_20")        # MSVD/videos/abc_10_20.avi

    A folder of frames is found by its name, too.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder of videos")
        self.folder = folder
        self._files: defaultdict[str, list[Path]] = defaultdict(list)
        seen: set[str] = set()
        # Links are followed, since videos are often on another disk; a link to a visited folder would never end.
        for place, folders, files in os.walk(folder, followlinks=True):
            if (real := os.path.realpath(place)) in seen:
                folders.clear()
                continue
            seen.add(real)
            for name in (*folders, *files):
                self._files[name].append(Path(place, name))

    def find(self, video: str) -> Path | None:
        """The file or folder of frames; None if there is none, or several and none fits better than the others.

        Of several files with the name the one counts whose folders are those of the annotation, too.
        """
        name = video.rpartition("/")[2]
        names = [name] if name.endswith(VIDEO_SUFFIXES) else [*(name + suffix for suffix in VIDEO_SUFFIXES), name]
        found = next((self._files[n] for n in names if n in self._files), [])
        if len(found) > 1:
            folders = video.split("/")[:-1]
            found = [path for path in found if folders and list(path.parts[-1 - len(folders) : -1]) == folders]
        return found[0] if len(found) == 1 else None
