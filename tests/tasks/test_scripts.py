"""Metrics of texts in every script: right answers are right, and what can't be measured is not 0.

Run: python -m pytest tests/tasks/test_scripts.py
"""

import json
import math
import random

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from foreword.evaluation.compare import CompareOptions, compare
from foreword.evaluation.records import Store
from foreword.evaluation.report import markdown
from foreword.tasks.corpus_metrics import bleu, rouge_l, words_by
from foreword.tasks.extract import NO_ANSWER
from foreword.tasks.task import Task
from foreword.tasks.text_metric import Judge
from tests.methods.planted_lm import markov_lm
from tests.seeds import new_seed

SPACED = {
    "hindi": "मुझे यह फिल्म बहुत पसंद आई और कहानी अच्छी थी",
    "arabic": "هذا الفيلم رائع جدا وقصته جميلة حقا",
    "russian": "этот фильм очень хороший и мне понравилась история",
    "korean": "이 영화는 정말 재미있고 이야기가 좋아요",
    "greek": "αυτή η ταινία είναι πολύ καλή και μου άρεσε",
    "hebrew": "הסרט הזה טוב מאוד ואהבתי את הסיפור",
    "tamil": "இந்த படம் மிகவும் நன்றாக இருந்தது கதை அருமை",
}
UNSPACED = {
    "chinese": ("zh", "这部电影非常好看故事也很感人我喜欢"),
    "japanese": ("char", "この映画はとても面白くて物語も良かった"),
    "thai": ("char", "ภาพยนตร์เรื่องนี้ดีมากและเรื่องราวก็สนุก"),
    "khmer": ("char", "ភាពយន្តនេះល្អណាស់ហើយខ្ញុំចូលចិត្ត"),
}


def drawn(rng: random.Random, words: list[str], gap: str) -> str:
    return gap.join(rng.sample(words, min(len(words), 6)))


@pytest.mark.parametrize("language", [*SPACED, *UNSPACED])
def test_right_answers_are_right_and_wrong_ones_are_not(language):
    rng = random.Random(new_seed(2**32))
    gap = " " if language in SPACED else ""
    words = SPACED[language].split() if gap else [*UNSPACED[language][1]]
    texts = [drawn(rng, words, gap) for _ in range(6)]
    targets = tuple((text,) for text in texts)
    right = Judge("bleu").summed(texts, targets)
    assert right["bleu"].value() == right["rouge_l"].value() == pytest.approx(1)
    half = [text if n % 2 else "zz yy xx ww vv uu" for n, text in enumerate(texts)]
    wrong = Judge("bleu").summed(half, targets)
    assert wrong["bleu"].value() < 0.9 and wrong["rouge_l"].value() == pytest.approx(0.5)
    assert Judge("bleu").value(texts[0], targets[0]) == Judge("rouge_l").value(texts[0], targets[0]) == pytest.approx(1)
    control = RougeScorer(["rougeL"]).score(texts[0], texts[0])["rougeL"].fmeasure
    assert control == 0  # by the library's own words
    told = Judge("bleu").tokenizers(targets)
    assert told["rouge_l"] == "unicode" and told.get("bleu") == (None if gap else UNSPACED[language][0])
    if not gap:
        name = UNSPACED[language][0]
        theirs = BLEU(force=True, tokenize=name).corpus_score(half, [texts]).score / 100
        assert bleu(half, targets).value() == pytest.approx(theirs)
        assert 0 < bleu([text[:5] for text in texts], targets).value() < 1


def test_english_is_as_the_libraries_have_it_beside_other_scripts():
    """Each row of ROUGE-L by its own references; of BLEU one row in twenty does not change the words of the others."""
    english = ["The café is near the river.", "A blue house, rated 5 out of 5 (£20)."] * 10
    targets = tuple((text,) for text in english)
    assert words_by(targets) == "13a" and Judge("bleu").tokenizers(targets) == {}
    written = [text.replace("the", "a") for text in english]
    mixed = (*targets, ("这部电影非常好看",))
    assert words_by(mixed) == "13a" and words_by(mixed[18:]) == "zh"
    theirs = [RougeScorer(["rougeL"]).score(t, a)["rougeL"].fmeasure for t, a in zip(english, written, strict=True)]
    found = rouge_l([*written, "这部电影非常好看"], mixed)
    assert found.value() == pytest.approx((sum(theirs) + 1) / 21)
    assert Judge("bleu").tokenizers(mixed) == {"rouge_l": "unicode in 1 of 21 rows"}


def test_what_has_no_words_is_not_measured_and_does_not_count():
    assert math.isnan(rouge_l(["👍"], (("👍",),)).value())
    assert rouge_l(["👍", "a cat"], (("👍",), ("a cat",))).value() == 1  # and not 0.5
    assert rouge_l(["👍", "dog"], (("👍",), ("a cat",))).value() == 0
    assert math.isnan(bleu(["好"], (("好",),)).value()) and bleu(["a"], (("a",),)).value() == 0  # as sacrebleu has it
    judge = Judge("rouge_l")
    assert judge.value("👍", ("👍",)) == 1 and judge.value("x", ("👍",)) == 0 == judge.value(NO_ANSWER, ("👍",))


def test_not_measured_stands_in_the_table_and_the_record(tmp_path):
    lm = markov_lm({":": {"7": 1.0}})
    rows = [{"q": f"t{n}", "answer": "👍"} for n in range(6)]
    task = Task(train=rows, test=rows, template="Q {q} A:{answer}", metric="rouge_l").with_(validation=())
    found = compare(lm, task, ["manual"], out=tmp_path, seeds=2, how=CompareOptions(sensitivity=False))
    assert not found.failures
    text = markdown(found.lines)
    assert "| not measured |" in text and "nan" not in text.lower().replace("manual", "")
    line = json.loads(
        (tmp_path / "results.jsonl").read_text().splitlines()[0], parse_constant=lambda name: pytest.fail(name)
    )
    assert line["metrics"]["rouge_l"] is None and line["metrics"]["chrf"] == 0
    [record, *_] = Store(tmp_path).records()
    assert math.isnan(record.metrics["rouge_l"]) and record.primary == "rouge_l"
    before = (tmp_path / "results.jsonl").read_bytes()
    again = compare(lm, task, ["manual"], out=tmp_path, seeds=2, how=CompareOptions(sensitivity=False))
    assert (tmp_path / "results.jsonl").read_bytes() == before and markdown(again.lines) == text


def test_the_table_says_which_words_were_counted(tmp_path):
    lm = markov_lm({":": {"7": 1.0}})
    rows = [{"q": f"t{n}", "answer": "这部电影非常好看"} for n in range(6)]
    task = Task(train=rows, test=rows, template="Q {q} A:{answer}", metric="bleu").with_(validation=())
    found = compare(lm, task, ["manual"], out=tmp_path, seeds=1, how=CompareOptions(sensitivity=False))
    assert "BLEU reads Chinese characters as words (sacrebleu's zh)" in markdown(found.lines)
    assert found.records[0].details["tokenizers"]["rouge_l"] == "unicode"
