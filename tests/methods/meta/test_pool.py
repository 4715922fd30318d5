"""python -m pytest tests/methods/meta/test_pool.py

The pool of prompts and the prototypes: against a reading row by row, with the controls of transduction.
"""

import pytest
import torch

from foreword.core.artefact import Artefact, unpack
from foreword.core.prompts import SoftPrompt, stack
from foreword.core.values import PromptPool
from foreword.errors import ArtefactError, ConfigError
from foreword.inference.prompt_pool import features, mixed, near, without_slots
from foreword.inference.scoring import encode_rows, score_rows
from foreword.methods import METHODS
from foreword.methods.meta.inner_loop import gradient, product
from foreword.methods.meta.pool_lens import PoolLens
from foreword.methods.registry import make_job, train
from foreword.models.load import load
from foreword.models.score import score
from tests.methods.meta.problems import random_like
from tests.methods.meta.test_metaprompting import SHORT, TASK, TINY, many_classes

LM = load("foreword-tiny", dtype=torch.float64)


@pytest.fixture(scope="module")
def learner():
    options = {**SHORT, "pool": 4, "ways": 3, "prototypes": 0.3, "queries": 2}
    return METHODS["metaprompting"].start(LM, make_job(LM, many_classes(), "metaprompting", options=options))


def rows_of(learner, split="train"):
    deck = learner.own.deck
    episodes = deck.source.episodes(split, 0, 2)
    return (deck.folds(split, episodes, (part,)) for part in ("support", "query"))


def stacked(learner) -> dict[str, torch.Tensor]:
    return {n: t.detach().double()[None].repeat(2, *[1] * t.ndim) for n, t in learner.leaves.items()}


def test_every_row_has_the_prompt_that_its_own_feature_mixes(learner):
    """Scores of a lens, against one row at a time: its feature without a prompt, its mix, its cosines and its words."""
    support, query = (list(rows) for rows in rows_of(learner))
    leaves = stacked(learner)
    found = learner.own.lens.scores(leaves, support, query, 1_000)
    pool = PromptPool(leaves["keys"][0], leaves["values"][0])

    def one(row) -> tuple[torch.Tensor, torch.Tensor]:
        plain = without_slots(row.encoded)
        assert (plain.slot_S < 0).all()
        assert plain.ids_S[plain.answer] == LM.tokenizer.mask_token_id
        zero = torch.zeros(1, dtype=torch.long)
        key = features(LM, [plain], None, zero)[0]
        weights = (pool.keys_KD @ key / key.numel() ** 0.5).softmax(0)
        prompt = sum(w * v for w, v in zip(weights, pool.values_KPD, strict=True))
        bank = stack([SoftPrompt(prompt)], LM.embed)
        return features(LM, [row.encoded], bank, zero)[0], score(LM, [row.encoded], bank, zero)[0]

    with torch.no_grad():
        for task in (0, 1):
            means = []
            for label in range(3):
                own = [one(r)[0] for r in support if r.task == task and r.label == label]
                means.append(torch.stack(own).mean(0))
            for place, row in enumerate(query):
                if row.task != task:
                    continue
                feature, words = one(row)
                cosines = torch.stack([torch.cosine_similarity(feature, m, dim=0) for m in means])
                wanted = 0.3 * (10 * cosines).softmax(0) + 0.7 * words.softmax(0)
                assert torch.allclose(found[place].exp(), wanted, atol=1e-9)


def test_asked_alone_a_row_has_the_score_that_it_has_in_company_unless_transductive(learner):
    support, query = (list(rows) for rows in rows_of(learner))
    leaves = stacked(learner)
    for transductive in (False, True):
        lens = PoolLens(LM, LM, 0.5, 10.0, transductive)
        together = lens.scores(leaves, support, query, 1_000)
        firsts = [next(i for i, r in enumerate(query) if r.task == t) for t in (0, 1)]
        alone = lens.scores(leaves, support, [query[i] for i in firsts], 1_000)
        same = all(torch.allclose(alone[n], together[i], atol=1e-9) for n, i in enumerate(firsts))
        assert same is not transductive
    draw = torch.Generator().manual_seed(0)
    support_SD, query_QD = torch.randn(4, 6, generator=draw), torch.randn(5, 6, generator=draw)
    label_S = torch.tensor([0, 0, 1, 1])
    whole = near(support_SD, label_S, query_QD, 2)
    assert torch.allclose(near(support_SD, label_S, query_QD[:1], 2), whole[:1])


def test_its_gradient_and_product_are_slopes(learner):
    support, query = (list(rows) for rows in rows_of(learner))
    loss, start = learner.own.lens.loss(support, query, 2, 1_000), stacked(learner)
    way, step = random_like(start), 1e-5
    up, down = ({n: t + s * step * way[n] for n, t in start.items()} for s in (1, -1))
    (high, slope_up), (low, slope_down) = gradient(loss, up), gradient(loss, down)
    slope, curved = gradient(loss, start)[1], product(loss, start, way)
    along = sum(float((slope[n] * way[n]).sum()) for n in start)
    assert along == pytest.approx(float((high - low).sum()) / (2 * step), rel=1e-6)
    for name in start:
        wanted = (slope_up[name] - slope_down[name]) / (2 * step)
        assert torch.allclose(curved[name], wanted, atol=1e-6 * float(wanted.abs().max()))
    own = learner.own.lens.loss(support, (), 2, 1_000)
    assert torch.isfinite(gradient(own, start)[0]).all()


def test_a_pool_is_kept_and_read_again(tmp_path):
    lm = TINY["masked"]
    made = train(lm, TASK, "metaprompting", **{**SHORT, "pool": 4}).artefact
    assert (made.form, made.numbers_trained) == ("pool", 4 * 32 + 4 * 3 * 32)
    again = Artefact.load(made.save(tmp_path / "x"))
    one, other = (score_rows(lm, [(a, TASK.test)])[0] for a in (made, again))
    assert torch.equal(one, other)
    [row] = encode_rows(lm, made.format, TASK.test[:1])
    feature = features(lm, [without_slots(row)], None, torch.zeros(1, dtype=torch.long))
    bank = stack([SoftPrompt(mixed(made.value, feature)[0])], lm.embed)
    assert torch.allclose(one[0], score(lm, [row], bank, torch.zeros(1, dtype=torch.long))[0], atol=1e-5)
    with pytest.raises(ConfigError, match="the artefact given is pool"):
        train(lm, TASK, "prompt-tuning", init=made)
    with pytest.raises(ArtefactError, match="do not fit"):
        unpack("pool", {"keys": torch.zeros(2, 3), "values": torch.zeros(2, 1, 4)}, {"shape": [2, 1, 4]})
    with pytest.raises(ConfigError, match="a pool is of soft prompts"):
        make_job(lm, TASK, "metaprompting", options={"pool": 2, "prompt": "prefix"})
    with pytest.raises(ConfigError, match="at least 0 and at most 1"):
        make_job(lm, TASK, "metaprompting", options={"pool": 2, "prototypes": 1.5})
