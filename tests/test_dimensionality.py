"Numbers of directions against closed forms, planted truths and averages by definition."
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from protoalign.data import planted_world
from protoalign.dimensionality import dimensionality, effective_rank, entropy_rank, participation_ratio, two_nn
from protoalign.reduce import effective_rank as rank_of_pca, fit_pca


@pytest.mark.parametrize('n, d', [(4, 3), (6, 2), (6, 9)])
def test_traces_by_definition(n, d):
    "Averages over all quadruples of different stimuli."
    x = np.random.default_rng(n*d).normal(size=(n, d))**3 + 2
    i, j, k, l = (x[o] for o in np.array(list(permutations(range(n), 4))).T)
    top, below = ((((i - j)**2).sum(1)*((k - l)**2).sum(1)).mean()/4, (((i - j)*(k - l)).sum(1)**2).mean()/4)
    assert participation_ratio(x) == pytest.approx(top/below, rel=1e-9)
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)**2
    assert participation_ratio(x, debiased=False) == pytest.approx(s.sum()**2/(s**2).sum(), rel=1e-10)


@pytest.mark.parametrize('noise', ['normal', 'exponential'])
def test_participation_over_many_draws(noise):
    "The two traces are unbiased for skewed data too; the plain ratio follows its closed form for Gaussian data."
    rng = np.random.default_rng(0)
    n, d = 20, 60
    draws = [getattr(rng, noise)(size=(n, d)) for _ in range(200)]
    assert np.mean([participation_ratio(x) for x in draws]) == pytest.approx(d, rel=.05)
    plain = np.mean([participation_ratio(x, debiased=False) for x in draws])
    if noise == 'normal': assert plain == pytest.approx((d*(n - 1) + 2)/(n + d), rel=.01)
    assert plain < .3*d


def test_invariances():
    x = np.random.default_rng(0).normal(size=(40, 6)) @ np.diag([3, 2, 1, 1, .5, .1])
    turn = ortho_group.rvs(6, random_state=0)
    for f in (participation_ratio, effective_rank, lambda o: two_nn(o)[0]):
        for changed in (x @ turn, 1e-9*x, 1e9*x, x + 50, np.hstack([x, np.ones((40, 3))])): assert f(changed) == pytest.approx(f(x), rel=1e-6)
        assert f(torch.tensor(x)) == pytest.approx(f(x), rel=1e-9)
    assert effective_rank(x) > participation_ratio(x, debiased=False)


@pytest.mark.parametrize('k', [1, 3, 7])
def test_planted_rank(k):
    rng = np.random.default_rng(k)
    u = np.linalg.qr(np.c_[np.ones(30), rng.normal(size=(30, k))])[0][:, 1:]
    x = u @ ortho_group.rvs(9, random_state=k)[:k] + 5
    assert effective_rank(x) == pytest.approx(k, abs=1e-6)
    assert participation_ratio(x, debiased=False) == pytest.approx(k, abs=1e-9)


def test_same_as_of_the_pca():
    acts = planted_world(noise=1.)[0]
    assert rank_of_pca(fit_pca(acts, 500)) == pytest.approx(effective_rank(acts), rel=1e-9)
    few = fit_pca(acts, 5)
    assert rank_of_pca(few) == pytest.approx(entropy_rank(few.singular_values_), rel=1e-12)


@pytest.mark.parametrize('f', [participation_ratio, lambda o: participation_ratio(o, False), effective_rank])
@pytest.mark.parametrize('shape', [(8, 3), (5, 9)])
def test_gradient(f, shape):
    t = torch.tensor(np.random.default_rng(0).normal(size=shape), requires_grad=True)
    if shape[0] > shape[1] or f is not effective_rank: assert torch.autograd.gradcheck(f, t)
    f(t).backward()
    assert t.grad.isfinite().all()


def test_two_nn():
    "By hand, in planted dimensions, and the interval covers for independent draws of a Pareto law."
    line = np.array([0, 1, 3, 7, 15, 31.])[:, None]
    assert two_nn(line)[0] == pytest.approx(5/np.log([3, 2, 1.5, 1.5, 1.5, 1.5]).sum())
    for d in (1, 2, 4):
        x = np.random.default_rng(d).uniform(size=(2000, d)) @ ortho_group.rvs(30, random_state=d)[:d]
        found, low, high = two_nn(x)
        assert found == pytest.approx(d, rel=.08) and low < found < high
    narrow, wide = two_nn(x, .5), two_nn(x, .99)
    assert wide[1] < narrow[1] < narrow[2] < wide[2]


def test_no_value():
    assert np.isnan(participation_ratio(np.ones((9, 3)))) and np.isnan(effective_rank(np.ones((9, 3)))) and np.isnan(entropy_rank(np.zeros(3)))
    table = dimensionality({'twice': np.repeat(np.random.default_rng(0).normal(size=(9, 3)), 2, axis=0), 'tensor': torch.eye(8)})
    assert np.isnan(table.two_nn['twice']) and table.n_features['tensor'] == 8 and table.effective_rank['tensor'] == pytest.approx(7, rel=1e-6)


@pytest.mark.parametrize('call, match', [
    (lambda x: participation_ratio(x[:3]), r'at least 4 stimuli, got a matrix of shape \(3, 5\)'), (lambda x: effective_rank(x[:1]), 'at least 2'),
    (lambda x: two_nn(x[:2]), 'at least 3'), (lambda x: two_nn(np.vstack([x, x[:2]])), '4 of 22 stimuli'), (lambda x: participation_ratio(x[0]), 'matrix')])
def test_refused(call, match):
    with pytest.raises(ValueError, match=match): call(np.random.default_rng(0).normal(size=(20, 5)))


@pytest.mark.parametrize('apart', [0, 1e-14])
def test_table_and_two_nn_agree_on_twins(apart):
    "Responses that differ by rounding alone were no twins to the table, and stopped it."
    x = np.random.default_rng(0).normal(size=(30, 5))
    x[7] = x[3] + apart
    with pytest.raises(ValueError, match='2 of 30 stimuli have the response of another one'): two_nn(x)
    table = dimensionality(dict(twins=x, others=x[8:]))
    assert table.filter(like='two_nn').isna().all(axis=1).tolist() == [True, False]
    assert table.loc['others', ['two_nn', 'two_nn_low', 'two_nn_high']].tolist() == pytest.approx(two_nn(x[8:]))
