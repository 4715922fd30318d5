"""Guessed texts do not give the answer away. Run: python -m pytest tests/tasks/test_guess_fields.py"""

import random
import string
from pathlib import Path

import pytest

from foreword.errors import DataError
from foreword.tasks.guess_fields import determined
from foreword.tasks.read import read_task
from foreword.tasks.task import Task
from tests.seeds import new_seed

NAMES = ("entailment", "contradiction", "neutral")
DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def rng():
    seed = new_seed(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


def sentence(rng):
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=4)) for _ in range(6))


def pairs(rng, number=200):
    """Two texts and a label that nothing determines."""
    return [{"one": sentence(rng), "two": sentence(rng), "label": rng.randrange(3)} for _ in range(number)]


LEAKS = {
    "name": lambda rng, label, n: NAMES[label],
    "bijection": lambda rng, label, n: "xyz"[label],
    "nearly": lambda rng, label, n: NAMES[label] if rng.random() < 0.9 else rng.choice(NAMES),
    "finer": lambda rng, label, n: f"{'xyz'[label]} {rng.choice('abcd')}",
    "numbered": lambda rng, label, n: f"the answer to pair {n} is {NAMES[label]}, as said by {n * 7}",
    "coarser": lambda rng, label, n: "yes" if label else "no",
    "path": lambda rng, label, n: f"train/{'xyz'[label]}/{n}.txt",
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_column_made_from_the_label_is_left_out_with_a_line(rng, leak):
    rows = [row | {"extra": LEAKS[leak](rng, row["label"], n)} for n, row in enumerate(pairs(rng))]
    task = Task(rows)
    assert task.fields == ("one", "two")
    assert any("'extra' is not read as text" in line for line in task.notes)
    given = Task(rows, text=["one", "extra"])
    assert any(line.startswith("warning: column 'extra'") for line in given.guesses)
    alone = [{"extra": row["extra"], "label": row["label"]} for row in rows]
    if leak in ("name", "bijection", "nearly", "finer", "coarser"):
        with pytest.raises(DataError, match="only column of text, 'extra'"):
            Task(alone)
    else:
        assert any("warning: column 'extra'" in line for line in Task(alone).guesses)


def test_all_names_with_their_label_are_found_where_values_differ(rng):
    rows = [row | {"gold": f"{NAMES[row['label']]} {sentence(rng).split()[0]}"} for row in pairs(rng)]
    rows = [row | {"label": NAMES[row["label"]]} for row in rows]
    assert Task(rows).fields == ("one", "two")


def test_columns_that_say_nothing_of_the_label_stay(rng):
    rows = [row | {"two": rng.choice(["a", "b", "c"])} for row in pairs(rng)]
    assert Task(rows).fields == ("one", "two") and not Task(rows).guesses
    repeated = [row | {"two": rows[n // 3]["one"]} for n, row in enumerate(rows)]
    assert Task(repeated).fields == ("one", "two")


def test_ids_are_no_texts_and_more_than_two_are_asked_for(rng):
    rows = [
        row | {"idx": str(n), "pairID": f"p{n}", "code": f"x-{n}", "n": f"{n}.5"} for n, row in enumerate(pairs(rng))
    ]
    task = Task(rows)
    assert task.fields == ("one", "two")
    assert sum("numbers or ids" in line for line in task.guesses) == 4
    assert Task([{"word": f"w{n}", "label": n % 2} for n in range(30)]).fields == ("word",), "the only column"
    with pytest.raises(DataError, match=r"3 columns of text \(one, two, three\).*text="):
        Task([row | {"three": sentence(rng)} for row in rows])


def test_a_question_that_stands_in_several_rows_may_have_one_answer(rng):
    """It is the only column, and no leak; a column of the answers themselves is one."""
    asked = [sentence(rng) for _ in range(3)]
    rows = [{"q": asked[n % 3], "options": ["1", "2", "3", "4"], "label": n % 3} for n in range(24)]
    splits = {"train": rows, "validation": rows[:3], "test": rows[:3]}
    task = Task(**splits, options="options")
    assert task.fields == ("q",) and any(line.startswith("warning: column 'q'") for line in task.guesses)
    texts = [{"q": row["q"], "targets": f"it is {row['label']}"} for row in rows]
    assert Task(train=texts, validation=texts[:3], test=texts[:3]).fields == ("q",)
    words = ["red wine", "blue sky", "old tree"]
    leaks = [{"right": words[n % 3], "options": words, "label": n % 3} for n in range(24)]
    with pytest.raises(DataError, match="only column of text, 'right'"):
        Task(train=leaks, validation=leaks[:3], test=leaks[:3], options="options")


def test_answers_in_text_and_options_that_stand_in_another_column(rng):
    rows = [{"q": sentence(rng), "note": word, "output": word} for word in (sentence(rng) for _ in range(60))]
    assert Task(rows).fields == ("q",)
    options = []
    for _ in range(80):
        choices, at = [sentence(rng) for _ in range(4)], rng.randrange(4)
        options.append({"q": sentence(rng), "choices": choices, "label": at, "key": "ABCD"[at], "full": choices[at]})
    assert Task(options, options="choices").fields == ("q",)


def test_lambda_is_that_of_the_formula(rng):
    """Against brute force: each row is predicted from the others with its value."""
    values = [rng.choice("aabbbcde") for _ in range(120)]
    answers = [value if rng.random() < 0.8 else rng.choice("abc") for value in values]
    majority = max(sorted(set(answers)), key=answers.count)
    hits = 0.0
    for i, (value, answer) in enumerate(zip(values, answers, strict=True)):
        others = [a for j, a in enumerate(answers) if values[j] == value and j != i]
        most = max((others.count(a) for a in set(others) - {answer}), default=0)
        own = others.count(answer)
        hits += float(answer == majority) if not others else 1.0 if own > most else 0.5 if own == most else 0.0
    base = answers.count(majority)
    saved, count = determined(values, answers)
    assert count == len(set(values))
    assert saved == pytest.approx(1 - (120 - hits) / (120 - base))


def test_chance_is_no_leak(rng):
    """A few rows with few values: what fits by luck is no reason."""
    flagged = 0
    for _ in range(100):
        number = rng.choice([8, 12, 40])
        rows = [{"one": sentence(rng), "two": rng.choice("ab"), "label": n % 2} for n in range(number)]
        flagged += Task(train=rows, validation=rows[:2], test=rows[:2]).fields != ("one", "two")
    assert flagged <= 9, f"{flagged} of 100"  # each with 1 in 100 at most


def test_no_real_data_set_is_flagged():
    if not DATA.is_dir():
        pytest.skip("the folder of real data sets is not here")
    for name in ("rte", "reuters", "instruction_induction/sentiment"):
        task = read_task(DATA / name)
        assert not task.guesses, name
