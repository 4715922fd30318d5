"""One rule of decoding: what a checkpoint's generation_config asks for is obeyed by no way of writing, and is recorded.

Run: python -m pytest tests/methods/test_checkpoint_decoding.py
"""

import random
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from foreword.core.format import Decoding
from foreword.inference.generation import encode_to_write, write_rows
from foreword.methods.registry import train
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import collate, prepare
from foreword.models.hf.seq2seq import HFSeq2Seq
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import wrap
from foreword.tasks.task import Task
from tests.inference.test_decoding import NEW, library, put
from tests.inference.test_generation import rows
from tests.models import seq2seq_zoo
from tests.models.zoo import build

# Each field with a value that changes what the library writes, alone or with others.
FIELDS = {
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "length_penalty": -5.0,
    "min_length": 400,
    "min_new_tokens": NEW,
    "forced_eos_token_id": 5,
    "suppress_tokens": list(range(10, 120)),
    "begin_suppress_tokens": list(range(10, 120)),
    "bad_words_ids": [[n] for n in range(10, 120)],
    "early_stopping": "never",
    "num_beams": 4,
    "num_return_sequences": 2,
    "do_sample": True,
    "temperature": 5.0,
    "top_k": 3,
    "top_p": 0.2,
    "max_length": 3,
    "max_new_tokens": 2,
    "renormalize_logits": True,
    "encoder_no_repeat_ngram_size": 1,
    "sequence_bias": [[[n], -50.0] for n in range(10, 120)],
    "exponential_decay_length_penalty": [0, 9.0],
    "guidance_scale": 3.0,
    "typical_p": 0.1,
    "stop_strings": ["e"],
}


def spoiled(kind: str, name: str | None) -> FrozenLM:
    """A model whose generation_config says this one thing beside its ends; None: nothing more."""
    torch.manual_seed(7)
    model = build("llama", torch.float64) if kind == "causal" else seq2seq_zoo.build("bart")
    ends = list(range(3, 8))
    more = {} if name is None else {name: FIELDS[name]}
    if name == "num_return_sequences":
        more["num_beams"] = 2
    if name in ("temperature", "top_k", "top_p", "typical_p"):
        more["do_sample"] = True
    config = model.generation_config
    own = {n: getattr(config, n) for n in ("decoder_start_token_id", "forced_bos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(eos_token_id=ends, **own, **more)
    return wrap(model, byte_tokenizer("causal" if kind == "causal" else "seq2seq"), kind=kind)


WAYS = {
    "greedy": Decoding(NEW),
    "sampled": Decoding(NEW, do_sample=True, seed=3),
    "beams": Decoding(NEW, num_beams=3),
}


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, list[str]]]:
    return {kind: written(spoiled(kind, None)) for kind in ("causal", "seq2seq")}


def written(lm: FrozenLM) -> dict[str, list[str]]:
    some = rows(4, 11)
    return {way: write_rows(lm, [(put(lm, "words", decoding), some)])[0] for way, decoding in WAYS.items()}


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
@pytest.mark.parametrize("name", FIELDS)
def test_no_way_of_writing_obeys_a_field_of_the_checkpoint(kind, name, plain):
    """Nor does `generate` itself, of which one beam is greedy; and each field is told as what is set aside."""
    lm = spoiled(kind, name)
    assert written(lm) == plain[kind]
    if name != "max_length":  # which every text has a limit of its own instead of
        assert lm.set_aside[name] == FIELDS[name]
    if kind == "causal":
        greedy, some = put(lm, "words", Decoding(NEW)), rows(4, 11)
        inputs, _ = prepare(lm, collate(encode_to_write(lm, greedy.format, some), "left"), None, torch.zeros(4).long())
        ids = lm.generate(inputs, max_new_tokens=NEW, do_sample=False, num_beams=1).tolist()
        cut = [row[: next((n for n, id in enumerate(row) if id in lm.stops), len(row))] for row in ids]
        assert [lm.tokenizer.decode(row, skip_special_tokens=True) for row in cut] == plain[kind]["greedy"]


def test_the_same_settings_given_by_name_are_the_librarys(plain):
    """Greedy, and beams, with explicit settings, equal the library's own generation with the same ones."""
    lm, some = spoiled("causal", None), rows(4, 11)
    several: list[dict[str, Any]] = [{}, {"min_new_tokens": 4}, {"num_beams": 3, "length_penalty": -1.0}]
    for options in several:
        made = put(lm, "words", Decoding(NEW, **options))
        theirs = {"do_sample": False, "early_stopping": "num_beams" in options, **options}
        expected = [lm.tokenizer.decode(library(lm, made, row, **theirs), skip_special_tokens=True) for row in some]
        assert write_rows(lm, [(made, some)])[0] == expected
    assert lm.set_aside == {} and plain["causal"]["greedy"] != plain["causal"]["sampled"]


def test_a_checkpoints_field_would_have_changed_what_the_library_writes():
    """The control: the library obeys what is set aside here."""
    changed = []
    some = rows(4, 11)
    for name in ("repetition_penalty", "no_repeat_ngram_size", "suppress_tokens"):
        found = []
        for lm in (spoiled("causal", None), spoiled("causal", name)):
            made = put(lm, "words", Decoding(NEW))
            found.append([library(lm, made, row, do_sample=False) for row in some])
        changed.append(found[0] != found[1])
    assert all(changed)


def test_the_ids_that_a_decoder_begins_and_ends_with_are_kept():
    lm = spoiled("seq2seq", "repetition_penalty")
    assert isinstance(lm, HFSeq2Seq) and lm.opening and lm.stops == frozenset(range(3, 8))


def test_what_is_set_aside_stands_in_the_artefact_and_only_where_texts_are_written():
    lm, rng = spoiled("causal", "repetition_penalty"), random.Random(1)
    texts = [{"q": f"t{rng.random()}", "answer": "7"} for _ in range(4)]
    made = train(lm, Task(train=texts, test=texts, template="Q {q} A:{answer}").with_(validation=()), "manual").artefact
    assert made.metrics["set_aside"] == {"repetition_penalty": 3.0}
    labels = [{"q": f"t{n}", "label": "ab"[n % 2]} for n in range(4)]
    task = Task(train=labels, test=labels, template="Q {q} A:{answer}").with_(validation=())
    assert "set_aside" not in train(lm, task, "manual").artefact.metrics
