"""Writes a miniature of the WordNet database in the original form: invented places, real relations of a few words."""

from pathlib import Path

# Offset, words, offsets of the hypernyms.
NOUNS = [
    (100, ["entity"], []),
    (200, ["animal", "beast"], [100]),
    (300, ["dog", "domestic_dog"], [200]),
    (400, ["cat"], [200]),
    (500, ["puppy"], [300]),
    (600, ["artifact"], [100]),
    (700, ["sofa", "couch"], [600]),
    (800, ["goose"], [200]),
]
VERBS = [(100, ["move"], []), (200, ["run"], [100]), (300, ["walk"], [100]), (400, ["eat"], [])]
LICENCE = "  1 This stands for the licence, whose lines are indented.\n"


def write_wordnet(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, letter, synsets in (("noun", "n", NOUNS), ("verb", "v", VERBS), ("adj", "a", []), ("adv", "r", [])):
        data, index = LICENCE, LICENCE
        for offset, words, above in synsets:
            named = " ".join(f"{word} 0" for word in words)
            pointers = "".join(f" @ {target:08d} {letter} 0000" for target in above)
            data += (
                f"{offset:08d} 03 {letter} {len(words):02x} {named} {len(above):03d}{pointers} | a gloss with | bar\n"
            )
            for word in words:
                index += f"{word} {letter} 1 1 @ 1 0 {offset:08d}\n"
        (folder / f"data.{part}").write_text(data)
        (folder / f"index.{part}").write_text(index)
        (folder / f"{part}.exc").write_text(
            "geese goose\n" if part == "noun" else "ran run\n" if part == "verb" else ""
        )
    return folder
