"""python -m pytest tests/interop/test_adapter.py

Adapter folders as they come: old ones, named ones, and damaged ones, which are refused in a sentence and never run.
"""

import json
import os
import pickle
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load, save

from foreword.errors import ArtefactError
from foreword.interop.peft_files import CONFIG, PICKLE, PROMPT, TENSORS, Adapter
from tests.interop.beside import drawn, made, quiet, saved, write
from tests.models import zoo


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(drawn("gpt2", "PROMPT_TUNING"), tmp_path / "x")


def tensors(folder: Path, content: dict[str, torch.Tensor]) -> None:
    (folder / TENSORS).write_bytes(save(content))


def config(folder: Path, **changes) -> None:
    told = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**told, **changes}))


def pickled(folder: Path, content) -> None:
    (folder / TENSORS).unlink()
    torch.save(content, folder / PICKLE)


class Runs:
    """What a pickle does when it is trusted: it runs."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_an_old_pickle_of_tensors_is_read_and_nothing_in_it_is_run(tmp_path):
    model = made("gpt2", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    saved(model, tmp_path / "new")
    saved(model, tmp_path / "old", safe_serialization=False)
    assert {p.name for p in (tmp_path / "old").iterdir()} >= {PICKLE}
    assert not (tmp_path / "old" / TENSORS).exists()
    old, new = Adapter.load(tmp_path / "old"), Adapter.load(tmp_path / "new")
    assert torch.equal(old.prompt_PX, new.prompt_PX)
    assert old.config == new.config
    ran = tmp_path / "ran"
    torch.save({PROMPT: old.prompt_PX, "x": Runs(str(ran))}, tmp_path / "old" / PICKLE)
    with pytest.raises(ArtefactError, match="more than tensors"):
        Adapter.load(tmp_path / "old")
    (tmp_path / "old" / PICKLE).write_bytes(pickle.dumps(Runs(str(ran)), protocol=2))
    with pytest.raises(ArtefactError, match="more than tensors"):
        Adapter.load(tmp_path / "old")
    assert not ran.exists()
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        torch.load(tmp_path / "old" / PICKLE, weights_only=True)
    pickle.loads((tmp_path / "old" / PICKLE).read_bytes())
    assert ran.exists()  # the control: it would have run


def test_an_adapter_under_its_name_is_found(tmp_path):
    model = made("gpt2", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with quiet():
        model.add_adapter("other", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    saved(model, tmp_path / "one", selected_adapters=["other"])
    assert not (tmp_path / "one" / CONFIG).exists()
    assert len(Adapter.load(tmp_path / "one").prompt_PX) == 2
    saved(model, tmp_path / "both")
    assert len(Adapter.load(tmp_path / "both").prompt_PX) == 4
    assert len(Adapter.load(tmp_path / "both" / "other").prompt_PX) == 2
    (tmp_path / "both" / CONFIG).unlink()
    (tmp_path / "both" / "more").mkdir()
    (tmp_path / "both" / "more" / CONFIG).write_text("{}")
    with pytest.raises(ArtefactError, match="adapters more, other"):
        Adapter.load(tmp_path / "both")


def test_a_head_is_no_label_word(tmp_path):
    """What PEFT saves of a classifier: its head, and a modules_to_save that names it twice."""
    config = zoo.CONFIGS["gpt2"]()
    config.pad_token_id = 0
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        model = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4))
    saved(model, tmp_path / "x")
    told = json.loads((tmp_path / "x" / CONFIG).read_text())
    assert len(told["modules_to_save"]) > len(set(told["modules_to_save"]))
    with pytest.raises(ArtefactError, match=r"SEQ_CLS.*label words"):
        Adapter.load(tmp_path / "x")
    told["task_type"] = "CAUSAL_LM"
    (tmp_path / "x" / CONFIG).write_text(json.dumps(told))
    with pytest.raises(ArtefactError, match="weights beside the prompt"):
        Adapter.load(tmp_path / "x")
    prompt = load((tmp_path / "x" / TENSORS).read_bytes())[PROMPT]
    tensors(tmp_path / "x", {PROMPT: prompt})  # names alone, doubled, are tolerated
    assert torch.equal(Adapter.load(tmp_path / "x").prompt_PX, prompt)


def test_keys_of_another_release_are_kept(folder):
    config(folder, peft_version="9.9", something_new={"a": 1})
    assert Adapter.load(folder).config["something_new"] == {"a": 1}


def test_half_precision_is_widened_exactly(folder):
    prompt = Adapter.load(folder).prompt_PX.bfloat16()
    tensors(folder, {PROMPT: prompt})
    found = Adapter.load(folder).prompt_PX
    assert found.dtype == torch.float32
    assert torch.equal(found, prompt.float())


@pytest.mark.parametrize(
    "kind",
    ["LORA", "MULTITASK_PROMPT_TUNING", "CPT", "ADAPTION_PROMPT", "CARTRIDGE"],
)
def test_other_kinds_are_refused(folder, kind):
    config(folder, peft_type=kind)
    with pytest.raises(ArtefactError, match=f"{kind} adapter; only PROMPT_TUNING"):
        Adapter.load(folder)


PROMPTS = torch.randn(3, 32)
DAMAGE = {
    "truncated": (lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:-4]), "damaged"),
    "header": (lambda f: (f / TENSORS).write_bytes(b"\xff" * 40), "damaged"),
    "empty": (lambda f: (f / TENSORS).write_bytes(b""), "damaged"),
    "nan": (lambda f: tensors(f, {PROMPT: PROMPTS.clone().fill_(float("nan"))}), "NaN"),
    "infinity": (lambda f: tensors(f, {PROMPT: PROMPTS / 0}), "NaN or infinity"),
    "whole numbers": (lambda f: tensors(f, {PROMPT: torch.ones(3, 32, dtype=torch.int32)}), "floating point"),
    "rows": (lambda f: tensors(f, {PROMPT: PROMPTS[:2]}), "num_virtual_tokens=3"),
    "flat": (lambda f: tensors(f, {PROMPT: PROMPTS[0]}), "floating point with a row"),
    "name": (lambda f: tensors(f, {"prompt": PROMPTS}), "beside the prompt"),
    "nothing": (lambda f: tensors(f, {}), "no prompt to import"),
    "length": (lambda f: config(f, num_virtual_tokens=None), "num_virtual_tokens=None"),
    "no tensors": (lambda f: (f / TENSORS).unlink(), "neither"),
    "no config": (lambda f: (f / CONFIG).unlink(), "not a PEFT adapter"),
    "config": (lambda f: (f / CONFIG).write_text('{"peft_type": '), "cannot be read"),
    "config list": (lambda f: (f / CONFIG).write_text("[1]"), "peft_type"),
    "config bytes": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe{"), "cannot be read"),
    "pickled list": (lambda f: pickled(f, [PROMPTS]), "tensors by name"),
    "pickled number": (lambda f: pickled(f, {PROMPT: 3.0}), "tensors by name"),
    "pickled nan": (lambda f: pickled(f, {PROMPT: PROMPTS / 0}), "NaN"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_told_in_one_sentence(folder, what):
    assert Adapter.load(folder).kind == "PROMPT_TUNING"  # the control: whole, it is read
    DAMAGE[what][0](folder)
    with pytest.raises(ArtefactError, match=DAMAGE[what][1]) as caught:
        Adapter.load(folder)
    assert "\n" not in str(caught.value)


def test_a_truncated_pickle_is_damaged(tmp_path):
    folder = write(drawn("gpt2", "PROMPT_TUNING"), tmp_path / "x")
    pickled(folder, {PROMPT: PROMPTS})
    assert torch.equal(Adapter.load(folder).prompt_PX, PROMPTS)
    whole = (folder / PICKLE).read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 30):
        (folder / PICKLE).write_bytes(whole[:kept])
        with pytest.raises(ArtefactError, match="damaged"):
            Adapter.load(folder)


@pytest.mark.parametrize(
    "config", ["[" * 100_000, '{"peft_type": ["x"]}', '{"peft_type": "PROMPT_TUNING", "task_type": {"a": 1}}', "[]"]
)
def test_a_config_that_is_none_is_refused(tmp_path, config):
    (tmp_path / CONFIG).write_text(config)
    with pytest.raises(ArtefactError, match="copy the adapter again"):
        Adapter.load(tmp_path)
