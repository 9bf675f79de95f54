"""The texts of options in a reply: what it is, what it says of them, what follows a letter."""

import re
from collections.abc import Sequence

from videopanda.evaluation.scoring.choice_patterns import (
    ANSWER_IS,
    ARTICLE,
    CJK,
    CONDITION,
    DENIAL,
    IDIOMS,
    ONE,
    PRONOUN,
)
from videopanda.evaluation.scoring.clauses import clauses
from videopanda.evaluation.scoring.normalize import tokens

# An "A" that is no article: "Team A", "Team A wins", "A-B-C", "(a)(c)(b)".
_NO_ARTICLE = re.compile(r"(?<=\w )A\b(?!\s+[A-Z])|\bA(?=\W*$|\s*[^\w\s]|\s+[A-Z]\b)|[(\[]a[)\]]")
# Numbers that count nothing ("0:03", "1995-96", "frame 3", "the one") and words that say no direction ("up the ball").
_COMPOUND = re.compile(
    r"\b\d+(?:[:/–-]\d+)+|\b(?:frames?|steps?|scenes?|pages?|lines?)\s*#?\s*(?:\d+|one|two|three|four|five)\b"
    r"|\b(?:at\s+(?:least|most)|up\s+to)\s+(?:\d+|one|two|three|four|five|six|seven|eight|nine|ten)\b"
    r"|\b(?:the|this|that|which|each|every)\s+one\b|\bone\s+(?:by\s+one|another|can|could|may|might|sees)\b"
    r"|\b(?:up|down|left|on|off|in|out|over)\s+(?:the|an?|his|her|their|its)\b"
    r"|\b(?:upper|lower|top|bottom)[\s-]+(?:left|right)\b|\bafter\s+(?:watching|viewing|looking|reviewing|careful\w*|seeing)\b",
    re.IGNORECASE,
)
# A number among Chinese or Japanese characters that counts, "答案是5", "5个人".
_COUNT = re.compile(r"(?<=[\u3040-\u9fff])(?<![第至到])(\d+)(?=[个個人名只隻匹条條辆輛头頭件张張本つ]|\W|$)")
_SINGULAR = re.compile(r"\s*an?\b", re.IGNORECASE)
_NUMERALS = "零一二两兩三四五六七八九十百千万萬"


def masked(text: str, options: Sequence[str]) -> str:
    """The text with blanks for options in which a letter stands by itself, "Team B wins"."""
    for option in sorted(options, key=len, reverse=True):
        if len(option.strip()) > 1 and re.search(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", option):
            words = r"\s+".join(map(re.escape, option.split()))
            text = re.sub(rf"(?<!\w){words}(?!\w)", lambda match: "▢" * len(match[0]), text, flags=re.IGNORECASE)
    return text


def equal(text: str, options: Sequence[str]) -> tuple[int, ...]:
    """The options that a text is, but for case and punctuation; else those of the same normal form, if they are one
    text."""
    wanted, bare = _normal(text, options), _bare(text)
    if bare and (same := tuple(i for i, option in enumerate(options) if _bare(option) == bare)):
        return same
    same = tuple(i for i, option in enumerate(options) if wanted and _normal(option, options) == wanted)
    return same if len({_bare(options[i]) for i in same}) == 1 else ()


def _bare(text: str) -> str:
    return text.strip(" .\"'").casefold()


def _normal(text: str, options: Sequence[str]) -> str:
    """The normal form of a text to compare with options; with articles where one has an "A" that is none."""
    return " ".join(tokens(text, with_articles=any(map(_NO_ARTICLE.search, (text, *options)))))


def text_beside(rest: str, options: Sequence[str]) -> tuple[tuple[int, ...], int]:
    """The option whose text follows a letter, up to a line end or a mark, and where it ends; () if none does."""
    length = len(rest)
    rest = rest.lstrip(" \n.:,;)]>⟧}\"'*-–—")
    longest = 2 * max(map(len, options), default=0) + 20
    for end in (r"\n", r"[\n.;!?]", r"[\n.;!?,(—–]|\s-\s"):
        part = re.split(end, rest, maxsplit=1)[0]
        if len(part) <= longest and (same := equal(part, options)):
            return same, length - len(rest) + len(part)
    return (), 0


def denied_or_open(text: str) -> bool:
    """Whether a text denies something, asks, or makes a condition."""
    return bool(DENIAL.search(IDIOMS.sub(" ", text)) or CONDITION.search(text) or "?" in text)


def asserted(reply: str, options: Sequence[str]) -> tuple[int, ...] | None:
    """The only option whose words stand in the reply, or in what it asserts."""
    kept = " ".join(options).casefold()
    text = reply
    for pattern in (_COMPOUND, IDIOMS):
        text = pattern.sub(lambda match: match[0] if match[0].casefold() in kept else " ", text)
    if len(found := written(text, options)) == 1:
        ((word, indices),) = found.items()
        if not denied_or_open(_words(text, options).replace(word, " ") + ("?" if "?" in reply else "")):
            return indices
    told: list[str] = []
    denied: list[str] = []
    for start, end, kind in clauses(text):
        if kind:
            return None
        clause = text[start:end]
        (denied if DENIAL.search(clause) else told).append(clause)
    if denied:  # "green, not red"
        if not all(written(clause, options, asserts=False) for clause in denied):
            return None
        told_of = written(", ".join(re.sub(r"^\W*(?:but|and)\b", "", clause) for clause in told), options)
    elif cues := list(ANSWER_IS.finditer(text)):
        told_of = written(text[cues[-1].end() :], options)
    else:
        return None
    if len(told_of) != 1 or told_of.keys() & written(", ".join(denied), options, asserts=False).keys():
        return None
    return next(iter(told_of.values()))


def written(reply: str, options: Sequence[str], *, asserts: bool = True) -> dict[str, tuple[int, ...]]:
    """The options whose words stand in a text, by their normal form; not those that are part of another found one.

    None at all if the text `asserts` one of them and something more ("a cat and a bird").
    """
    text = _words(reply, options)
    words = [f" {_normal(option, options)} " if not ONE.fullmatch(option.strip()) else "" for option in options]
    words = [option if CJK.fullmatch(option) else word for option, word in zip(options, words)]
    openings = [PRONOUN.match(word) for word in words]
    if len({match and match[0] for match in openings}) == 1:
        words = [PRONOUN.sub(r"\1", word) for word in words]
    if all(ARTICLE.match(word) for word in words):
        words = [ARTICLE.sub(r"\1", word) for word in words]
    singular = [bool(_SINGULAR.match(option)) for option in options]
    found = {word for word, one in zip(words, singular) if word.strip() and _is_written(word, text, one)}
    found = {word for word in found if not any(word != other and word in other for other in found)}
    for word in found if asserts else ():
        if re.search(rf"\b(?:and|or|but)\s+{re.escape(word.strip())}(?!\w)|{re.escape(word)}(?:and|or|then)\b", text):
            return {}
    same = {one: tuple(i for i, word in enumerate(words) if word == one) for one in found}
    return {one: indices for one, indices in same.items() if len({_bare(options[i]) for i in indices}) == 1}


def _is_written(word: str, text: str, is_singular: bool) -> bool:
    """Whether a text holds a word. One Chinese character or Korean syllable may also be part of another word, and a
    Chinese number part of a larger one."""
    if word[0] in _NUMERALS and len(word) > 1:
        return bool(re.search(rf"(?<![{_NUMERALS}第几幾]){re.escape(word)}", text))
    if len(word) > 1:
        more = r"(?<!\d)" if is_singular else ""  # "two dogs" are not "a dog"
        return bool(re.search(more + re.escape(word), text))
    if word >= "가":
        return bool(re.search(rf"(?<![가-힣]){word}(?=[와과는은이가을를도]|[^가-힣]|$)", text))
    return bool(re.search(rf"(?:(?<![一-鿿])|(?<=[是只匹条个头隻])){word}(?![一-鿿])", text))


def _words(reply: str, options: Sequence[str]) -> str:
    counted = _COUNT.sub(r" \1 ", reply)
    return f" {_normal(counted, options)} " + re.sub(r"[^\u3040-\ud7a3]+", " ", reply)  # scripts without spaces, too
