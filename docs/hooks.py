"""What the site (`mkdocs.yml`) has beside the pages of this folder.

README, CONTRIBUTING and CHANGELOG become pages, and links that leave `docs/` lead to copies of those files in the site.
In docstrings, lines such as "num_frames: how many" become a list.
"""

import posixpath
import re
from pathlib import Path

from griffe import Extension
from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
ARGUMENT = re.compile(r"^(\w+(?:, \w+)*): ", flags=re.MULTILINE)


def on_files(files, config):
    """Add the pages from the top of the repository, and every file outside `docs/` that a page links to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for page in list(files.documentation_pages()):
        for link in LINK.findall(page.content_string):
            source = _linked(link, page.src_uri)
            place = _place(source)
            if place.startswith("files/") and place not in files.src_uris and (ROOT / source).is_file():
                path = str(ROOT / source)
                files.append(File.generated(config, place, abs_src_path=path, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links between files of the repository become links between places of the site."""
    here = posixpath.dirname(page.file.src_uri)
    return LINK.sub(lambda m: posixpath.relpath(_place(_linked(m[1], page.file.src_uri)), here or "."), markdown)


def _linked(link, page):
    """The file of the repository that a page of the site links to."""
    source = SOURCES.get(page) or (page.removeprefix("files/") if page.startswith("files/") else f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _place(source):
    """Where the site has a file of the repository."""
    return PAGES.get(source) or (source.removeprefix("docs/") if source.startswith("docs/") else f"files/{source}")


class ListsOfArguments(Extension):
    """Makes a list of the lines of a docstring that begin with names and a colon."""

    def on_object(self, *, obj, **_):
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring and (obj.is_function or obj.is_class):
            obj.docstring.value = ARGUMENT.sub(_item, obj.docstring.value)


def _item(found):
    names = ", ".join(f"`{name}`" for name in found[1].split(", "))
    return found[0] if found[1] in ("Raises", "Returns", "Yields", "Example") else f"\n- {names}: "
