"""Makes the text of the package page from the README: such a page has no files beside it.

With `Repository = "https://github.com/…"` in [project.urls] of pyproject.toml, relative links and pictures lead there.
Without it, links become plain text, and pictures are left out.
"""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"!\[([^\]]*)\]\((?!\w+:)([^)\s]+)\)\n*")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")


def package_page(readme: str, repository: str | None) -> str:
    """The README with absolute links."""
    if repository is None:
        return LINK.sub(r"\1", PICTURE.sub("", readme))
    pictures = PICTURE.sub(rf"![\1]({repository}/raw/main/\2)\n\n", readme)
    return LINK.sub(rf"[\1]({repository}/blob/main/\2)", pictures)


class PackagePage(MetadataHookInterface):
    """Called by hatchling for every wheel."""

    def update(self, metadata: dict) -> None:
        """Fill in `readme`."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        page = package_page(text, metadata.get("urls", {}).get("Repository"))
        metadata["readme"] = {"content-type": "text/markdown", "text": page}
