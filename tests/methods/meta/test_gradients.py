"""python -m pytest tests/methods/meta/test_gradients.py

Meta-gradients against closed forms, finite differences, loops over tasks, vmap and each other.
"""

import pytest
import torch

from foreword.methods.meta.inner_loop import adapt, finite_product, gradient, product
from foreword.methods.meta.meta_gradient import meta_gradient, reptile, unrolled, weights_of
from foreword.methods.meta.task_losses import TEXT_BYTES, EpisodeRow, Texts, text_first
from tests.methods.meta.problems import Quadratic, dot, folded, quadratics, random_like

KINDS = ["masked", "causal"]
RATE = 0.3


def rates_of(start, rate=RATE):
    return {name: torch.full_like(leaf[:1], rate) for name, leaf in start.items()}


def last(steps: int) -> list[float]:
    return weights_of(steps, 1.0, False)


def close(one, other, tolerance: float) -> bool:
    scale = max(float(t.abs().max()) for t in other.values())
    return all(float((one[n] - other[n]).abs().max()) <= tolerance * max(scale, 1e-30) for n in other)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_quadratics_have_the_closed_form(steps):
    """MAML: M B (p_k - d). FOMAML minus MAML: (I - M) B (p_k - d). Reptile: (I - M)(p - c)."""
    support, query = quadratics(4, 6)
    start = {"p": torch.randn(4, 6, dtype=torch.float64)}
    eye = torch.eye(6, dtype=torch.float64)
    m = torch.linalg.matrix_power(eye - 0.1 * support.a, steps)
    end = support.c + torch.einsum("tij,tj->ti", m, start["p"] - support.c)
    slope = torch.einsum("tij,tj->ti", query.a, end - query.c)
    rates = rates_of(start, 0.1)
    exact = meta_gradient(support, query, start, rates, last(steps))
    first = meta_gradient(support, query, start, rates, last(steps), None)
    assert close(exact.path.last, {"p": end}, 1e-12)
    assert close(exact.start, {"p": torch.einsum("tij,tj->ti", m, slope)}, 1e-12)
    apart = {"p": first.start["p"] - exact.start["p"]}
    assert close(apart, {"p": torch.einsum("tij,tj->ti", eye - m, slope)}, 1e-11)
    away = reptile(support, start, rates, steps).start
    assert close(away, {"p": torch.einsum("tij,tj->ti", eye - m, start["p"] - support.c)}, 1e-12)
    chained = meta_gradient(support, query, start, rates, last(steps), finite_product)
    assert close(chained.start, exact.start, 1e-8)  # the gradient of a quadratic is linear


@pytest.mark.parametrize("form", ["soft", "prefix"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_the_meta_gradient_is_the_slope_of_adapting_and_asking(kind, steps, form):
    """Along random directions, central differences of the whole objective; first order would be far off."""
    _, folds, loss, start = folded(kind, 2, 3, form=form)
    support, query = loss(folds(0)), loss(folds(6))
    rates = rates_of(start, 1.0)

    def objective(moved) -> float:
        end = adapt(support, moved, rates, steps).last
        return float(gradient(query, end)[0].sum())

    exact = meta_gradient(support, query, start, rates, last(steps))
    first = meta_gradient(support, query, start, rates, last(steps), None)
    for seed in (1, 2):
        way, step = random_like(start, seed), 1e-5
        up, down = ({n: leaf + s * step * way[n] for n, leaf in start.items()} for s in (1, -1))
        slope = (objective(up) - objective(down)) / (2 * step)
        assert dot(exact.start, way) == pytest.approx(slope, rel=1e-6)
        assert dot(first.start, way) != pytest.approx(slope, rel=1e-4)  # the control: curvature is there


@pytest.mark.parametrize("kind", KINDS)
def test_fomaml_minus_maml_is_the_hessian_times_the_vector(kind):
    """For one step, with the Hessian from a double backward of torch's own over one graph."""
    _, folds, loss, start = folded(kind, 2, 3)
    support, query = loss(folds(0)), loss(folds(6))
    rates = rates_of(start)
    exact = meta_gradient(support, query, start, rates, last(1))
    first = meta_gradient(support, query, start, rates, last(1), None)
    leaf = start["embed"].clone().requires_grad_()
    whole = sum(support.part(n, {"embed": leaf}, True).sum() for n in range(support.parts))
    [slope] = torch.autograd.grad(whole, leaf, create_graph=True)
    [curved] = torch.autograd.grad(slope, leaf, first.start["embed"])
    assert close({"embed": first.start["embed"] - exact.start["embed"]}, {"embed": RATE * curved}, 1e-10)
    assert float(curved.abs().max()) > 1e-3 * float(first.start["embed"].abs().max())


@pytest.mark.parametrize("form", ["soft", "prefix"])
@pytest.mark.parametrize("kind", KINDS)
def test_unrolled_chain_and_finite_differences_agree(kind, form):
    _, folds, loss, start = folded(kind, 2, 3, form=form)
    support, query = loss(folds(0)), loss(folds(6))
    rates, weights = rates_of(start), [0.0, 0.2, 0.3, 0.5]
    chain = meta_gradient(support, query, start, rates, weights)
    whole = unrolled(support, query, start, rates, weights)
    assert close(chain.start, whole.start, 1e-10)
    assert close(chain.rates, whole.rates, 1e-10)
    assert torch.allclose(chain.query_T, whole.query_T, rtol=1e-12)
    _, folds, loss, start = folded(kind, 2, 3, dtype=torch.float32, form=form)
    support, query = loss(folds(0)), loss(folds(6))
    finite = meta_gradient(support, query, start, rates_of(start), weights, finite_product)
    assert close(finite.start, {n: t.float() for n, t in chain.start.items()}, 1e-2)


def test_the_multi_step_loss_is_the_weighted_sum_of_single_ones():
    _, folds, loss, start = folded("masked", 2, 3)
    support, query = loss(folds(0)), loss(folds(6))
    rates, weights = rates_of(start), weights_of(3, 0.25, True)
    assert sum(weights) == pytest.approx(1.0)
    assert weights_of(3, 1.0, True) == weights_of(3, 0.0, False) == [0.0, 0.0, 0.0, 1.0]
    several = meta_gradient(support, query, start, rates, weights)
    single = [meta_gradient(support, query, start, rates, last(k)).start["embed"] for k in (1, 2, 3)]
    summed = sum(w * g for w, g in zip(weights[1:], single, strict=True))
    assert close(several.start, {"embed": summed}, 1e-11)


@pytest.mark.parametrize("seed", [3, 4])
def test_the_gradient_by_the_step_sizes_is_the_slope(seed):
    _, folds, loss, start = folded("causal", 2, 3)
    support, query = loss(folds(0)), loss(folds(6))
    rates = {"embed": 0.1 + 0.3 * torch.rand(1, 3, 1, dtype=torch.float64)}
    found = meta_gradient(support, query, start, rates, last(3)).rates["embed"].sum((0, 2))
    way, step = random_like({"x": rates["embed"]}, seed)["x"], 1e-5

    def objective(some) -> float:
        return float(gradient(query, adapt(support, start, {"embed": some}, 3).last)[0].sum())

    slope = (objective(rates["embed"] + step * way) - objective(rates["embed"] - step * way)) / (2 * step)
    assert float((found * way.flatten()).sum()) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("kind", [*KINDS, "front"])
def test_folded_tasks_are_a_loop_over_tasks_and_a_permutation_permutes(kind):
    """Unequal lengths and padding; a task's meta-gradient does not know its company."""
    _, folds, loss, start = folded(kind, 3, 3)
    rates, support, query = rates_of(start), folds(0), folds(9)
    together = meta_gradient(loss(support), loss(query), start, rates, last(2)).start["embed"]
    assert len({len(f.encoded.ids_S) for f in support}) > 1
    for t in range(3):
        alone = [[EpisodeRow(0, f.encoded, f.label, f.share) for f in some if f.task == t] for some in (support, query)]
        own = meta_gradient(*(loss(a, count=1) for a in alone), {"embed": start["embed"][t : t + 1]}, rates, last(2))
        assert close({"g": together[t : t + 1]}, {"g": own.start["embed"]}, 1e-12)
    order = [2, 0, 1]
    moved = [[EpisodeRow(order.index(f.task), f.encoded, f.label, f.share) for f in some] for some in (support, query)]
    turned = meta_gradient(*(loss(m) for m in moved), {"embed": start["embed"][order]}, rates, last(2)).start["embed"]
    assert close({"g": turned}, {"g": together[order]}, 1e-12)


def test_folded_tasks_are_vmap_over_tasks():
    """torch.func's own derivative of one task's objective, mapped over quadratics and their starts."""
    support, query = quadratics(3, 4)
    start = torch.randn(3, 4, dtype=torch.float64)

    def objective(p, a, c, b, d):
        for _ in range(3):
            p = p - RATE * (a @ (p - c))
        return 0.5 * (p - d) @ b @ (p - d)

    mapped = torch.func.vmap(torch.func.grad(objective))(start, support.a, support.c, query.a, query.c)
    ours = meta_gradient(support, query, {"p": start}, rates_of({"p": start}), last(3)).start
    assert close(ours, {"p": mapped}, 1e-12)


def test_another_tasks_rows_leave_the_adapted_prompt_bit_for_bit():
    _, folds, loss, start = folded("masked", 2, 3, budget=10_000)
    plain = folds(0)
    other = [EpisodeRow(f.task, f.encoded, (f.label + (f.task == 1)) % 3, f.share) for f in plain]
    one, two = (adapt(loss(some), start, rates_of(start), 3).last["embed"] for some in (plain, other))
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[1], two[1])


@pytest.mark.parametrize("steps", [1, 4])
def test_the_last_pass_before_the_query_is_not_read_again(steps, monkeypatch):
    """Two passes a step forth and two back, but for the one whose graph was kept; and one of a step for first order."""
    support, query = quadratics(2, 3)
    start = {"p": torch.randn(2, 3, dtype=torch.float64)}
    reads: list[bool] = []
    plain = support.part
    monkeypatch.setattr(support, "part", lambda n, leaves, twice: reads.append(twice) or plain(n, leaves, twice))
    meta_gradient(support, query, start, rates_of(start), last(steps))
    assert (reads.count(False), reads.count(True)) == (2 * steps - 1, 2 * steps)
    reads.clear()
    meta_gradient(support, query, start, rates_of(start), last(steps), None)
    assert (reads.count(False), reads.count(True)) == (2 * steps, 0)


@pytest.mark.parametrize("times", [product, finite_product])
def test_products_do_not_depend_on_how_rows_share_passes(times):
    """Padding invariance: longer batch-mates, and one row a pass."""
    found = []
    for budget in (1, 60, 10_000):
        _, folds, loss, start = folded("masked", 2, 4, budget=budget)
        found.append(times(loss(folds(0)), start, random_like(start)))
    assert close(found[0], found[2], 1e-10 if times is product else 1e-6)
    assert close(found[1], found[2], 1e-10 if times is product else 1e-6)


def test_texts_before_the_prompt_are_read_once_and_change_nothing():
    """Gradients and products equal those of whole rows; where the kept columns are shifted by one they do not."""
    lm, folds, loss, start = folded("causal", 2, 4)
    texts, vector = Texts(lm, TEXT_BYTES), random_like(start)
    whole, kept = loss(folds(0)), loss(folds(0), texts)
    assert kept.tokens < 0.7 * whole.tokens
    for _ in range(3):
        assert close(gradient(kept, start)[1], gradient(whole, start)[1], 1e-11)
        assert close(product(kept, start, vector), product(whole, start, vector), 1e-10)
    loss(folds(0), texts)
    assert texts.compiled == 8
    for keys in {id(prefix): prefix.sites["self"][0] for prefix in kept.prefixes}.values():
        keys.copy_(keys.roll(1, 1))
    assert not close(gradient(kept, start)[1], gradient(whole, start)[1], 1e-3)
    assert not text_first(lm, [f.encoded for f in folded("front", 2, 4)[1](0)])
    assert not text_first(folded("masked", 2, 4)[0], [f.encoded for f in folds(0)])


def test_few_texts_are_kept_where_there_is_little_room():
    lm, folds, loss, start = folded("causal", 2, 4)
    none, longest = Texts(lm, 1), 0
    for first in (0, 8):
        kept = loss(folds(first), none)
        assert close(gradient(kept, start)[1], gradient(loss(folds(first)), start)[1], 1e-11)
        longest = max(sum(t.nbytes for t in prefix.sites["self"]) for prefix in kept.prefixes)
    one = Texts(lm, longest)
    assert none.counts() == (0, 0, 0) and none.compiled == 16
    loss(folds(8), one)
    assert one.counts()[0] >= 1 and one.counts()[2] >= 1 and one.compiled == 8


def test_no_curvature_no_difference():
    """The control of the controls: over a flat support the three orders are one."""
    flat = Quadratic(torch.zeros(2, 3, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64))
    _, query = quadratics(2, 3)
    start = {"p": torch.randn(2, 3, dtype=torch.float64)}
    found = [
        meta_gradient(flat, query, start, rates_of(start), last(3), t).start for t in (product, finite_product, None)
    ]
    assert torch.equal(found[0]["p"], found[2]["p"])
    assert torch.equal(found[1]["p"], found[2]["p"])
