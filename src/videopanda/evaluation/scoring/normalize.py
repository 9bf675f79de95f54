"""Makes texts comparable that mean the same: case, punctuation, articles, plurals, numbers.

    normalize("The Twenty-one men.")   →   "21 man"

Normalising twice changes nothing more.
"""

import html
import re
import unicodedata

ARTICLES = frozenset({"a", "an", "the"})
_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_ONES += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SMALL = {word: value for value, word in enumerate(_ONES)} | {word: 10 * i for i, word in enumerate(_TENS, 2)}
_LARGE = {"thousand": 1000, "million": 1_000_000, "billion": 1_000_000_000}
_ORDINALS = {  # without "second", which is mostly a time
    "first": "1st",
    "third": "3rd",
    "fourth": "4th",
    "fifth": "5th",
    "sixth": "6th",
    "seventh": "7th",
    "eighth": "8th",
    "ninth": "9th",
    "tenth": "10th",
}
_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "feet": "foot",
    "teeth": "tooth",
    "geese": "goose",
    "mice": "mouse",
    "oxen": "ox",
    "knives": "knife",
    "lives": "life",
    "wives": "wife",
    "leaves": "leaf",
    "loaves": "loaf",
    "shelves": "shelf",
    "scarves": "scarf",
    "wolves": "wolf",
    "calves": "calf",
    "halves": "half",
    "thieves": "thief",
    "potatoes": "potato",
    "tomatoes": "tomato",
    "heroes": "hero",
    "buses": "bus",
    "lenses": "lens",
    "gases": "gas",
    "cookies": "cookie",
    "movies": "movie",
    "zombies": "zombie",
}
# Words that end like plurals and are none.
_SINGULAR = frozenset({"always", "across", "series", "species", "news", "sports", "physics", "lens", "chess", "gas"})
_POSSESSIVE = re.compile(r"['’](?:s\b)?")
_CONTRACTED = re.compile(r"\b(?:(ca)n|(wo)n|(\w+)n)['’]t\b|\b(can)not\b")
_IS = re.compile(r"\b(it|he|she|that|there|who|what|where)['’]s\b")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TOKEN = re.compile(r"(?<![^\s(])-\d+(?:\.\d+)?|\d+\.\d+|[^\W_]+")
_NUMBER = re.compile(r"0*(\d+?)(?:\.(\d*?)0*)?")


def normalize(text: str) -> str:
    """The text as words separated by one space; may be empty."""
    return " ".join(tokens(text))


def tokens(text: str, *, with_articles: bool = False) -> list[str]:
    """The words of a text in their normal form.

    Lower case, no punctuation and no possessive ending; plurals become singular; articles go, unless `with_articles`;
    "doesn't" is "does not" and "it's" "it is"; number words and digits become the same digits ("twenty-one", "21.0"),
    ordinals up to tenth "1st" to "10th".
    """
    text = text.replace("−", "-")
    text = _CONTRACTED.sub(_in_full, _IS.sub(r"\1 is", _plain(text)))
    text = _THOUSANDS.sub("", _POSSESSIVE.sub("", text))
    words = [singular(word) for word in _TOKEN.findall(text)]
    return _numbers([word for word in words if with_articles or word not in ARTICLES])


def _in_full(match: re.Match[str]) -> str:
    verb = "can" if match[1] or match[4] else "will" if match[2] else match[3]
    return f"{verb} not"


def _plain(text: str) -> str:
    """Compatibility forms, lower case, no marks: a fixed point, which one pass of Unicode's rules need not reach."""
    text = html.unescape(text)
    while True:
        folded = unicodedata.normalize("NFKD", text).casefold()
        folded = "".join(_ascii_digit(c) for c in folded if not unicodedata.combining(c))
        if folded == text:
            return text
        text = folded


def _ascii_digit(character: str) -> str:
    value = unicodedata.decimal(character, None)
    return character if value is None else str(value)


def singular(word: str) -> str:
    """The singular of a lower-case English noun; other words mostly stay as they are."""
    while (shorter := _singular_once(word)) != word:
        word = shorter
    return word


def _singular_once(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 3 or not word.isalpha() or word in _SINGULAR or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("sses", "xes", "ches", "shes", "zzes")):
        return word[:-2]
    return word.removesuffix("s")


def _numbers(words: list[str]) -> list[str]:
    done: list[str] = []
    position = 0
    while position < len(words):
        value, used = _spelled(words[position:])
        if used:
            done.append(str(value))
        else:
            done.append(_number(words[position]))
        position += max(used, 1)
    return done


def _number(word: str) -> str:
    if word in _ORDINALS:
        return _ORDINALS[word]
    match = _NUMBER.fullmatch(word)
    if match is None:
        return word
    return f"{match[1]}.{match[2]}" if match[2] else match[1]


def _spelled(words: list[str]) -> tuple[int, int]:
    """The number that a list starts with, "two hundred and five", and how many words it takes; (0, 0) if none."""
    total = group = used = 0
    last = 0  # value of the word before: a smaller one may be added to it
    for i, word in enumerate(words):
        if word in _SMALL:
            value = _SMALL[word]
            if used and not (last >= 100 or (20 <= last < 100 and 0 < value < 10)):
                break
            group, last = group + value, value
        elif word == "hundred" and 0 < group < 10:
            group, last = group * 100, 100
        elif word in _LARGE and group > 0 and (not total or total >= 1000 * _LARGE[word]):
            total, group, last = total + group * _LARGE[word], 0, _LARGE[word]
        elif word == "and" and last >= 100 and i + 1 < len(words) and words[i + 1] in _SMALL:
            continue
        else:
            break
        used = i + 1
    return total + group, used
