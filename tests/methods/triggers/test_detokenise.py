"""python -m pytest tests/methods/triggers/test_detokenise.py

Acceptance tests 13 to 15, 17 and 22: round trips in full context, predictions from the saved words alone, filters on
four designs of tokenizer, templates and data that look like each other.
"""

import random
import unicodedata

import pytest
import torch

from foreword.core.artefact import Artefact
from foreword.core.template import Template
from foreword.errors import ArtefactError, ConfigError
from foreword.inference.features import encode_rows
from foreword.inference.scoring import score_rows
from foreword.methods.registry import make_job, train
from foreword.methods.triggers.detokenise import filled, reads_alike
from foreword.methods.triggers.prompt_slots import columns_of, with_slots
from foreword.methods.triggers.search_space import make_field
from foreword.methods.triggers.token_filters import TokenFilter, allowed_ids, scripts_of, surfaces_of
from foreword.models.compatibility import check
from foreword.models.hf.loading import wrap
from foreword.models.hf.tiny_checkpoints import random_model
from foreword.tasks.task import Task
from tests.methods.triggers.trigger_setups import word_lm, word_task
from tests.models.trained import CORPUS, byte_bpe, masked_byte_bpe, unigram, wordpiece
from tests.seeds import new_seed

SEED = new_seed()
DESIGNS = {
    "wordpiece": (wordpiece, "masked"),
    "masked-byte-bpe": (masked_byte_bpe, "masked"),
    "unigram": (unigram, "masked"),
    "byte-bpe": (byte_bpe, "causal"),
}


@pytest.fixture(scope="module", params=DESIGNS)
def lm(request):
    make, kind = DESIGNS[request.param]
    tokenizer = make()
    return wrap(random_model(kind, tokenizer, 0, 16, 1, 128).eval(), tokenizer, kind, request.param)


def texts_task(seed: int = 0, extra: str = "") -> Task:
    rng = random.Random(seed)
    words = " ".join(CORPUS).split()
    rows = [
        {"text": " ".join(rng.choices(words, k=rng.randrange(1, 6))) + extra, "label": ("good", "bad")[n % 2]}
        for n in range(16)
    ]
    template = {"masked": "{text} it was {mask}.", "causal": "{text} it was {answer}"}
    return Task(train=rows, validation=rows[:4], test=rows[4:8], name="texts", template=template)


def make(lm, task, **options):
    job = make_job(lm, task, "autoprompt", options={"length": 3, **options})
    return make_field(lm, job, job.config)


def test_what_is_written_is_read_back_as_the_ids_scored_in_every_row(lm):
    """Prompts drawn by chance: those that pass the check are read back in rows that the check has not seen."""
    field = make(lm, texts_task())
    rng = random.Random(SEED)
    prompts = [tuple(rng.choices(field.allowed_A.tolist(), k=field.slotted.length)) for _ in range(80)]
    texts = field.writer.texts(prompts)
    unseen = texts_task(SEED + 1).train
    encoded = field.slotted.encoder.encode_rows(unseen)
    passed = [(p, t) for p, t in zip(prompts, texts, strict=True) if t is not None]
    assert len(passed) >= 3 and len(passed) < 80, (SEED, len(passed))
    good = [reads_alike(encoded, p, encode_rows(lm, field.writer.format(t), unseen)) for p, t in passed]
    assert sum(good) >= 0.95 * len(good)
    wrong = next((p for p, t in zip(prompts, texts, strict=True) if t is None), None)
    if wrong is not None:  # a control: what failed is truly read otherwise, however it is put
        words = lm.tokenizer.decode(wrong, clean_up_tokenization_spaces=False).strip()
        form = field.writer.format((" " + words,))
        assert not words or not reads_alike(encoded, wrong, encode_rows(lm, form, unseen))


def test_saved_words_alone_predict_as_the_search_scored(lm, tmp_path):
    task = texts_task(SEED)
    made = train(lm, task, "autoprompt", seed=1, length=3, steps=2, candidates=6)
    folder = made.artefact.save(tmp_path / "words")
    again = Artefact.load(folder)
    one, two = (score_rows(lm, [(a, task.test)])[0] for a in (made.artefact, again))
    assert torch.equal(one, two) and again.trace == made.artefact.trace
    if again.any_model and again.metrics["kept"] == "found":
        rows = again.format.template.fill(task.test[0].fields)
        assert rows and "{soft" not in str(again.format.template.source)
    ids = train(lm, task, "autoprompt", seed=1, length=3, steps=2, candidates=6, words=False).artefact
    if not ids.any_model:
        other, _ = word_lm("masked" if lm.kind == "masked" else "causal", 9, dtype=torch.float32)
        with pytest.raises(ArtefactError, match="another tokenizer"):
            check(other, ids)


def test_nothing_unwanted_is_ever_allowed(lm):
    surfaces = surfaces_of(lm)
    names = lm.tokenizer.convert_ids_to_tokens(list(range(len(surfaces))))
    latin = scripts_of(CORPUS)
    assert latin == {"LATIN"}
    label = next(i for i, s in enumerate(surfaces) if s.strip() == "good" or s.strip() == "a")
    word = surfaces[label].strip()
    for capitals, non_ascii in ((True, True), (False, False)):
        wanted = TokenFilter(frozenset({word.upper()}), latin, capitals, non_ascii)
        allowed = allowed_ids(lm, wanted, (), surfaces).tolist()
        assert set(lm.tokenizer.all_special_ids).isdisjoint(allowed) and label not in allowed
        for i in allowed:
            text = surfaces[i].strip()
            assert text and text.isprintable() and not names[i].startswith("[unused")
            assert all(unicodedata.name(c).startswith("LATIN") for c in text if c.isalpha())
            assert non_ascii or text.isascii()
            assert capitals or not text[0].isupper(), names[i]


def test_a_capital_after_a_byte_level_space_is_a_capital():
    """`ĠParis` does not begin with a capital as a string, and it is one."""
    tokenizer = byte_bpe()
    tokenizer.backend_tokenizer.add_tokens(["unheard"])
    lm = wrap(random_model("causal", byte_bpe(), 0, 16, 1, 64).eval(), byte_bpe(), "causal", "x")
    surfaces = [*surfaces_of(lm)]
    surfaces[300] = " Paris"
    allowed = allowed_ids(lm, TokenFilter(frozenset(), frozenset({"LATIN"}), capitals=False), (), surfaces).tolist()
    assert 300 not in allowed
    surfaces[300] = " paris"
    assert 300 in allowed_ids(lm, TokenFilter(frozenset(), frozenset({"LATIN"}), capitals=False), (), surfaces).tolist()


def test_no_token_left_is_said(lm):
    with pytest.raises(ConfigError, match="No token of"):
        allowed_ids(lm, TokenFilter(frozenset(), frozenset()), range(len(surfaces_of(lm))), surfaces_of(lm))


@pytest.mark.parametrize(
    "where",
    [
        "{soft:3} {text} so {answer}",
        "{text} {soft:3} so {answer}",
        "{text} {soft:3} {answer}",
        "{soft:1}{soft:2} {text} {answer}",
    ],
)
def test_slots_may_stand_anywhere_and_touch(where):
    lm, _ = word_lm("causal", 20, seed=SEED)
    task = word_task(20, SEED).with_(template={"causal": where})
    artefact = train(lm, task, "autoprompt", length=3, steps=2, candidates=6, init="random").artefact
    assert artefact.metrics["validation"]["rows"] == 4
    [first, *_] = with_slots(lm, task.format("causal"), 3).encoder.encode_rows(task.train)
    with pytest.raises(ConfigError, match="as many as there are slots"):
        filled(first, (7, 8))
    assert len(columns_of(with_slots(lm, task.format("causal"), 3).encoder.encode_rows(task.train)[0].slot_S, 3)) == 3


def test_data_that_looks_like_a_template_stays_text(lm):
    task = texts_task(SEED, extra=" [T] [P] {x} [MASK]")
    field = make(lm, task)
    assert all(len(columns_of(e.slot_S, field.slotted.length)) >= 3 for e in field.encoded)
    artefact = train(lm, task, "autoprompt", length=3, steps=1, candidates=4).artefact
    assert artefact.metrics["validation"]["rows"] == 4


def test_truncation_takes_from_the_text_alone():
    lm, _ = word_lm("causal", 20, seed=SEED)
    task = word_task(20, SEED)
    long = task.with_(train=tuple(r.__class__({"text": "w1 " * 100}, r.label, (), r.where) for r in task.train))
    slotted = with_slots(lm, task.format("causal", template="{text|shorten} so then {answer}"), 4)
    encoded = slotted.encoder.encode_rows(long.train)
    assert all(e.cut and len(columns_of(e.slot_S, 4)) == 4 and len(e.ids_S) == 64 for e in encoded)


def test_the_words_before_the_answer_become_slots():
    lm, _ = word_lm("masked", 20)
    form = word_task(20, 0).format("masked")
    slotted = with_slots(lm, form, 5)
    assert slotted.format.template == Template.parse("{text} {soft:5} {mask} .")
    assert lm.tokenizer.convert_ids_to_tokens(list(slotted.words or ())) == ["so", "then"]
    assert with_slots(lm, form, 1).length == 2


def test_the_library_alone_predicts_the_same_from_the_words():
    """The saved text and label words, put together by hand, tokenised and read by transformers with no code of ours."""
    for design in ("wordpiece", "byte-bpe"):
        make_tokenizer, kind = DESIGNS[design]
        tokenizer = make_tokenizer()
        model = random_model(kind, tokenizer, 1, 16, 1, 128).eval()
        lm = wrap(model, tokenizer, kind, design)
        task = texts_task(SEED)
        artefact = train(lm, task, "autoprompt", seed=1, length=3, steps=2, candidates=6).artefact
        if not artefact.any_model:
            continue
        ours = score_rows(lm, [(artefact, task.test)])[0]
        template = str(artefact.format.template.source)
        words = [w for some in artefact.format.words for w in some]
        for row, score_C in zip(task.test, ours, strict=True):
            # A found brace is written twice in a template.
            text = template.replace("{text}", row.fields["text"]).replace("{{", "{").replace("}}", "}")
            if kind == "masked":
                ids = tokenizer(text.replace("{mask}", tokenizer.mask_token), return_tensors="pt")["input_ids"]
                at = int((ids[0] == tokenizer.mask_token_id).nonzero()[0, 0])
            else:
                ids = tokenizer(text.replace("{answer}", "").rstrip(" "), return_tensors="pt")["input_ids"]
                at = ids.shape[1] - 1
            labels = [
                tokenizer(" " + w if kind == "causal" else w, add_special_tokens=False)["input_ids"] for w in words
            ]
            if any(len(i) != 1 for i in labels):
                pytest.skip("the label words have several pieces in this tokenizer")
            with torch.no_grad():
                logits_V = model(input_ids=ids).logits[0, at]
            wanted_C = logits_V[[i[0] for i in labels]]
            assert torch.allclose(score_C.log_softmax(0), wanted_C.log_softmax(0), atol=1e-4)
