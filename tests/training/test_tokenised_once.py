"""A row is tokenised once for each way it is put to the model, however many parts of a run read it.

python -m pytest tests/training/test_tokenised_once.py
"""

from collections import Counter

import pytest

from foreword.inference.features import EncodedRows, encode_rows
from foreword.methods.registry import train
from foreword.models.encoding import tokenise
from foreword.models.load import load
from foreword.tasks.task import Task
from tests.planted import planted_task
from tests.seeds import new_seed

KINDS = {"masked": "foreword-tiny", "causal": "foreword-tiny-causal"}
STEPS = {"steps": 3, "eval_every": 1}
ONCE = {
    "prompt-tuning": {"length": 2, **STEPS},
    "prefix-tuning": {"length": 2, **STEPS},
    "p-tuning": {"length": 2, **STEPS},
    "lora": STEPS,
    "soft-verbalizer": {"steps": 3},
    "linear-probe": {},
    "manual": {"calibrate": "auto", "temperature": True},
}


@pytest.fixture
def count(monkeypatch):
    """How often the tokeniser got each text, the contexts of texts that stand after others left aside."""
    texts: Counter[str] = Counter()
    ids = tokenise._ids

    def counted(tokenizer, some, **options):
        texts.update(some)
        return ids(tokenizer, some, **options)

    monkeypatch.setattr(tokenise, "_ids", counted)

    def of(row):
        return [n for text, n in texts.items() if row.fields["text"] in text]

    of.clear = texts.clear
    return of


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ONCE)
def test_a_run_tokenises_each_row_once(kind, method, count):
    """Training, evaluations on the way, calibration and final metrics; without the job's rows there are more."""
    lm, task = load(KINDS[kind]), planted_task(new_seed(), train=12, validation=8, test=4)
    if lm.kind not in _kinds(method):
        pytest.skip("not of this kind of model")
    count.clear()
    train(lm, task, method, **ONCE[method])
    learns = method != "manual"
    for row in task.validation:
        assert sum(count(row)) == 1, (row, count(row))
    for row in task.train:
        assert sum(count(row)) == (1 if learns else 0), (row, count(row))


def test_without_a_home_rows_are_tokenised_again(count, monkeypatch):
    """The control: a home that forgets shows that the counter sees every pass over the tokeniser."""
    lm, task = load(KINDS["masked"]), planted_task(new_seed(), train=12, validation=8, test=4)
    monkeypatch.setattr(EncodedRows, "of", lambda self, lm, form, rows, extra=0: encode_rows(lm, form, rows, extra))
    count.clear()
    train(lm, task, "prompt-tuning", **ONCE["prompt-tuning"])
    assert all(sum(count(row)) == 2 for row in task.validation)


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_tokenises_each_row_once_for_each_format(kind, count):
    """The hand-written format, the one with slots, and the one with the words found; never one of them twice."""
    lm, task = load(KINDS[kind]), planted_task(new_seed(), train=12, validation=8, test=4)
    count.clear()
    train(lm, task, "autoprompt", length=2, steps=2, candidates=4)
    for row in task.validation:
        assert 1 <= sum(count(row)) <= 3, (row, count(row))


def test_a_row_with_many_references_is_tokenised_once(count):
    lm = load(KINDS["causal"])
    rows = [{"text": f"source number {n}", "targets": ["one", "two words", "three words here"]} for n in range(4)]
    task = Task(train=rows, validation=rows[:2], name="many", template="{text} :{answer}")
    form = task.format("causal")
    from foreword.training.examples import ExampleRows

    count.clear()
    encoded = ExampleRows.of(lm, form, task.train, 0, texts=True)
    assert len(encoded.encoded) == 12
    assert all(sum(count(row)) == 1 for row in task.train)


def test_rows_are_told_apart_by_identity_and_formats_by_value():
    lm, task = load(KINDS["masked"]), planted_task(new_seed(), train=6, validation=2, test=2)
    form, home = task.format("masked"), EncodedRows()
    first = home.of(lm, form, task.train)
    assert all(a is b for a, b in zip(first, home.of(lm, form, task.train), strict=True))
    assert home.of(lm, form, task.train, extra=1)[0] is not first[0]
    rows = [*task.validation, *task.train]
    whole = home.of(lm, form, rows)
    assert [e.ids_S.tolist() for e in whole] == [e.ids_S.tolist() for e in encode_rows(lm, form, rows)]
    assert whole[2] is first[0]
    home.clear()
    assert home.of(lm, form, task.train)[0] is not first[0]


def _kinds(method: str) -> tuple[str, ...]:
    from foreword.methods import METHODS

    return METHODS[method].kinds
