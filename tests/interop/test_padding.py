"""python -m pytest tests/interop/test_padding.py

Where PEFT is wrong, which of the two equals the model without padding. Each cell asserts both sides, so that this file
fails on the day PEFT is repaired, and what the cards of exported adapters say about padding can go.
"""

import dataclasses

import peft
import pytest
import torch
import transformers

from foreword.core.prompts import SoftPrompt, stack
from foreword.interop.peft import export, read
from foreword.models.encoding.encoder import collate, prepare
from foreword.models.score import score_all
from tests.interop.beside import (
    EXACT,
    WORDS,
    base,
    drawn,
    frozen,
    loaded,
    ours,
    quiet,
    rows,
    template,
    text_ids,
    theirs,
)
from tests.models import zoo

WRONG = 1e-3  # a hundred times what counts as equal


def artefact_of(family: str, kind: str):
    return read(drawn(family, kind), frozen(family), template=template(family), label_words=WORDS)


@torch.no_grad()
def unpadded(family: str, value: SoftPrompt, ids: list[int]) -> torch.Tensor:
    """(T, V): the library's own model over the prompt and the words as embeddings; neither PEFT nor Foreword."""
    model = base(family)
    words_BSD = model.get_input_embeddings()(torch.tensor([ids]))
    return model(inputs_embeds=torch.cat([value.embed_PD[None], words_BSD], dim=1)).logits[0][value.length :]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gpt-neox", "bert", "roberta"])
def test_pads_on_the_left_move_pefts_soft_prompts_and_not_ours(family, tmp_path):
    """PEFT puts the prompt before the pads and drops positions. RoBERTa without pads: all three agree."""
    artefact, lm = artefact_of(family, "PROMPT_TUNING"), frozen(family)
    assert isinstance(artefact.value, SoftPrompt)
    export(artefact, tmp_path / "x", lm)
    model, encoded = loaded(family, tmp_path / "x"), rows(artefact, lm)
    texts = [text_ids(row) for row in encoded]
    wanted = [unpadded(family, artefact.value, ids) for ids in texts]
    longest = max(map(len, texts))
    assert zoo.gap(ours(lm, artefact, encoded, "left"), wanted) <= EXACT
    assert zoo.gap(ours(lm, artefact, encoded, "right"), wanted) <= EXACT
    assert zoo.gap([theirs(model, ids) for ids in texts], wanted) <= EXACT
    assert zoo.gap([theirs(model, ids, right=longest - len(ids)) for ids in texts], wanted) <= EXACT
    for ids, plain in zip(texts, wanted, strict=True):
        if len(ids) < longest:
            assert zoo.gap([theirs(model, ids, left=longest - len(ids))], [plain]) > WRONG


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_which_positions_a_prefix_has_under_pads_on_the_left(family, tmp_path):
    """GPT-2 counts the pads as positions; OPT counts its mask, as Foreword does."""
    artefact, lm = artefact_of(family, "PREFIX_TUNING"), frozen(family)
    export(artefact, tmp_path / "x", lm)
    model, encoded = loaded(family, tmp_path / "x"), rows(artefact, lm)
    texts = [text_ids(row) for row in encoded]
    wanted = [theirs(model, ids) for ids in texts]
    assert zoo.gap(ours(lm, artefact, encoded, "left"), wanted) <= EXACT
    moved = zoo.gap([theirs(model, ids, left=4) for ids in texts], wanted)
    assert moved <= EXACT if family == "opt" else moved > WRONG


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gpt-neox"])
def test_generation_from_a_padded_batch(family, tmp_path):
    """The first new token's logits: PEFT's drift with pads on the left; Foreword's tokens are the unpadded ones."""
    artefact, lm = artefact_of(family, "PROMPT_TUNING"), frozen(family)
    assert isinstance(artefact.value, SoftPrompt)
    export(artefact, tmp_path / "x", lm)
    model, encoded = loaded(family, tmp_path / "x"), rows(artefact, lm)
    texts = [text_ids(row) for row in encoded]
    wanted = [unpadded(family, artefact.value, ids)[-1] for ids in texts]

    def first(ids: list[int], left: int) -> torch.Tensor:
        ids_BS = torch.tensor([[*[0] * left, *ids]])
        mask_BS = torch.tensor([[*[0] * left, *[1] * len(ids)]])
        told = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        with torch.no_grad(), quiet():
            return model.generate(input_ids=ids_BS, attention_mask=mask_BS, pad_token_id=0, **told).logits[0][0]

    assert zoo.gap([first(ids, 0) for ids in texts], wanted) <= EXACT
    assert zoo.gap([first(ids, 5) for ids in texts], wanted) > WRONG

    def tokens(chosen: list[int]) -> list[list[int]]:
        batch = collate([encoded[i] for i in chosen], "left")
        bank = stack([artefact.value], lm.embed)
        inputs, _ = prepare(lm, batch, bank, torch.zeros(len(chosen), dtype=torch.long))
        return lm.generate(inputs, max_new_tokens=4, do_sample=False, eos_token_id=-1).tolist()

    together = tokens([0, 1, 2])
    assert together == [tokens([i])[0] for i in range(3)]
    assert [row[0] for row in together] == [int(plain.argmax()) for plain in wanted]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_pefts_classifier_reads_a_pad_and_label_words_do_not(family):
    """PEFT's sequence classifier over a decoder takes the last column, since it is given embeddings alone."""
    config = zoo.CONFIGS[family]()
    config.pad_token_id = 0
    torch.manual_seed(1)
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        model = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)).eval()
    ids = [5, 6, 7, 8]

    def classify(right: int) -> torch.Tensor:
        ids_BS = torch.tensor([[*ids, *[0] * right]])
        mask_BS = torch.tensor([[*[1] * len(ids), *[0] * right]])
        with torch.no_grad(), quiet():
            return model(input_ids=ids_BS, attention_mask=mask_BS).logits

    assert not torch.allclose(classify(0), classify(6), rtol=0, atol=WRONG)
    artefact, lm = artefact_of(family, "PROMPT_TUNING"), frozen(family)
    encoded, bank = rows(artefact, lm), stack([artefact.value], lm.embed)
    with torch.no_grad():
        together = score_all(lm, encoded, bank, torch.zeros(len(encoded), dtype=torch.long))
        alone = [score_all(lm, [row], bank, torch.zeros(1, dtype=torch.long))[0] for row in encoded]
    assert torch.allclose(together, torch.stack(alone), rtol=0, atol=EXACT)
    swapped = dataclasses.replace(artefact, value=SoftPrompt(-artefact.value.embed_PD))
    with torch.no_grad():
        other = score_all(lm, encoded, stack([swapped.value], lm.embed), torch.zeros(len(encoded), dtype=torch.long))
    assert not torch.allclose(together, other, rtol=0, atol=WRONG)
