"""Protects what replies are understood to say, and the normal form of texts (properties and cases)."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from videopanda.evaluation.benchmarks.options import LETTERS
from videopanda.evaluation.scoring.choice import choice
from videopanda.evaluation.scoring.extract import interval, yes_no
from videopanda.evaluation.scoring.normalize import ARTICLES, normalize, singular, tokens

WORDS = st.sampled_from(["red", "blue", "cup", "dog", "runs", "seven", "21", "left", "boxes", "person", "hill"])
OPTIONS = st.lists(st.lists(WORDS, min_size=1, max_size=3, unique=True).map(" ".join), min_size=2, max_size=6).filter(
    lambda options: len({normalize(option) for option in options}) == len(options)
)


# -- the normal form ---------------------------------------------------------------------------------------------------
@given(st.text())
@example("ǅ İ ſ ﬀ ½ ٣ 2️⃣")
@example("two hundred and and five")
def test_normalising_twice_changes_nothing(text):
    assert normalize(normalize(text)) == normalize(text)


@given(st.text())
def test_case_space_and_final_stop_do_not_count(text):
    once = normalize(text)
    assert normalize(f"  {text} . ") == once
    assert not ARTICLES & set(once.split()) or once == ""


@given(st.lists(WORDS, min_size=1, max_size=5), st.sampled_from(sorted(ARTICLES)))
def test_articles_do_not_count(words, article):
    assert normalize(" ".join([article, *words])) == normalize(" ".join(words))


@given(st.integers(0, 999_999))
def test_spelled_numbers_are_numbers(number):
    assert normalize(spell(number)) == str(number)
    assert normalize(f"{number:,}") == str(number)
    assert normalize(f"{number}.0") == str(number)


def spell(number: int) -> str:
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    words += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
    tens = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    if number < 20:
        return words[number]
    if number < 100:
        return tens[number // 10 - 2] + (f"-{words[number % 10]}" if number % 10 else "")
    if number < 1000:
        return f"{words[number // 100]} hundred" + (f" and {spell(number % 100)}" if number % 100 else "")
    return f"{spell(number // 1000)} thousand" + (f" {spell(number % 1000)}" if number % 1000 else "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Twenty-one men.", "21 man"),
        ("A dog's bowl", "dog bowl"),
        ("three people, playing", "3 person playing"),
        ("T-shirt", "t shirt"),
        ("007", "7"),
        ("1,000,000 cars", "1000000 car"),
        ("the second one", "second 1"),
        ("First", "1st"),
        ("boxes dishes glasses", "box dish glass"),
        ("bus glass tennis always", "bus glass tennis always"),
        ("five six", "5 6"),
        ("-5 degrees, 3-4, −2", "-5 degree 3 4 -2"),
        ("salt &amp; pepper, 5 &lt; 6", "salt pepper 5 6"),
        ("It's raining, isn't it", "it is raining is not it"),
        ("the", ""),
        ("…", ""),
        ("yes.", "yes"),
    ],
)
def test_normal_forms(text, expected):
    assert normalize(text) == expected


@given(st.text(alphabet="aeimnorstuxy", min_size=1, max_size=8))
def test_a_singular_is_its_own_singular(word):
    assert singular(singular(word)) == singular(word)
    assert tokens(word) == tokens(singular(word))


# -- options -----------------------------------------------------------------------------------------------------------
FORMS = (
    "{letter}",
    "({letter})",
    "{letter}.",
    "({small})",
    "{letter}. {text}",
    "({letter}) {text}",
    "{text}",
    "{text}.",
    "The answer is {letter}.",
    "The correct answer is ({letter}) {text}.",
    "Best option: ({letter}) {text}",
    "Answer: {letter}",
    "I think option {letter} is right.",
)


@given(OPTIONS, st.data(), st.sampled_from(FORMS))
def test_every_usual_form_of_reply_names_its_option(options, data, form):
    index = data.draw(st.integers(0, len(options) - 1))
    letter = LETTERS[index]
    reply = form.format(letter=letter, small=letter.lower(), text=options[index])
    assert choice(reply, options) == (index,)


@given(st.text(max_size=60), OPTIONS)
def test_a_choice_is_an_option_or_none(reply, options):
    chosen = choice(reply, options)
    assert chosen is None or (chosen and set(chosen) <= set(range(len(options))))


@given(OPTIONS, st.data())
def test_two_letters_are_no_choice(options, data):
    first, second = data.draw(st.lists(st.integers(0, len(options) - 1), min_size=2, max_size=2, unique=True))
    for form in ("{} or {}", "option {} or option {}", "({}) or maybe ({})", "The answer is {} or {}.", "{}\n{}"):
        assert choice(form.format(LETTERS[first], LETTERS[second]), options) is None


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("a red cup", (0,)),
        ("They show a dog on the hill.", (2,)),
        ("a big blue cup of tea", (1,)),  # "blue cup", although "cup" is an option of its own
        ("It is not a red cup.", None),
        ("red cup or dog", None),
        ("B. dog", None),  # the letter of one, the text of another
        ("E", None),
        ("", None),
        ("a", (0,)),
        ("A dog.", (2,)),  # an article, not a letter
        ("I cannot tell.", None),
        ("2", None),
        ("Option 2", (1,)),
        ("**C**", (2,)),
        ("The answer is a dog", (2,)),
        ("the answer is b.", (1,)),
        ("I would take (b) here", (1,)),
        ("a choice a person makes", None),
        ("(D)", (3,)),
    ],
)
def test_replies_about_options(reply, expected):
    assert choice(reply, ("a red cup", "a blue cup", "a dog", "cup")) == expected


def check_replies(rows):
    """No letter is wrong, and at least 97 of 100 readable replies are read."""
    read = [(reply, right, letters(choice(reply, options))) for options, reply, right in rows]
    assert [row for row in read if row[2] not in (row[1], None)] == []
    readable = [row for row in read if row[1] is not None]
    assert len([row for row in readable if row[2] == row[1]]) >= 0.97 * len(readable)


def letters(chosen):
    return "".join(LETTERS[i] for i in chosen) if chosen else None


# Options, a reply, and the letter that a careful reader takes from it; null where there is none.
WRITTEN = Path(__file__).with_name("choice_replies.jsonl")
HOSTILE = Path(__file__).with_name("choice_replies_hostile.jsonl")  # their letters were decided before any was read
OTHERS = Path(__file__).with_name("other_replies.jsonl")  # to questions of yes or no, and of when
COLLECTED = Path(__file__).parents[3] / "shared" / "cases" / "scoring" / "choice.jsonl"


@pytest.mark.parametrize("file", [WRITTEN, HOSTILE, COLLECTED], ids=["written", "hostile", "collected"])
def test_no_reply_is_read_wrong_and_few_are_unread(file):
    if not file.is_file():
        pytest.skip("this collection of replies is not here")
    rows = list(map(json.loads, file.read_text(encoding="utf-8").splitlines()))
    check_replies([(row["options"], row["reply"], row["right"]) for row in rows])


@pytest.mark.parametrize(("kind", "reader"), [("yes-no", yes_no), ("iou", interval)])
def test_no_other_reply_is_read_wrong_and_few_are_unread(kind, reader):
    rows = [json.loads(line) for line in OTHERS.read_text(encoding="utf-8").splitlines()]
    read = [(row["reply"], row["right"], reader(row["reply"])) for row in rows if row["kind"] == kind]
    read = [(reply, right, list(found) if isinstance(found, tuple) else found) for reply, right, found in read]
    assert [row for row in read if row[2] not in (row[1], None)] == []
    readable = [row for row in read if row[1] is not None]
    assert len([row for row in readable if row[2] == row[1]]) >= 0.97 * len(readable)


@pytest.mark.parametrize("part", ["B is ", "A or B. ", "answer ", "<think>", "\\boxed{", "- A: x\n", "not ", "("])
def test_a_model_that_loops_is_read_in_no_time(part):
    choice(part * 20_000, ("red", "blue", "green"))  # quadratic rules would take minutes, the suite's limit is less


def test_options_of_the_same_text_are_chosen_together():
    assert choice("green", ("red", "Green", "green.", "white")) == (1, 2)


def test_options_that_differ_in_an_article_alone_are_not_the_same():
    assert choice("cat", ("a cat", "the cat", "dog")) is None
    assert choice("the cat", ("a cat", "the cat", "dog")) == (1,)


@pytest.mark.parametrize(
    ("reply", "complete", "cut"),
    [
        ("B", "B", "B"),  # one token was asked for
        ("B. He boils pasta. The man is seen putting the", "B", "B"),
        ("He boils pasta. In the video, the man puts a pot", "B", "B"),
        ("The answer is B. Option A", "A", "B"),
        ("C is the answer. A", "A", "C"),
        ("Let's look at each option:\n\nA. He chops onions.\nThe video shows onions on", "A", None),
        ("We need to look at what he does. Option A", "A", None),
        ("A: he chops. No.\nB: he boils. Yes.\nC", "C", None),
    ],
)
def test_a_reply_that_was_cut_short_is_not_read_by_what_it_only_mentions(reply, complete, cut):
    options = ("He chops onions.", "He boils pasta.", "He washes dishes.")
    assert letters(choice(reply, options)) == complete
    assert letters(choice(reply, options, is_cut=True)) == cut


# -- yes or no ---------------------------------------------------------------------------------------------------------
@given(
    st.sampled_from(["yes", "no"]), st.sampled_from(["{}", "{}.", "{}, it is.", "'{}'", "The answer is {}.", "**{}**"])
)
def test_yes_and_no_are_found(word, form):
    for text in (word, word.capitalize(), word.upper()):
        assert yes_no(form.format(text)) == word


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "maybe",
        "yes or no",
        "Yes and no.",
        "no, yes",
        "nothing",
        "Yesterday",
        "unknown",
        "I know.",
        "No idea",
        "Yes?",
        "Is it yes?",
        "No one is walking",
        "No way to tell.",
        "The answer is not yes",
        "I don't think the answer is yes.",
    ],
)
def test_unclear_replies_are_neither(reply):
    assert yes_no(reply) is None


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("No problem! The answer is yes.", "yes"),
        ("No doubt, yes.", "yes"),
        ("Yes, he is. No other person is there.", "yes"),
        ("Answer: yes. Wait. Answer: no", "no"),
        ("<think>no</think>yes", "yes"),
        ("\\boxed{No}", "no"),
        ("<answer>Yes</answer>", "yes"),
        ('{"answer": "no"}', "no"),
        ("I would say yes.", "yes"),
        ("No it isn't.", "no"),
        ("Yes, if you look closely.", "yes"),
        ("YES<|im_end|>", "yes"),
        ("是的。", "yes"),
        ("いいえ", "no"),
        ("아니요", "no"),
        ("Nein.", "no"),
        ("Sí, hay un perro.", "yes"),
        ("Нет", "no"),
    ],
)
def test_yes_and_no_in_sentences(reply, expected):
    assert yes_no(reply) == expected


# -- intervals ---------------------------------------------------------------------------------------------------------
@given(st.floats(0, 5000).map(lambda x: round(x, 1)), st.floats(0.1, 5000).map(lambda x: round(x, 1)))
def test_intervals_in_seconds_and_minutes(start, length):
    end = round(start + length, 1)
    for reply in (f"{start} - {end}", f"From {start} to {end} seconds.", f"[{start}, {end}]", f"{start}s and {end}s"):
        assert interval(reply) == (start, end)
    clock = "{:02d}:{:04.1f}"
    reply = " to ".join(clock.format(int(t // 60), t % 60) for t in (start, end))
    if "60.0" not in reply:
        assert interval(reply) == pytest.approx((start, end), abs=1e-6)  # sums of floats


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("from 1:02:03 to 1:02:10", (3723.0, 3730.0)),
        ("1 minute 5 seconds to 2 minutes", (65.0, 120.0)),
        ("In clip 3 it happens between 4 and 11 s.", (4.0, 11.0)),
        ("11 to 4", None),
        ("-4 to 11", None),  # no time of a video, and not 4 to 11
        ("from -4 to 11 seconds", None),
        ("4 -11", (4.0, 11.0)),
        ("- 4 to 11", (4.0, 11.0)),  # a list
        ("4s–11s", (4.0, 11.0)),
        ("4 to 11 minutes", None),
        ("1 h to 2 h", (3600.0, 7200.0)),
        ("frames 4 to 11", None),
        ("4% to 11%", None),
        ("not from 4 to 11", None),
        ("2 dogs run until 11", None),
        ("It starts at 4.2 s and ends at 11 s.", (4.2, 11.0)),
        ('{"start": 4.0, "end": 11.0}', (4.0, 11.0)),
        ("Answer: 1 to 2. Final answer: 4 to 11", (4.0, 11.0)),
        ("<think>from 1 to 2</think>from 4 to 11", (4.0, 11.0)),
        ("at 4 s", None),
        ("4, 5, 6", None),
        ("", None),
        ("never", None),
    ],
)
def test_replies_about_times(reply, expected):
    assert interval(reply) == expected
