"Shape distances by their properties, other routes to them, and what is refused."
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes, sqrtm
from scipy.optimize import linprog
from scipy.stats import ortho_group

from protoalign import shape as module
from protoalign.shape import heldout_procrustes, heldout_soft_matching, procrustes_distance, procrustes_rotation, procrustes_similarity, soft_matching

FORMS = pytest.mark.parametrize('form', ['angular', 'chord', 'euclidean'])


def views(n, dx, dy, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dx))
    return x, x @ rng.normal(size=(dx, dy))/dx**.5 + rng.normal(size=(n, dy))


@pytest.mark.parametrize('n, dx, dy', [(30, 6, 6), (30, 4, 9), (10, 25, 6), (10, 25, 40)])
def test_by_kernels(n, dx, dy):
    "The nuclear norm of x'y is the fidelity of the two kernels: a route without features."
    x, y = (o - o.mean(0) for o in views(n, dx, dy))
    k, l = x @ x.T, y @ y.T
    root = sqrtm(k).real
    fidelity = np.trace(sqrtm(root @ l @ root).real)/np.sqrt(np.trace(k)*np.trace(l))
    assert procrustes_similarity(x + 2, 3*y) == pytest.approx(fidelity, abs=1e-5)
    assert float(procrustes_similarity(torch.tensor(x), torch.tensor(y))) == pytest.approx(procrustes_similarity(x, y), abs=1e-9)
    a, b = (np.pad(o, ((0, 0), (0, max(dx, dy) - o.shape[1]))) for o in (x, y))
    assert procrustes_similarity(x, y) == pytest.approx(orthogonal_procrustes(a, b)[1]/np.linalg.norm(a)/np.linalg.norm(b), abs=1e-10)


@FORMS
def test_rotation_is_no_distance(form):
    x, y = views(40, 8, 8)
    turn = ortho_group.rvs(8, random_state=0)
    assert procrustes_distance(x, x @ turn + 5, form) == pytest.approx(0, abs=1e-6)
    assert procrustes_distance(x @ turn, y, form) == pytest.approx(procrustes_distance(x, y, form), abs=1e-9)
    if form != 'euclidean': assert procrustes_distance(x, 9*y, form) == pytest.approx(procrustes_distance(x, y, form), abs=1e-9)
    assert procrustes_distance(x, x*np.geomspace(.1, 1, 8), form) > .05


@FORMS
def test_metric(form):
    systems = [views(12, 3 + 4*(s % 4), 2 + s, s)[1] for s in range(12)]
    d = np.array([[procrustes_distance(a, b, form) for b in systems] for a in systems])
    assert np.allclose(d, d.T, atol=1e-7) and (d[:, :, None] + d[None] - d[:, None]).min() > -1e-6


@FORMS
@pytest.mark.parametrize('n, dx, dy', [(9, 3, 4), (6, 8, 3)])
def test_gradient(form, n, dx, dy):
    t, u = (torch.tensor(o, requires_grad=True) for o in views(n, dx, dy))
    assert torch.autograd.gradcheck(lambda a, b: procrustes_distance(a, b, form), (t, u))


def test_components():
    x, y = views(40, 9, 12)
    scores = [o @ np.linalg.svd(o, full_matrices=False)[2][:3].T for o in (x - x.mean(0), y - y.mean(0))]
    assert procrustes_similarity(x, y, n_components=3) == pytest.approx(procrustes_similarity(*scores), abs=1e-10)
    with pytest.raises(ValueError, match=r'from 1 to 9 for a matrix of shape \(40, 9\), got 10'): procrustes_similarity(x, y, 10)


def test_heldout_alignment():
    "The rotation is SciPy's, nothing of the new stimuli enters it, and noise scores zero on average."
    x, y = views(60, 6, 6)
    assert np.allclose(procrustes_rotation(x, y), orthogonal_procrustes(y - y.mean(0), x - x.mean(0))[0])
    turn = ortho_group.rvs(6, random_state=1)
    assert heldout_procrustes(x[:30], x[:30] @ turn + 4, x[30:], x[30:] @ turn + 4) == pytest.approx(1)
    z = x - x[:30].mean(0)
    assert heldout_procrustes(z[:30], -z[:30], z[30:], z[30:]) == pytest.approx(-1)
    null = [heldout_procrustes(*np.random.default_rng(s).normal(size=(2, 30, 8)), *np.random.default_rng(s + 999).normal(size=(2, 30, 8))) for s in range(200)]
    assert abs(np.mean(null)) < 4*np.std(null)/200**.5
    with pytest.raises(ValueError, match='own features again'): heldout_procrustes(x, y, x[:, :5], y)


@pytest.mark.parametrize('nx, ny', [(4, 4), (3, 2), (2, 6), (1, 5)])
def test_soft_matching_by_hand(nx, ny):
    rng = np.random.default_rng(nx*10 + ny)
    x, y = rng.normal(size=(20, nx)), rng.normal(size=(20, ny))
    r, m = np.corrcoef(x.T, y.T)[:nx, nx:], np.lcm(nx, ny)
    twins = np.repeat(np.repeat(r, m//nx, axis=0), m//ny, axis=1)
    best = max(twins[range(m), list(p)].mean() for p in permutations(range(m)))
    found = soft_matching(x, y)
    assert found.similarity == pytest.approx(best, abs=1e-12) and found.distance == pytest.approx(np.sqrt(2 - 2*best))
    assert np.allclose(found.plan.sum(1), 1/nx) and np.allclose(found.plan.sum(0), 1/ny)
    units = [o/np.linalg.norm(o, axis=0) for o in (x - x.mean(0), y - y.mean(0))]
    cost = np.square(units[0][:, :, None] - units[1][:, None]).sum(0)
    assert found.distance**2 == pytest.approx((found.plan*cost).sum(), abs=1e-10)


def test_linear_program_and_assignment_agree(monkeypatch):
    rng = np.random.default_rng(0)
    gain = rng.normal(size=(6, 9))
    by_assignment = module._transport(gain)
    monkeypatch.setattr(module, 'lcm', lambda a, b: 10**9)
    by_program = module._transport(gain)
    assert (by_program*gain).sum() == pytest.approx((by_assignment*gain).sum(), abs=1e-9)
    assert np.allclose(by_program.sum(1), 1/6) and np.allclose(by_program.sum(0), 1/9)


def test_many_unequal_units():
    "97 against 101 units: no small common multiple. A linear program of the dual is the second route."
    x, y = views(50, 97, 101)
    found = soft_matching(x, y)
    r = np.corrcoef(x.T, y.T)[:97, 97:]
    pairs = np.zeros((97*101, 198))
    pairs[np.arange(97*101), np.repeat(np.arange(97), 101)] = -1
    pairs[np.arange(97*101), 97 + np.tile(np.arange(101), 97)] = -1
    dual = linprog(np.repeat([1/97, 1/101], [97, 101]), A_ub=pairs, b_ub=-r.ravel(), bounds=(None, None))
    assert found.similarity == pytest.approx(dual.fun, abs=1e-8)


def test_units_are_matched_not_mixed():
    x, _ = views(100, 12, 3)
    order = np.random.default_rng(0).permutation(12)
    found = soft_matching(x, 3*x[:, order] + 1)
    assert found.distance == pytest.approx(0, abs=1e-6) and (found.plan[order, range(12)] > 0).all()
    assert soft_matching(x, x @ ortho_group.rvs(12, random_state=0)).distance > .5
    assert soft_matching(x, np.hstack([x, x])).distance == pytest.approx(0, abs=1e-6)
    assert soft_matching(torch.tensor(x), torch.tensor(x)).similarity == pytest.approx(1)


def test_heldout_matching():
    x, _ = views(80, 10, 3)
    order = np.random.default_rng(0).permutation(10)
    assert heldout_soft_matching(x[:40], x[:40, order], x[40:], x[40:, order]) == pytest.approx(1)
    with pytest.raises(ValueError, match=r'\(10, 10\).*\(40, 9\)'): heldout_soft_matching(x[:40], x[:40], x[40:, :9], x[40:])


@pytest.mark.parametrize('call, match', [
    (lambda x, y: procrustes_similarity(x, y[1:]), 'same stimuli'), (lambda x, y: procrustes_similarity(x[:2], y[:2]), 'at least 3'),
    (lambda x, y: procrustes_distance(x, y, 'cosine'), "got 'cosine'"), (lambda x, y: soft_matching(x, 0*y), '6 of 6 units of the second'),
    (lambda x, y: soft_matching(np.where(x > 1, np.nan, x), y), 'NaN')])
def test_refused(call, match):
    with pytest.raises(ValueError, match=match): call(*views(20, 5, 6))


def test_flat_side_has_no_angle():
    x, _ = views(20, 5, 6)
    assert np.isnan(procrustes_similarity(x, np.ones((20, 3)))) and np.isnan(procrustes_distance(x, np.ones((20, 3))))


@pytest.mark.parametrize('dx, dy', [(400, 300), (400, 5), (6, 300)])
def test_wide_tensors_are_narrowed(dx, dy):
    "No product larger than stimuli by stimuli, and the gradient of the product that was there."
    x, y = views(20, dx, dy)
    a, b = (torch.tensor(o, requires_grad=True) for o in (x, y))
    found = procrustes_similarity(a, b)
    assert found.item() == pytest.approx(procrustes_similarity(x, y), abs=1e-10)
    assert max(o.shape[1] for o in module._centred(a, b, None)) <= 20
    whole = torch.linalg.matrix_norm((a - a.mean(0)).T @ (b - b.mean(0)), 'nuc')/((a - a.mean(0)).norm()*(b - b.mean(0)).norm())
    for one, other in zip(torch.autograd.grad(found, (a, b)), torch.autograd.grad(whole, (a, b))): torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-6)
