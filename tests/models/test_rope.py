"""Rotary embeddings that depend on the length of a row: each row is read as it would be alone, by the library itself.

python -m pytest tests/models/test_rope.py

Frequencies switch at SWITCH tokens, far apart on both sides, so that a row read with those of another length shows.
Every comparison is made again with the rows' own lengths switched off, and must then fail.
"""

import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from foreword.core.artefact import Artefact
from foreword.core.format import Decoding, Format
from foreword.core.inject import inject_prefix
from foreword.core.prompts import HardPrompt, PrefixPrompt, SoftPrompt, stack
from foreword.core.template import Template
from foreword.errors import ModelError
from foreword.inference.batched import stacked_scores
from foreword.inference.generation import write_rows
from foreword.methods.meta.task_losses import text_first
from foreword.methods.triggers.row_block import Block
from foreword.models.encoding.encoder import Encoded, Encoder
from foreword.models.hf.lm import HFLM
from foreword.models.hf.rope import RowRotary
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import wrap
from foreword.models.score import score, score_all
from foreword.models.shared_prefix import compile_prompt
from foreword.serving.engine import Engine
from foreword.serving.protocol import RowRequest, Sampling
from foreword.tasks.rows import Row
from tests.models.zoo import DECODER, MIXED, SIZES, batch, gap, logits, read, sentences
from tests.serving.made import saved

SWITCH = 24
LONG = {"rope_theta": 10000.0, "original_max_position_embeddings": SWITCH, "factor": 8.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
FP32, MOVED = 1e-5, 1e-3
EIGHT = {k: v for k, v in DECODER.items() if k != "head_dim"} | {"max_position_embeddings": 192}


def longrope(pairs: int) -> dict[str, Any]:
    """The short rows' frequencies, and much lower ones from the switch on."""
    return {
        "rope_type": "longrope",
        "short_factor": [1.0] * pairs,
        "long_factor": [3.0 + n for n in range(pairs)],
    } | LONG


CONFIGS = {
    "phi3": lambda: transformers.Phi3Config(
        **EIGHT, original_max_position_embeddings=SWITCH, rope_parameters=longrope(4)
    ),
    "llama": lambda: transformers.LlamaConfig(**EIGHT, rope_parameters=longrope(4)),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **{**EIGHT, "head_dim": 8}, layer_types=MIXED, query_pre_attn_scalar=8, sliding_window=40,
        rope_parameters={"full_attention": longrope(4), "sliding_attention": PLAIN},
    ),
    "modernbert": lambda: transformers.ModernBertConfig(
        **{**SIZES, "max_position_embeddings": 192}, local_attention=64, global_attn_every_n_layers=2, cls_token_id=2,
        sep_token_id=3, rope_parameters={"full_attention": longrope(4), "sliding_attention": PLAIN},
    ),
}  # fmt: skip


@functools.cache
def model_of(family: str) -> transformers.PreTrainedModel:
    torch.manual_seed(4)
    auto = transformers.AutoModelForMaskedLM if family == "modernbert" else transformers.AutoModelForCausalLM
    return auto.from_config(CONFIGS[family](), attn_implementation="eager").eval()


@functools.cache
def lm_of(family: str) -> HFLM:
    lm = wrap(model_of(family), byte_tokenizer("masked" if family == "modernbert" else "causal"))
    assert isinstance(lm, HFLM)
    return lm


@contextmanager
def of_the_batch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library's own rule instead: all rows of a pass have the frequencies of the longest one, and beginnings are
    shared whatever the rows' length."""

    def forward(self: RowRotary, hidden: Any, position_ids: Any, *args: Any, **keywords: Any) -> Any:
        key = self._rotary.set_of(int(position_ids.max()) + 1)
        return self._rotary.at(key)(hidden, position_ids, *args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(RowRotary, "forward", forward)
        patch.setattr(HFLM, "begins_alike", lambda self, length, whole: True)
        yield


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_of_both_lengths_equal_the_library_row_by_row(
    family: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = lm_of(family)
    rows = [*sentences(4, seed=21), *sentences(2, seed=22, shortest=SWITCH - 1, longest=SWITCH + 2)]
    rows += sentences(2, seed=23, shortest=40, longest=60)
    random.Random(5).shuffle(rows)
    theirs = [logits(model_of(family), row) for row in rows]
    inputs, at = batch(lm, rows, side, extra=2)
    assert gap(read(lm, inputs, at), theirs) < FP32
    with of_the_batch(monkeypatch):
        assert gap(read(lm, inputs, at), theirs) > MOVED


def test_the_model_that_was_wrapped_is_left_as_it_is_and_its_last_pass_does_not_matter() -> None:
    """Reading a long row changes a library's own module, which a view shares the tensors of."""
    torch.manual_seed(4)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"](), attn_implementation="eager").eval()
    short, long = sentences(1, seed=24)[0], sentences(1, seed=25, shortest=50, longest=50)[0]
    wanted = logits(model, short)
    before = model.model.rotary_emb.inv_freq.clone()
    lm = wrap(model, byte_tokenizer("causal"))
    read(lm, *batch(lm, [long, short]))
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
    logits(model, long)
    assert not torch.equal(model.model.rotary_emb.inv_freq, before)
    other = wrap(model, byte_tokenizer("causal"))
    assert all(gap(read(one, *batch(one, [short])), [wanted]) < FP32 for one in (lm, other))


def test_dynamic_frequencies_are_those_of_the_row() -> None:
    """Within the context they never change; a pass of the stranger's own beyond it leaves nothing behind."""
    torch.manual_seed(4)
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    config = transformers.Qwen2Config(**{**EIGHT, "max_position_embeddings": 32}, rope_parameters=rope)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    whole = sentences(1, seed=26, shortest=32, longest=32)[0]
    wanted = logits(model, whole)
    logits(model, [*whole, *whole])
    lm = wrap(model, byte_tokenizer("causal"))
    assert gap(read(lm, *batch(lm, [whole])), [wanted]) < FP32
    assert gap([logits(model, whole)], [wanted]) > MOVED  # the library itself forgets to go back at exactly this length
    with pytest.raises(ModelError, match="33"):
        read(lm, *batch(lm, [[*whole, 9]]))


def format_of(template: str = "{text}{answer}") -> Format:
    return Format(Template.parse(template), ("no", "yes", "so"), (("n",), ("yes", "y"), ("so it is",)))


def encoded(lm: HFLM, form: Format, lengths: list[int], seed: int = 3) -> list[Encoded]:
    draw = random.Random(seed)
    texts = ["".join(draw.choice("abcdefgh ") for _ in range(n)) for n in lengths]
    return Encoder.build(lm, form).encode_rows([Row({"text": t}, None, (), "row") for t in texts])


def by_the_library(family: str, row: Encoded) -> torch.Tensor:
    """Log-scores of labels whose every word is put after the row, all but its last token, and read alone."""
    assert row.plan is not None
    scores = []
    for words in row.plan.words:
        each = []
        for word in words:
            whole = logits(model_of(family), [*row.ids_S.tolist(), *word[:-1]]).log_softmax(-1)
            each.append(sum(whole[len(row.ids_S) - 1 + n, piece] for n, piece in enumerate(word)))
        scores.append(torch.stack(each).logsumexp(0))
    return torch.stack(scores)


@pytest.mark.parametrize("family", ["phi3", "llama", "gemma3"])
def test_labels_of_a_row_do_not_depend_on_the_rows_beside_it(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows before, at and beyond the switch, with label words that reach across it; mixed, and each alone."""
    lm, lengths = lm_of(family), [4, 60, 12, *range(SWITCH - 9, SWITCH + 2), 90]
    rows = encoded(lm, format_of(), lengths)
    none = torch.zeros(len(rows), dtype=torch.long)
    wanted = [by_the_library(family, row) for row in rows]
    together = list(score_all(lm, rows, None, none))
    assert gap(together, wanted) < FP32
    assert gap([score_all(lm, [row], None, none[:1])[0] for row in rows], wanted) < FP32
    with of_the_batch(monkeypatch):
        assert gap(list(score_all(lm, rows, None, none)), wanted) > MOVED
    with monkeypatch.context() as patch:  # words of one row in one model row: those at the switch are read otherwise
        patch.setattr("foreword.models.score._parted", lambda lm, encoded, bank, task_B: [False] * len(encoded))
        assert gap(list(score_all(lm, rows, None, none)), wanted) > MOVED


def test_a_shared_beginning_is_read_once_only_where_all_rows_read_it_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = lm_of("phi3")
    form = format_of("{soft:5}{text}{answer}")
    values = [SoftPrompt(torch.randn(5, lm.dims.width, generator=torch.Generator().manual_seed(n))) for n in (1, 2)]
    short, mixed = encoded(lm, form, [3, 6, 2]), encoded(lm, form, [3, 60, 40])
    calls = []
    states = HFLM.states
    monkeypatch.setattr(HFLM, "states", lambda self, *a: (calls.append(len(a[0].read_BR)), states(self, *a))[1])
    for rows, passes in (([short, short], [2]), ([short, mixed], [1]), ([mixed, mixed], [])):
        calls.clear()
        ours = torch.cat(stacked_scores(lm, values, rows))
        zero = torch.zeros(1, dtype=torch.long)
        alone = [
            score_all(lm, [e], stack([v], lm.embed), zero)[0] for v, r in zip(values, rows, strict=True) for e in r
        ]
        assert calls == passes
        assert gap(list(ours), alone) < FP32
    with of_the_batch(monkeypatch):
        assert gap(list(torch.cat(stacked_scores(lm, values, [mixed, mixed]))), alone) > MOVED


def test_other_places_that_share_a_beginning_do_so_only_where_rows_read_it_alike() -> None:
    lm = lm_of("llama")
    form = format_of("{text}{soft:2}{answer}")
    short, long = encoded(lm, form, [3, 5]), encoded(lm, form, [SWITCH - 6, 40])
    assert text_first(lm, short) and not text_first(lm, long)
    ways = [Block.build(lm, rows, [0, 1], 2, "class").way for rows in (short, long)]
    assert ways == ["cached", "whole"]
    with pytest.raises(ModelError, match="no prefix equals both"):
        compile_prompt(lm, format_of("{soft:2}{text}{answer}"), SoftPrompt(torch.zeros(2, lm.dims.width)))


def test_gradients_of_a_prompt_do_not_depend_on_the_rows_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = lm_of("phi3")
    rows = encoded(lm, format_of("{soft:3}{text}{answer}"), [3, 70])
    zeros = torch.zeros(2, dtype=torch.long)

    def gradient(chosen: list[Encoded]) -> torch.Tensor:
        embed = torch.randn(3, lm.dims.width, generator=torch.Generator().manual_seed(6)).requires_grad_()
        score(lm, chosen, stack([SoftPrompt(embed)], lm.embed), zeros[: len(chosen)])[0].log_softmax(-1)[1].backward()
        assert embed.grad is not None
        return embed.grad

    alone = gradient(rows[:1])
    assert gap([gradient(rows)], [alone]) < FP32
    with of_the_batch(monkeypatch):
        assert gap([gradient(rows)], [alone]) > MOVED


def greedy(family: str, ids: list[int], new: int) -> list[int]:
    """By the library, the whole text read again for every token."""
    for _ in range(new):
        ids = [*ids, int(logits(model_of(family), ids)[-1].argmax())]
        if ids[-1] in lm_of(family).stops:
            return ids[:-1]
    return ids


def writes(lm: HFLM, value: Any, template: str, new: int) -> Artefact:
    form = Format(Template.parse(template), decoding=Decoding(max_new_tokens=new))
    return Artefact(
        value=value, format=form, method="manual", config={}, seed=0, model={"name": lm.name, "kind": lm.kind},
        fingerprint=vars(lm.fingerprint()), fields=("text",),
    )  # fmt: skip


NOTHING = HardPrompt.empty()


@pytest.mark.parametrize("family", ["phi3", "llama"])
def test_texts_that_grow_past_the_switch_go_on_as_the_whole_text_does(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the switch, across it and beyond, in one batch, after a beginning that some of the rows share."""
    lm, new = lm_of(family), 12
    artefact = writes(lm, NOTHING, "so: {text}", new)
    draw = random.Random(9)
    texts = ["".join(draw.choice("abcdefgh") for _ in range(n)) for n in (1, 9, 13, 15, 18, 19, 40)]
    rows = [Row({"text": text}, None, (), "row") for text in texts]

    def after(text: str) -> str:
        ids = lm.tokenizer(f"so: {text}")["input_ids"]
        return lm.tokenizer.decode(greedy(family, ids, new)[len(ids) :], skip_special_tokens=True)

    wanted = [after(text) for text in texts]
    assert len({*wanted}) > 4
    [found] = write_rows(lm, [(artefact, rows)])
    assert found == wanted
    assert [write_rows(lm, [(artefact, [row])])[0][0] for row in rows] == wanted
    with of_the_batch(monkeypatch):
        assert write_rows(lm, [(artefact, rows)])[0] != wanted
    with monkeypatch.context() as patch:  # what is cached stays as it was
        patch.setattr(HFLM, "_read_again", lambda self, inputs, cached: None)
        assert write_rows(lm, [(artefact, rows)])[0] != wanted


@pytest.mark.parametrize("length", [4, 70])
def test_a_learnt_prefix_stays_while_the_text_after_it_is_read_again(length: int) -> None:
    """Kept with each row, or once for the rows that share it."""
    lm, new = lm_of("llama"), 12
    draw = torch.Generator().manual_seed(7)
    size = (lm.dims.layers, length, lm.dims.heads, lm.dims.head_size)
    keys, values = (torch.randn(size, generator=draw) for _ in range(2))
    # Where a long prefix stands nothing switches any more; one of 4 leaves room for a text to.
    prefix = PrefixPrompt({"self": (keys, values)}, length)
    artefact = writes(lm, prefix, "{text}", new)
    texts = ["abcde", "hgfedcbah", "abc", "bbbbbbbbbbbb"]
    [found] = write_rows(lm, [(artefact, [Row({"text": text}, None, (), "row") for text in texts])])
    for text, ours in zip(texts, found, strict=True):
        ids = lm.tokenizer(text)["input_ids"]
        begun = len(ids)
        for _ in range(new):
            inputs, at = batch(lm, [ids])
            whole = inject_prefix(stack([prefix], lm.embed), torch.zeros(1, dtype=torch.long), lm.dtype)
            id = int(read(lm, inputs, at, whole)[0][-1].argmax())
            if id in lm.stops:
                break
            ids = [*ids, id]
        assert ours == lm.tokenizer.decode(ids[begun:], skip_special_tokens=True)


def test_a_served_row_is_answered_as_it_is_alone(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels and texts of several clients, with a prompt whose beginning is compiled, short rows beside long ones."""
    lm = lm_of("phi3")
    draw = torch.Generator().manual_seed(8)
    soft = SoftPrompt(torch.randn(5, lm.dims.width, generator=draw))
    labelled = replace(writes(lm, soft, "{soft:5}{text}{answer}", 3), format=format_of("{soft:5}{text}{answer}"))
    version = saved(tmp_path, "p", labelled)
    letters = random.Random(11)
    texts = ["".join(letters.choice("abcdefgh") for _ in range(n)) for n in (3, 90, 4, 13, 15, 17, 50)]
    rows = Encoder.build(lm, labelled.format).encode_rows([Row({"text": t}, None, (), "row") for t in texts])
    bank, zero = stack([soft], lm.embed), torch.zeros(1, dtype=torch.long)
    wanted = [score_all(lm, [row], bank, zero)[0].softmax(-1) for row in rows]
    alone = [
        write_rows(lm, [(writes(lm, soft, "{soft:5}{text}", 8), [Row({"text": t}, None, (), "r")])])[0][0]
        for t in texts
    ]

    def ask() -> tuple[list[torch.Tensor], list[str]]:
        with Engine(lm) as engine:
            judged = engine.classify([RowRequest(version, text) for text in texts])
            tickets = [
                engine.generate(RowRequest(version, text), Sampling(max_tokens=8, temperature=0.0)) for text in texts
            ]
            probabilities = [torch.tensor(list(one.probabilities.values())) for one in judged.result(60)]
            return probabilities, [ticket.result.result(60).text for ticket in tickets]

    found, written = ask()
    assert gap(found, wanted) < FP32
    assert written == alone
    with of_the_batch(monkeypatch):
        assert gap(ask()[0], wanted) > MOVED


def test_beams_follow_each_row_or_refuse_in_a_sentence() -> None:
    lm = lm_of("llama")
    short, long = sentences(1, seed=31, shortest=4, longest=4)[0], sentences(1, seed=32, shortest=60, longest=60)[0]
    options = {"num_beams": 3, "do_sample": False, "max_new_tokens": 6, "pad_token_id": 1}
    alone = [lm.generate(batch(lm, [row])[0], **options)[0].tolist() for row in (short, long)]
    assert [ids.tolist() for ids in lm.generate(batch(lm, [short, long])[0], **options)] == alone
    ids = torch.tensor([short])
    theirs = model_of("llama").generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(short) :].tolist()
    assert theirs == alone[0]
    with pytest.raises(ModelError, match="a row of 4 tokens with 30 new ones"):
        lm.generate(batch(lm, [short])[0], **{**options, "max_new_tokens": 30})


def test_a_rope_that_cannot_be_asked_row_by_row_is_refused() -> None:
    torch.manual_seed(4)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"](), attn_implementation="eager")

    class OfItsOwn(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner.forward

        def forward(self, *args: Any, **keywords: Any) -> Any:
            return self.inner(*args, **keywords)

    model.model.rotary_emb = OfItsOwn(model.model.rotary_emb)
    with pytest.raises(ModelError, match="depend on the length of the pass"):
        wrap(model, byte_tokenizer("causal"))
