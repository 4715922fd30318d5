"""Rows of an encoder-decoder model: the template's two halves, label words and texts scored by the decoder, room.

python -m pytest tests/models/test_seq2seq_rows.py
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from foreword.core.format import Format
from foreword.core.prompts import HardPrompt, SoftPrompt, stack
from foreword.core.template import Template
from foreword.errors import ConfigError, DataError, ModelError
from foreword.models.encoding.encoder import Encoder, PlainRow
from foreword.models.hf.loading import kind_of
from foreword.models.hf.seq2seq import HFSeq2Seq
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import load, wrap
from foreword.models.score import score
from foreword.models.tiny import tiny
from tests.models.seq2seq_zoo import CONFIGS, END, FAMILIES, PAD, build, frozen, inputs_of, logits, of_config
from tests.models.test_seq2seq import random_prefix

NOTHING = HardPrompt.empty()
TEXTS = ["a", "this is fine", "no, not again and again"]


def form(template: str, **more: Any) -> Format:
    plain = {"labels": ("good", "bad"), "words": (("yes", "so so"), ("no way",))}
    return Format(Template.parse(template), **{**plain, **more})


def ids(lm: Any, text: str) -> list[int]:
    return lm.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("opening", ["", "It is"])
def test_label_words_are_scored_as_the_library_s_decoder_reads_them(family: str, opening: str) -> None:
    """A loop over rows and words: each word's pieces one after the other, the source read anew for every word."""
    model, lm = build(family), frozen(family)
    template = "Say {text}: {answer}" if not opening else f"Say {{text}}:{{decoder}}{opening} {{answer}}"
    made = form(template)
    encoded = Encoder.build(lm, made).encode_rows([PlainRow({"text": text}) for text in TEXTS])
    found = score(lm, encoded, stack([NOTHING], lm.embed), torch.zeros(3, dtype=torch.long))
    start = [lm.opening[0]]
    wanted = []
    for text in TEXTS:
        source = [*ids(lm, f"Say {text}:"), END]
        row = []
        for words in made.words:
            each = []
            for word in words:
                before = [*start, *ids(lm, opening)]
                pieces = ids(lm, f" {word}" if opening else word)
                logprob = logits(model, source, [*before, *pieces[:-1]]).log_softmax(-1)[len(before) - 1 :]
                each.append(sum(logprob[j, piece] for j, piece in enumerate(pieces)))
            row.append(torch.stack(each).logsumexp(0))
        wanted.append(torch.stack(row))
    assert torch.allclose(found, torch.stack(wanted), atol=2e-4, rtol=1e-5)
    other = score(lm, encoded[::-1], None, torch.zeros(3, dtype=torch.long))
    assert not torch.allclose(other, torch.stack(wanted), atol=1e-2)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_texts_are_scored_whole_and_differentiably_and_the_source_once_a_row(family: str) -> None:
    model, lm = build(family), frozen(family)
    texts = ["yes", "certainly not", "x"]
    encoder = Encoder.build(lm, form("{text}").without_labels())
    encoded = encoder.encode_texts([PlainRow({"text": text}) for text in TEXTS], texts)
    prompt = random_prefix(lm, 3, torch.Generator().manual_seed(61))
    leaves = {site: tuple(t.requires_grad_() for t in pair) for site, pair in prompt.sites.items()}
    plain = score(lm, encoded, None, torch.zeros(3, dtype=torch.long))[:, 0]
    for text, target, value in zip(TEXTS, texts, plain, strict=True):
        pieces = ids(lm, target)
        logprob = logits(model, [*ids(lm, text), END], [lm.opening[0], *pieces[:-1]]).log_softmax(-1)
        assert float(value) == pytest.approx(float(sum(logprob[j, p] for j, p in enumerate(pieces))), abs=2e-4)
    bank = stack([replace(prompt, sites=leaves)], lm.embed)
    assert isinstance(lm, HFSeq2Seq)
    rows: list[int] = []
    counted = lm._encoder.register_forward_hook(lambda _module, _given, out: rows.append(out[0].shape[0]))
    many = [e for e in encoded for _ in range(2)]
    score(lm, many, bank, torch.zeros(6, dtype=torch.long)).sum().backward()
    counted.remove()
    assert rows == [6]
    assert all(
        t.grad is not None and bool((t.grad.abs().amax((1, 2, 3)) > 0).all()) for p in leaves.values() for t in p
    )


def test_slots_stand_in_either_half_or_both_and_are_filled_in_order() -> None:
    lm = frozen("t5")
    plain = Encoder.build(lm, form("x {text}{decoder}cd {answer}")).encode({"text": "q"})
    made = form("{soft:'ab'}x {text}{decoder}{soft:'cd'} {answer}")
    encoder = Encoder.build(lm, made)
    assert encoder.init_ids_P is not None
    assert encoder.init_ids_P.tolist() == [*ids(lm, "ab"), *ids(lm, "cd")]
    row = encoder.encode({"text": "q"})
    assert row.source is not None and plain.source is not None
    assert row.source.slot_S.tolist() == [0, 1, *[-1] * (len(row.source.slot_S) - 2)]
    assert row.slot_S.tolist() == [-1, 2, 3]
    assert row.source.ids_S[2:].tolist() == plain.source.ids_S.tolist()
    assert row.ids_S.tolist() == plain.ids_S.tolist()
    soft = SoftPrompt(lm.embed(torch.tensor([encoder.init_ids_P.tolist()]))[0])
    one = torch.zeros(1, dtype=torch.long)
    spoken = Encoder.build(lm, form("abx {text}{decoder}cd {answer}")).encode({"text": "q"})
    found, wanted = score(lm, [row], stack([soft], lm.embed), one), score(lm, [spoken], None, one)
    assert torch.allclose(found, wanted, atol=1e-5)
    swapped = SoftPrompt(soft.embed_PD.flip(0))
    assert not torch.allclose(score(lm, [row], stack([swapped], lm.embed), one), wanted, atol=1e-3)


def test_a_sentinel_is_a_literal_on_both_sides() -> None:
    """T5's pretraining: the blank in the source is a special token, which the decoder repeats before the answer."""
    tokenizer = byte_tokenizer("seq2seq")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_id_0>"]})
    config = CONFIGS["t5"]()
    config.vocab_size = len(tokenizer)
    lm = wrap(of_config(config), tokenizer)
    sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    row = Encoder.build(lm, form("{text} It was <extra_id_0>.{decoder}<extra_id_0> {answer}")).encode(
        {"text": "<extra_id_0>"}
    )
    assert row.source is not None
    assert row.source.ids_S.tolist().count(sentinel) == 1  # the row's own text holds none
    assert row.ids_S.tolist() == [PAD, sentinel]
    assert row.plan is not None
    assert list(row.plan.words[1][0]) == ids(lm, " no way")


def test_truncation_cuts_the_source_and_the_decoder_has_room_of_its_own() -> None:
    lm = frozen("bart")
    made = form("{text|shorten}!", max_length=12)
    row = Encoder.build(lm, made).encode({"text": "0123456789abcdef"})
    assert row.source is not None
    assert len(row.source.ids_S) == 12
    assert row.cut == 6
    assert lm.tokenizer.decode(row.source.ids_S, skip_special_tokens=True).endswith("!")
    with pytest.raises(DataError, match="takes 78 tokens and there is room for 64"):
        Encoder.build(lm, form("{text}!", truncate="error")).encode({"text": "x" * 76})
    with pytest.raises(DataError, match="text to be written takes 70 tokens after 1"):
        Encoder.build(lm, made.without_labels()).encode_texts([PlainRow({"text": "a"})], ["y" * 70])
    with pytest.raises(ConfigError, match="label words 99 more"):
        Encoder.build(lm, form("{text}", words=(("y" * 100,), ("n",))))
    with pytest.raises(ConfigError, match="max_new_tokens 64 is more than the decoder"):
        Encoder.build(lm, made).require_room(lm.name, 64)


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{text}{decoder}{text}{answer}", "after {decoder}, where only words, slots"),
        ("{text}{decoder}a{decoder}", "has {decoder} 2 times"),
        ("{text} {answer}{decoder}a", "its answer before {decoder}"),
    ],
)
def test_templates_of_two_halves_that_cannot_be_are_refused(template: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Template.parse(template)


def test_a_template_of_two_halves_is_read_back_and_suits_no_other_kind() -> None:
    template = Template.parse("{soft:2} {text|shorten} {{decoder}}{decoder}{soft:'so'}it {answer}")
    assert Template.parse(template.source) == template
    assert template.for_kind("seq2seq") == template
    for kind in ("masked", "causal"):
        with pytest.raises(ConfigError, match=f"a {kind} model has no decoder of its own"):
            template.for_kind(kind)
        with pytest.raises(ConfigError, match=f"is a {kind} model without a decoder"):
            Encoder.build(tiny(kind), form(str(template.source)))
    with pytest.raises(ConfigError, match=r"goes on after \{mask\}"):
        Encoder.build(frozen("t5"), form("{text} It was {mask}."))
    chat = Template.parse([{"role": "user", "content": "{text}"}])
    with pytest.raises(ConfigError, match="encoder-decoder model, and messages need a causal one"):
        Encoder.build(frozen("t5"), replace(form("x"), template=chat))


def test_kinds_are_told_by_config_and_class() -> None:
    config = CONFIGS["t5"]()
    config.architectures = ["T5WithLMHeadModel"]  # as the oldest checkpoints say
    assert kind_of(config, "t5-small") == "seq2seq"
    config = CONFIGS["bart"]()
    config.architectures = ["BartForCausalLM"]
    with pytest.raises(ModelError, match="does not read as a causal model"):
        wrap(transformers_decoder(config), byte_tokenizer("causal"))
    with pytest.raises(ConfigError, match="use masked, causal or seq2seq"):
        load("foreword-tiny", kind="encoder")
    config = CONFIGS["bart"]()
    config.decoder_start_token_id = None
    model = of_config(config)
    model.generation_config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="does not say what its decoder begins with"):
        wrap(model, byte_tokenizer("seq2seq"))


def transformers_decoder(config: Any) -> Any:
    config.is_decoder, config.is_encoder_decoder = True, False
    return transformers.BartForCausalLM(config)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_checkpoint_is_loaded_as_what_it_is(family: str, tmp_path: Path) -> None:
    model = build(family)
    byte_tokenizer("seq2seq").save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    lm = load(tmp_path)
    assert (lm.kind, lm.family) == ("seq2seq", family)
    assert lm.opening == frozen(family).opening
    assert lm.stops == {END}
    mine, theirs = (vars(m.fingerprint()) for m in (lm, frozen(family)))
    assert mine == theirs
    rows = [Encoder.build(m, form("{text} is {answer}")).encode({"text": "this"}) for m in (lm, frozen(family))]
    one = torch.zeros(1, dtype=torch.long)
    found = [score(m, [row], None, one) for m, row in zip((lm, frozen(family)), rows, strict=True)]
    assert torch.equal(found[0], found[1])
    half = load(tmp_path, dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    prompt = half.prefix_from_words(torch.tensor([70, 80]))
    low = score(half, rows[:1], stack([prompt], half.embed), one)
    high = score(lm, rows[:1], stack([lm.prefix_from_words(torch.tensor([70, 80]))], lm.embed), one)
    assert torch.allclose(low, high, rtol=0.05, atol=0.5)


def test_a_forced_first_token_opens_every_text() -> None:
    """BART's checkpoints write <s> first; label words are read after it, and no text is written without it."""
    model = build("bart")
    model.generation_config.forced_bos_token_id = 5
    lm = wrap(model, byte_tokenizer("seq2seq"))
    assert lm.opening == (END, 5)
    row = Encoder.build(lm, form("{text}")).encode({"text": "a"})
    assert row.ids_S.tolist() == [END, 5]


def test_what_such_a_model_does_not_have_is_refused_in_a_sentence() -> None:
    assert not tiny("masked").writes
    assert tiny("causal").writes
    lm = frozen("t5")
    assert lm.writes
    inputs, _ = inputs_of(lm, [[9, 10]], [[PAD]])
    with pytest.raises(ModelError, match="no one list of keys and values"):
        lm.states(inputs)
    with pytest.raises(ModelError, match="attention weights are not shown"):
        lm.attention(inputs)
