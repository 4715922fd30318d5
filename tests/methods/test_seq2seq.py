"""Methods on encoder-decoder models: prefixes at chosen sites, writing in mixed batches, artefacts.

python -m pytest tests/methods/test_seq2seq.py
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from foreword.core.artefact import TENSORS, Artefact
from foreword.core.format import Decoding, Format
from foreword.core.prompts import HardPrompt, PrefixPrompt, SoftPrompt
from foreword.core.template import Template
from foreword.errors import ArtefactError, ConfigError, ModelError
from foreword.inference.generation import write_rows, write_samples
from foreword.inference.likelihood import LikelihoodRequest, text_likelihoods
from foreword.inference.predictor import Prompted, open_artefact
from foreword.methods.registry import make_job, train
from foreword.methods.soft.prefix_tuning import PrefixTuning
from foreword.models.base import FrozenLM
from foreword.models.compatibility import check
from foreword.models.shared_prefix import compile_prompt
from foreword.models.tiny import tiny
from foreword.serving.engine import Engine
from foreword.tasks.rows import Row
from tests.planted import planted_task

TASK = planted_task(4, train=24, validation=8, test=8)
SHORT = {"steps": 3, "batch_size": 6, "eval_every": 2, "length": 3}
NOTHING = HardPrompt.empty()


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return tiny("seq2seq")


def prefix_of(lm: FrozenLM, **options: object) -> PrefixPrompt:
    value = train(lm, TASK, "prefix-tuning", **SHORT, **options).artefact.value
    assert isinstance(value, PrefixPrompt)
    return value


@pytest.mark.parametrize("reparametrise", [False, True])
def test_prefix_tuning_learns_all_three_sites_by_default(lm: FrozenLM, reparametrise: bool) -> None:
    found = prefix_of(lm, reparametrise=reparametrise, learning_rate=0.01)
    assert {site: tuple(keys.shape) for site, (keys, _) in found.sites.items()} == {
        "encoder": (2, 3, 4, 12), "self": (3, 3, 4, 12), "cross": (3, 3, 4, 12)
    }  # fmt: skip
    job = make_job(lm, TASK, "prefix-tuning", options={**SHORT, "reparametrise": reparametrise})
    learner = PrefixTuning().start(lm, job)
    first = learner.build(learner.leaves)
    assert isinstance(first, PrefixPrompt)
    for site, pair in found.sites.items():
        for new, old in zip(pair, first.sites[site], strict=True):
            moved = (new - old).abs().amax(dim=(1, 2, 3))
            assert bool((moved > 1e-6).all()), site  # every layer of every site


@pytest.mark.parametrize("sites", ["encoder", "self", "cross", "all"])
def test_a_prefix_at_any_site_learns(lm: FrozenLM, sites: str) -> None:
    """The training rows' likelihood rises under each site alone; a prefix that is not trained stays where it was."""
    few = TASK.with_(train=TASK.train[:8], validation=TASK.train[:8])
    options = {"length": 4, "init": "random", "sites": sites, "batch_size": 8, "eval_every": 80, "keep": "last"}
    nll = []
    for steps, rate in ((80, 0.1), (1, 1e-9)):
        made = train(lm, few, "prefix-tuning", steps=steps, learning_rate=rate, **options).artefact
        nll.append(made.metrics["validation"]["nll"])
    assert nll[0] < 0.9 * nll[1], nll


def test_a_network_is_folded_away_to_the_numbers_of_its_sites(lm: FrozenLM, tmp_path: Path) -> None:
    artefact = train(lm, TASK, "prefix-tuning", reparametrise=True, hidden=16, **SHORT).artefact
    numbers = sum(2 * s.layers * 3 * s.heads * s.head_size for s in lm.sites.values())
    assert artefact.bytes_stored == 4 * numbers
    assert artefact.numbers_trained > numbers  # the networks' own
    again = Artefact.load(artefact.save(tmp_path / "x"))
    assert torch.equal(Prompted(lm, again).scores(TASK.test), Prompted(lm, artefact).scores(TASK.test))


def test_a_soft_prompt_in_front_of_an_encoder_is_not_compiled(lm: FrozenLM) -> None:
    with pytest.raises(ModelError, match="encoder-decoder model: what leads a row's source sees the text after it"):
        compile_prompt(lm, Format(Template.parse("{soft:2}{text}")), SoftPrompt(torch.zeros(2, lm.dims.width)))


def test_it_starts_from_what_words_have_at_each_site(lm: FrozenLM) -> None:
    job = make_job(lm, TASK, "prefix-tuning", options={**SHORT, "init": "text", "init_text": "abc"})
    learner = PrefixTuning().start(lm, job)
    made = learner.build(learner.leaves)
    words = lm.prefix_from_words(torch.tensor(lm.tokenizer("abc", add_special_tokens=False)["input_ids"]))
    assert isinstance(made, PrefixPrompt)
    for site in lm.sites:
        assert all(torch.equal(a.detach(), b) for a, b in zip(made.sites[site], words.sites[site], strict=True))


def test_sites_are_chosen_by_name(lm: FrozenLM) -> None:
    assert list(prefix_of(lm, sites="cross, encoder").sites) == ["encoder", "cross"]
    assert list(prefix_of(lm, sites="self").sites) == ["self"]
    with pytest.raises(ConfigError, match="choose among encoder, self, cross"):
        prefix_of(lm, sites="encoder,decoder")
    with pytest.raises(ConfigError, match="choose among self"):
        prefix_of(tiny("causal"), sites="encoder")
    with pytest.raises(ConfigError, match="a decoder's text comes after"):
        prefix_of(lm, start="zero")
    started = train(lm, TASK, "prefix-tuning", **{**SHORT, "sites": "self"}).artefact
    with pytest.raises(ConfigError, match="set sites=self"):
        train(lm, TASK, "prefix-tuning", init=started, steps=1)
    assert list(prefix_of(lm, init=started, sites="self").sites) == ["self"]


def test_a_method_that_reads_no_such_model_says_which_it_reads(lm: FrozenLM) -> None:
    with pytest.raises(ConfigError, match="autoprompt needs a masked or causal model, and this one is seq2seq"):
        train(lm, TASK, "autoprompt")


def written_by(lm: FrozenLM, value: object, template: str, decoding: Decoding) -> Artefact:
    form = Format(Template.parse(template), decoding=decoding)
    model = {"name": lm.name, "kind": lm.kind}
    return Artefact(value, form, "manual", {}, 0, model, vars(lm.fingerprint()), fields=("text",))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "decoding",
    [Decoding(8), Decoding(8, do_sample=True, seed=3, temperature=1.3, top_k=40), Decoding(8, num_beams=3)],
    ids=["greedy", "sampling", "beams"],
)
def test_artefacts_of_every_form_write_together_what_they_write_alone(lm: FrozenLM, decoding: Decoding) -> None:
    draw = torch.Generator().manual_seed(5)
    soft = SoftPrompt(torch.randn(5, lm.dims.width, generator=draw))
    prefix = lm.prefix_from_words(torch.tensor([70, 80, 90, 100]))
    own = {site: tuple(t + torch.randn(t.shape, generator=draw) for t in pair) for site, pair in prefix.sites.items()}
    artefacts = [
        written_by(lm, NOTHING, "{text}", decoding),
        written_by(lm, NOTHING, "{text}{decoder}well, ", decoding),
        written_by(lm, soft, "{soft:3}{text}{decoder}{soft:2}", decoding),
        written_by(lm, PrefixPrompt(own, 4), "{text} :", decoding),
        written_by(lm, PrefixPrompt({"encoder": own["encoder"]}, 4), "{text} :", decoding),
        written_by(lm, prefix, "{text} :", decoding),
    ]
    rows = [Row({"text": text}, None, where=text) for text in ("a", "some words", "and many, many more of them")]
    together = write_rows(lm, [(artefact, rows) for artefact in artefacts])
    alone = [[write_rows(lm, [(artefact, [row])])[0][0] for row in rows] for artefact in artefacts]
    assert together == alone
    assert len({tuple(texts) for texts in together}) > 2  # a random model often writes one character, whatever it reads


def test_a_text_s_likelihood_is_that_of_its_own_writing(lm: FrozenLM) -> None:
    """What greedy decoding writes is likelier than the same with other pieces; mixed prompts in one batch."""
    rows = [Row({"text": text}, None, where=text) for text in ("a", "some words")]
    form = Format(Template.parse("{text}"))
    prefix = lm.prefix_from_words(torch.tensor([70, 80]))
    asked = [LikelihoodRequest(value, form, rows, ["yes", "no no"]) for value in (NOTHING, prefix)]
    together = text_likelihoods(lm, asked)
    for one, found in zip(asked, together, strict=True):
        for n in range(2):
            alone = text_likelihoods(lm, [replace(one, rows=rows[n : n + 1], texts=one.texts[n : n + 1])])[0]
            assert torch.allclose(found.logprob_N[n], alone.logprob_N[0], atol=1e-5)
    assert not torch.allclose(together[0].logprob_N, together[1].logprob_N, atol=1e-3)


def test_three_sites_are_saved_loaded_and_checked(lm: FrozenLM, tmp_path: Path) -> None:
    artefact = train(lm, TASK, "prefix-tuning", **SHORT).artefact
    folder = artefact.save(tmp_path / "x")
    stored = load_file(folder / TENSORS)
    assert sorted(stored) == [f"{site}.{part}" for site in ("cross", "encoder", "self") for part in ("keys", "values")]
    again = open_artefact(folder, lm)
    assert torch.equal(again.scores(TASK.test), Prompted(lm, artefact).scores(TASK.test))
    for change, match in (
        ({"cross.keys": stored["cross.keys"] * float("nan")}, "NaN or infinity"),
        ({"encoder.values": stored["encoder.values"][:1]}, "prefix of site 'encoder' has shape"),
    ):
        with pytest.raises(ArtefactError, match=match):
            rewritten(folder, {**stored, **change})
    assert isinstance(artefact.value, PrefixPrompt)
    sites = dict(artefact.value.sites)
    with pytest.raises(ArtefactError, match=r"shape \(3, 3, 4, 12\) at the site 'encoder'"):
        check(lm, replace(artefact, value=PrefixPrompt({**sites, "encoder": sites["cross"]}, 3)))
    with pytest.raises(ArtefactError, match="stands at elsewhere"):
        check(lm, replace(artefact, value=PrefixPrompt({"elsewhere": sites["cross"]}, 3)))
    with pytest.raises(ArtefactError, match="another shape"):
        check(tiny("seq2seq", layers=3), artefact)
    with pytest.raises(ArtefactError, match="made for a seq2seq model"):
        check(tiny("causal"), artefact)


def rewritten(folder: Path, tensors: dict[str, torch.Tensor]) -> Artefact:
    """The artefact with other tensors, and a record whose hash is theirs."""
    copy = folder.with_name("copy")
    copy.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, copy / TENSORS)
    record = json.loads((folder / "foreword.json").read_text())
    del record["record_sha256"]  # as those of before records had one
    record["tensors_sha256"] = hashlib.sha256((copy / TENSORS).read_bytes()).hexdigest()
    (copy / "foreword.json").write_text(json.dumps(record))
    return Artefact.load(copy)


def test_serving_refuses_such_a_model_in_a_sentence(lm: FrozenLM) -> None:
    with pytest.raises(ModelError, match="encoder-decoder model, which foreword serve does not read yet"):
        Engine(lm)


def test_a_masked_model_asked_to_write_says_so(lm: FrozenLM) -> None:
    artefact = written_by(lm, NOTHING, "{text} {mask}", Decoding(4))
    with pytest.raises(ModelError, match="masked model, which cannot write"):
        write_samples(tiny("masked"), [(artefact, [Row({"text": "a"}, None)])], lambda *_: 0)
    with pytest.raises(ConfigError, match="max_new_tokens 600 is more than the decoder"):
        write_rows(lm, [(written_by(lm, NOTHING, "{text}", Decoding(600)), [Row({"text": "a"}, None)])])
