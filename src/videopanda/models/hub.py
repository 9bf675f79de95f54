"""Self-contained folders: they load with `trust_remote_code=True` where this package is not installed.

transformers finds a class through `auto_map` in a folder's configuration and loads its file, and the files it imports,
from the folder itself. `AUTO_MAP` in a family's configuration file lists its classes for the Auto classes.
"""

import json
import re
import sys
from pathlib import Path

_IMPORTS = re.compile(r"^from (\.+)(\w+) import", re.MULTILINE)


def add_code(file: Path, config: type) -> list[str]:
    """Add `auto_map` to a saved `config.json` or `processor_config.json` and put the family's code in its folder.

    Returns the code files that were written. `config` is the configuration class of the family.
    """
    module = sys.modules[config.__module__]
    is_processor = file.name == "processor_config.json"
    auto_map = {name: place for name, place in module.AUTO_MAP.items() if ("Processor" in name) == is_processor}
    record = json.loads(file.read_text(encoding="utf-8"))
    record["auto_map"] = auto_map
    if is_processor:
        record["video_processor"]["auto_map"] = auto_map
    file.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    home = Path(str(module.__file__))
    code: set[Path] = set()
    for place in auto_map.values():
        _collect(home.with_name(place.partition(".")[0] + ".py"), code)
    for source in code:  # all in one folder, also those that several families share
        text = source.read_text(encoding="utf-8").replace("\nfrom ..", "\nfrom .")
        file.with_name(source.name).write_text(text, encoding="utf-8")
    return sorted(str(file.with_name(source.name)) for source in code)


def _collect(source: Path, found: set[Path]) -> None:
    """Add a file and the files it imports from its own folder and the parent folder."""
    if source not in found:
        found.add(source)
        for dots, name in _IMPORTS.findall(source.read_text(encoding="utf-8")):
            _collect((source if dots == "." else Path(__file__)).with_name(f"{name}.py"), found)
