"""WordNet from its database files: synonyms, and the similarity of Wu and Palmer (1994) on which WUPS stands.

    wordnet = WordNet("/usr/share/wordnet")            # Debian and Ubuntu: apt install wordnet-base
    wordnet.similarity("dog", "cat")                   # 0.857

The files `index.*`, `data.*` and, where they are there, `*.exc` are read as they are; their form is that of the manual
pages wndb(5WN) and morphy(7WN), in which Open English WordNet is published, too. Python packages that serve WordNet
fetch it over the network; an evaluation must work without one.
"""

import hashlib
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

PARTS = ("noun", "verb", "adj", "adv")
_NEEDED = tuple(name for part in PARTS for name in (f"index.{part}", f"data.{part}"))
_PART_OF = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
_HYPERNYMS = ("@", "@i")  # a kind of, an instance of
_SUFFIXES = {
    "noun": (("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("ies", "y")),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}
SENSES = 3  # synonyms share one of the most frequent senses of both words; rare senses make almost any pair synonyms


class WordNetError(ValueError):
    """The folder does not hold the WordNet database."""


class Synset(NamedTuple):
    """A set of synonyms: its part of speech and its place in the data file."""

    part: str
    offset: int


_VERB_ROOT = Synset("verb", -1)  # verbs have many roots; this stands above them


class WordNet:
    """The database in a folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        for name in _NEEDED:
            if not (self.folder / name).is_file():
                raise WordNetError(
                    f"{self.folder} contains no WordNet database ({name} is missing); "
                    "on Debian and Ubuntu: apt install wordnet-base, then the folder is /usr/share/wordnet"
                )
        self._index: dict[tuple[str, str], list[Synset]] = {}
        self._exceptions: dict[tuple[str, str], list[str]] = {}
        self._above: dict[Synset, list[Synset]] = {}
        for part in PARTS:
            for words in self._lines(f"index.{part}"):
                count = int(words[2])
                self._index[part, words[0]] = [Synset(part, int(offset)) for offset in words[-count:]]
            for words in self._lines(f"data.{part}"):
                self._above[Synset(part, int(words[0]))] = _hypernyms(words)
            for words in self._lines(f"{part}.exc") if (self.folder / f"{part}.exc").is_file() else ():
                self._exceptions[part, words[0]] = words[1:]
        # Cached per database; a cache on the class would keep every database alive.
        self.similarity = cache(self._similarity)
        self._ancestors = cache(self._find_ancestors)
        self._depth = cache(self._find_depth)

    def _lines(self, name: str) -> Iterator[list[str]]:
        with (self.folder / name).open(encoding="utf-8") as file:
            for line in file:
                if not line.startswith("  ") and line.strip():  # the licence is indented
                    yield line.split("|")[0].split()

    @cached_property
    def sha256(self) -> str:
        """Digest of the files that are read."""
        digest = hashlib.sha256()
        for name in (*_NEEDED, *(f"{part}.exc" for part in PARTS)):
            if (self.folder / name).is_file():
                digest.update((self.folder / name).read_bytes())
        return digest.hexdigest()

    def synsets(self, word: str, part: str) -> list[Synset]:
        """The senses of a word or phrase in lower case, the most frequent first; inflected forms are reduced."""
        lemma = word.replace(" ", "_")
        forms = [lemma, *self._exceptions.get((part, lemma), ())]
        forms += [lemma[: -len(old)] + new for old, new in _SUFFIXES[part] if lemma.endswith(old)]
        found = (synset for form in forms for synset in self._index.get((part, form), ()))
        return list(dict.fromkeys(found))

    def synonyms(self, first: str, second: str) -> bool:
        """Whether two words or phrases share one of their frequent senses."""
        return any(
            not set(self.synsets(first, part)[:SENSES]).isdisjoint(self.synsets(second, part)[:SENSES])
            for part in PARTS
        )

    def _similarity(self, first: str, second: str) -> float:
        """From 0 to 1, the best of all senses; nouns and verbs have a hierarchy, other words are synonyms or not."""
        if first == second:
            return 1.0
        best = 0.0
        for part in PARTS:
            for a in self.synsets(first, part):
                for b in self.synsets(second, part):
                    best = max(best, 1.0 if a == b else self._wu_palmer(a, b))
        return best

    def _wu_palmer(self, a: Synset, b: Synset) -> float:
        """2 d / (distance of a + distance of b + 2 d) for the common ancestor, d nodes deep, that makes it largest."""
        above_a, above_b = self._ancestors(a), self._ancestors(b)
        best = 0.0
        for common in above_a.keys() & above_b.keys():
            depth = self._depth(common)
            best = max(best, 2 * depth / (above_a[common] + above_b[common] + 2 * depth))
        return best

    def _find_ancestors(self, synset: Synset) -> dict[Synset, int]:
        """The synset and everything above it, with the number of steps up."""
        steps = {synset: 0}
        queue = [synset]
        for current in queue:
            for above in self._parents(current):
                if above not in steps:
                    steps[above] = steps[current] + 1
                    queue.append(above)
        return steps

    def _find_depth(self, synset: Synset) -> int:
        """Nodes on the longest way up, the synset and the root included."""
        return 1 + max((self._depth(above) for above in self._parents(synset)), default=0)

    def _parents(self, synset: Synset) -> list[Synset]:
        above = self._above.get(synset, [])
        return [_VERB_ROOT] if not above and synset.part == "verb" and synset != _VERB_ROOT else above


def _hypernyms(words: list[str]) -> list[Synset]:
    """Of a line of a data file: offset, file, type, number of words (hex), words, number of pointers, pointers."""
    start = 4 + 2 * int(words[3], 16)
    pointers = (words[start + 1 + 4 * i : start + 5 + 4 * i] for i in range(int(words[start])))
    return [Synset(_PART_OF[part], int(offset)) for symbol, offset, part, _ in pointers if symbol in _HYPERNYMS]
