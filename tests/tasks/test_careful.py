"""Answers as a careful reader judges them: punctuation that says something, choices among words, numbers with units.

Run: python -m pytest tests/tasks/test_careful.py
"""

import random
import string
import unicodedata

import pytest

from foreword.tasks.answer_metrics import METRICS
from foreword.tasks.extract import NO_ANSWER, extract, numbers
from tests.seeds import new_seed

LETTERS = [("A",), ("B",), ("C",)]


@pytest.mark.parametrize(
    ("written", "target"),
    [
        ("J. K. Rowling", "J. R. R. Tolkien"), ("1/2", "12"), ("C++", "C#"), ("U.S.", "U.K."), ("3.5", "35"),
        ("Dr. Smith", "Dr. Jones"), ("50%", "50"), ("-5", "5"), ("x²", "x2"), ("5!", "5"), ("a and b", "a b"),
        ("½", "12"), ("No. 5", "No 5"), ("Paris. Or Rome", "Paris"), ("Paris..", "Paris"), ("!", "?"),
        ("Masse", "Maß"), ("①", "1"), ("a\nb", "a"),
    ],
)  # fmt: skip
def test_what_says_something_else_is_not_the_same(written, target):
    assert METRICS["exact_match"](written, target) == METRICS["exact_match"](target, written) == 0


@pytest.mark.parametrize(
    ("written", "target"),
    [
        ("Paris.", "Paris"), (" paris \n", "Paris"), ("東京。", "東京"), ("हाँ।", "हाँ"), ("لا؟", "لا"), ("አዎ።", "አዎ"),
        ("نہیں۔", "نہیں"), ("cafe\u0301", "caf\u00e9"), ("ＡＢＣ１２", "abc12"), ("ﬁne", "fine"), ("it\u2019s", "it's"),
        ("wait\u2026", "wait..."), ("Yes!", "yes"), ("U.S.", "u.s."), ("\u22125", "-5"), ("a\u00a0b", "a b"),
        ("\ufeffb", "b"), ("STRASSE", "straße"), ("J. K. Rowling", "j. k. rowling"),
    ],
)  # fmt: skip
def test_what_says_the_same_is_the_same(written, target):
    assert METRICS["exact_match"](written, target) == METRICS["exact_match"](target, written) == 1


def test_drawn_texts_are_the_same_only_where_their_signs_are():
    """Against the rule in its simplest words, over ASCII: case, spaces and one final mark aside."""
    seed = new_seed(2**32)
    rng = random.Random(seed)

    def rule(text: str) -> str:
        text = " ".join(text.lower().split())
        cut = text[:-3] if text.endswith("...") else text[:-1] if text[-1:] in tuple(".!?") else text
        return text if text[-2:-1].isdigit() and text.endswith("!") else cut.strip() or text

    same = 0
    for _ in range(8_000):
        text = "".join(rng.choices("aAbB12 .!?+#/-%'", k=rng.randint(1, 5)))
        other = text.swapcase() if rng.random() < 0.3 else "".join(rng.choices("aAbB12 .!?+#/-%'", k=rng.randint(1, 5)))
        other += rng.choice(["", ".", " "])
        if not rule(text) or not rule(other):
            continue
        same += rule(text) == rule(other)
        assert METRICS["exact_match"](text, other) == (rule(text) == rule(other)), (seed, text, other)
    assert same > 400


@pytest.mark.parametrize(
    ("metric", "written", "target", "right"),
    [
        ("contains", "I use C++ here.", "C", 0), ("contains", "I use C++ here.", "C++", 1),
        ("contains", "3.5", "3", 0),
        ("contains", "-5", "5", 0), ("contains", "我喜欢东京塔", "东京", 1),
        ("contains", "J. R. R. Tolkien", "J. K.", 0),
        ("contains", "in Paris, France", "Paris", 1), ("contains", "category", "cat", 0),
        ("f1", "C++", "C#", 0), ("f1", "the cat, dog.", "the cat dog", 1), ("f1", "1/2", "12", 0), ("f1", "!", "?", 0),
        ("f1", "我很好", "我不好", 2 / 3), ("f1", "well-known cat", "known", 0.5),
        ("exact_set", "cat, dog", "dog cat", 1), ("exact_set", "C++ C", "C# C", 0), ("exact_set", "!", "?", 0),
        ("number", "it weighs 15kg", "15", 1), ("number", "3/2", "1/2", 0), ("number", "1 1/2", "1.5", 1),
    ],
)  # fmt: skip
def test_words_keep_the_signs_that_belong_to_them(metric, written, target, right):
    assert METRICS[metric](written, target) == pytest.approx(right)


def test_instruction_induction_has_its_rule_for_itself():
    """The published rule, which cuts at a full stop, is the recipe's."""
    from recipes.instruction_induction import METRICS as PUBLISHED

    for written, target in (("J. K. Rowling", "J. R. R. Tolkien"), ("1/2", "12"), ("a and b", "a b")):
        assert PUBLISHED["exact_match"](written, target) == 1 and METRICS["exact_match"](written, target) == 0


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("15kg", [15]), ("20°C and 5h", [20, 5]), ("15公斤", [15]), ("共15个", [15]), ("$1,234.50", [1234.5]),
        ("50%", [50]),
        ("-$5", [-5]), ("5€", [5]), ("\u22125", [-5]), ("1e-3", [0.001]), ("2 x 10^3", [2000]), ("2×10⁻³", [0.002]),
        ("1 234", [1234]), ("1\u202f234,5", [1234.5]), ("1'234", [1234]), ("1,00,000", [100_000]),
        ("1.234,50", [1234.5]),
        ("3/2", [1.5]), ("3 1/2", [3.5]), ("3½", [3.5]), ("\\frac{3}{2}", [1.5]), ("1/0", []),
        ("3/4/2020", [3, 4, 2020]),
        ("v2, b4me, the 3rd, 2x, 4b, 5k, 1.5k, 1990s", []), ("3-5", [3, 5]), ("8*2=16", [8, 2, 16]), ("9 - 4", [9, 4]),
        ("٣٫٥", [3.5]), ("10/2 = 5", [5, 5]), ("10 20 30", [10, 20, 30]), ("3.5.2", [3.5]), ("1,2,3", [1, 2, 3]),
        ("2 x 10^" + "9" * 5000, []), ("9" * 5000, []),
    ],
)  # fmt: skip
def test_numbers_as_people_write_them(text, values):
    assert numbers(text) == pytest.approx(values)


def test_drawn_numbers_are_read_as_they_were_written():
    seed = new_seed(2**32)
    rng = random.Random(seed)
    for _ in range(2000):
        value = rng.choice([rng.randrange(-9999, 10**7), round(rng.uniform(-9999, 9999), 3)])
        text = rng.choice([f"{value}", f"{value:,}"]).replace("-", rng.choice("-\u2212"))
        text = rng.choice(["", "$", "€"]) + text if value >= 0 else text
        text += rng.choice(["", "kg", " kg", "%", "€", "h", ".", ", so", " apples"])
        assert numbers(f"It is {text}") == [value], (seed, text)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("(B) because it has a tail", "B"), ("( b ) because it has a tail.", "B"), ("Answer: B", "B"), ("**B**", "B"),
        ("B)", "B"), ("option B", "B"), ("`C`", "C"), ("（Ｂ）", "B"), ("答案是B", "B"), ("选B因为", "B"),
        ("B because it has a tail", "B"), ("b because it has a tail", "B"), ("A because it has fur", "A"), ("a.", "A"),
        ("it has a tail", NO_ANSWER), ("A cat is here", NO_ANSWER), ("A.I. is great", NO_ANSWER), ("C++", NO_ANSWER),
        ("The answer is a cat, so B.", "B"), ("A dog has a tail, a dog is B", "B"),
        ("The answer is A because B is worse", "A"), ("The answer is not A but B", "B"), ("not A, it is B", "B"),
        ("A is wrong, so it must be C", "C"), ("B is right, C is wrong", "B"), ("A and B are wrong. C", "C"),
        ("(A) has no fur, so (C)", "C"), ("(B) because (A) has no fur", "B"), ("B\n\nA is a dog", "B"),
        ("A) cats\nB) dogs\nThe answer is (C).", "C"), ("A. cat B. dog, thus B.", "B"),
        ("A or B", NO_ANSWER), ("both A and B", NO_ANSWER), ("A/B", NO_ANSWER), ("The answer is A, B", NO_ANSWER),
    ],
)  # fmt: skip
def test_letters_are_told_from_words(text, choice):
    assert extract("choice", text, LETTERS) == choice


@pytest.mark.parametrize(
    ("labels", "text", "choice"),
    [
        (("A", "I", "O"), "I think O", "O"), (("A", "I"), "I'm sure: A", "A"), (("I", "II"), "I think II", "II"),
        (("yes", "no"), "yes, there is no doubt", "yes"), (("yes", "no"), "no it isn't", "no"),
        (("yes", "no"), "No", "no"),
        (("yes", "no"), "yes or no", NO_ANSWER), (("好", "不好"), "这部电影不好", "不好"),
        (("好", "坏"), "很好。", "好"),
        (("हा", "ना"), "हाँ", NO_ANSWER), (("да", "нет"), "Ответ: нет", "нет"),
        (("А", "Б", "В"), "В этом случае верно Б", "Б"),
        (("3", "3.5"), "3.5", "3.5"), (("3", "5"), "3.5", NO_ANSWER), (("2", "4"), "1/2", NO_ANSWER),
        (("C", "C++", "C#"), "I use C++", "C++"), (("İstanbul", "Ankara"), "istanbul, Ankara", "Ankara"),
        (("straße", "x"), "STRASSE", "straße"), (("good", "bad"), "it is not good", NO_ANSWER),
        (("positive", "negative"), "both positive and negative", NO_ANSWER),
        (("cafe\u0301", "x"), "caf\u00e9", "cafe\u0301"),
    ],
)  # fmt: skip
def test_labels_of_any_language_are_whole_words(labels, text, choice):
    assert extract("choice", text, [(label,) for label in labels]) == choice


def test_a_planted_letter_is_found_in_whatever_way_it_is_said():
    seed = new_seed(2**32)
    rng = random.Random(seed)
    ways = ["({0})", "{0}", "{0}.", "**{0}**", "Answer: {0}", "The answer is ({0}).", "option {0}",
    "({0}) because it has a tail",
            "A tail is what I see, so it is {0}.", "The answer is {0}, since a cat has one",
            "{0}\n\nIt has a tail."]  # fmt: skip
    for _ in range(2000):
        labels = rng.sample(string.ascii_uppercase, rng.randint(2, 6))
        label, way = rng.choice(labels), rng.choice(ways)
        text = way.format(label)
        assert extract("choice", text, [(one,) for one in labels]) == label, (seed, labels, text)


def test_a_text_that_was_cut_has_not_come_to_its_end():
    for kind, text, found in [
        ("number", "so 4 + 4 = 8", NO_ANSWER), ("number", "The answer is 12", NO_ANSWER),
        ("number", "The answer is 12.", NO_ANSWER), ("number", "The answer is 5. And so on", "5"),
        ("span", "The answer is the ca", NO_ANSWER), ("span", "The answer is the cat. And", "the cat"),
        ("choice", "so it may be B or", NO_ANSWER), ("choice", "B", NO_ANSWER), ("choice", "(B) because it", "B"),
        ("choice", "The answer is B. The", "B"),
    ]:  # fmt: skip
        assert extract(kind, text, LETTERS, ended=False) == found, text
    assert extract("number", "so 4 + 4 = 8") == "8" and extract("choice", "so it may be B", LETTERS) == "B"


def test_a_sentence_final_mark_is_one_in_every_script():
    """Of every mark that is one, one is taken off; of letters and other signs none is."""
    for mark in ".!?\u0964\u3002\uff01\uff1f\u061f\u06d4\u1362\u104b\u17d4":
        assert METRICS["exact_match"](f"x{mark}", "x") == 1, unicodedata.name(mark)
    for sign in "+#%$/-)]\"',;:\u00b2\u00b0":
        assert METRICS["exact_match"](f"x{sign}", "x") == 0, sign
