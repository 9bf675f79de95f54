"""Print what pyproject.toml asks for, with the extra `dev` and without upper bounds (`make test-newest`)."""

import ast
import re
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
LISTS = re.findall(r"^([a-z]+) = (\[(?:[^\n]*|\n.*?\n)\])(?:  #[^\n]*)?$", TEXT, flags=re.MULTILINE | re.DOTALL)
WANTED = {name: ast.literal_eval(items) for name, items in LISTS}
extras, *found = WANTED["dev"]
for name in ["dependencies", *re.findall(r"\w+", extras.partition("[")[2])]:
    found += WANTED[name]
print("\n".join(re.sub(r",<[\d.]+", "", requirement) for requirement in found))
