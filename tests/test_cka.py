"CKA by other packages, by its invariances, in blocks, in batches, and where it has no value."
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform

from protoalign import cka as module
from protoalign.cka import MinibatchCKA, cka_matrix, hsic, linear_cka, plot_cka, rbf_cka
from protoalign.data import planted_world

BOTH = pytest.mark.parametrize('cka', [linear_cka, rbf_cka])
SHAPES = [(40, 3, 5), (40, 60, 5), (40, 5, 60), (30, 200, 300), (4, 2, 9)]


def views(n, dx, dy, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dx))
    return x, x @ rng.normal(size=(dx, dy))/dx**.5 + rng.normal(size=(n, dy))


def by_definition(k, l, debiased=True):
    "CKA of two kernel matrices, each symbol of the formula a matrix."
    n, one = len(k), np.ones(len(k))
    def u(k, l):
        if not debiased: return np.trace(k @ (np.eye(n) - 1/n) @ l @ (np.eye(n) - 1/n))
        k, l = k*(1 - np.eye(n)), l*(1 - np.eye(n))
        return np.trace(k @ l) + k.sum()*l.sum()/((n-1)*(n-2)) - 2/(n-2)*one @ k @ l @ one
    return u(k, l)/np.sqrt(u(k, k)*u(l, l))


def gaussian(x, fraction):
    d = pdist(x, 'sqeuclidean')
    return np.exp(-squareform(d)/(2*fraction**2*np.median(d)))


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('debiased', [True, False])
def test_by_definition(shape, debiased, monkeypatch):
    x, y = views(*shape)
    expected = [by_definition(x @ x.T, y @ y.T, debiased), *(by_definition(gaussian(x, f), gaussian(y, f), debiased) for f in (.4, 1.5))]
    for block, whole in ((2**24, 2**26), (90, 0), (2**24, 0)):
        monkeypatch.setattr(module, 'BLOCK', block)
        monkeypatch.setattr(module, 'WHOLE', whole)
        found = [linear_cka(x + 3, y - 2, debiased), *(rbf_cka(x, y, f, debiased) for f in (.4, 1.5))]
        assert np.allclose(found, expected, atol=1e-9), (block, whole)


@pytest.mark.parametrize('shape', SHAPES)
def test_peers(shape):
    from cka.hsic import hsic as theirs
    from ckatorch.core import cka_base
    x, y = views(*shape)
    t, u = torch.tensor(x), torch.tensor(y)
    for debiased in (True, False): assert linear_cka(x, y, debiased) == pytest.approx(float(cka_base(t, u, unbiased=debiased)), abs=1e-8)
    xy, xx, yy = theirs((t @ t.T)[None], (u @ u.T)[None])
    for a, b, h in ((x, y, xy[0, 0]), (x, x, xx[0]), (y, y, yy[0])): assert float(hsic(a, b)) == pytest.approx(float(h), rel=1e-8)


def test_whitened_cosine_of_rdms_is_biased_cka():
    from rsatoolbox.rdm import RDMs, compare
    x, y = views(25, 10, 30)
    theirs = compare(*[RDMs(pdist(o, 'sqeuclidean')[None]) for o in (x, y)], method='cosine_cov')[0, 0]
    assert linear_cka(x, y, debiased=False) == pytest.approx(theirs, abs=1e-8)


@BOTH
def test_invariances(cka):
    x, y = views(60, 12, 20)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    for changed in (x @ turn, 1e-12*x, 1e12*x, x + 100, -x, np.hstack([x, np.zeros((60, 5))])):
        assert cka(changed, y) == pytest.approx(cka(x, y), abs=1e-9)
    order = np.random.default_rng(2).permutation(60)
    assert cka(x[order], y[order]) == pytest.approx(cka(x, y), abs=1e-12) == cka(y, x)
    assert abs(cka(x*np.geomspace(.01, 1, 12), y) - cka(x, y)) > .02


@BOTH
def test_null_mean_is_zero(cka):
    "Over random orders of one side, within four standard errors; the biased score is far from it."
    x, y = views(30, 40, 50)
    rng = np.random.default_rng(0)
    null = [cka(x, y[rng.permutation(30)]) for _ in range(300)]
    assert abs(np.mean(null)) < 4*np.std(null)/300**.5
    assert cka(x, y[::-1], debiased=False) > .4


@BOTH
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 2e-4), (torch.bfloat16, .03)])
def test_torch_agrees(cka, dtype, tolerance):
    x, y, _ = planted_world(n_stimuli=100, noise=1.)
    assert float(cka(*(torch.tensor(o + 5).to(dtype) for o in (x, y)))) == pytest.approx(cka(x, y), abs=tolerance)
    assert cka(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(cka(x, y), abs=1e-6)


@BOTH
@pytest.mark.parametrize('shape', [(8, 3, 4), (6, 20, 9)])
def test_gradient(cka, shape):
    t, u = (torch.tensor(o, requires_grad=True) for o in views(*shape))
    assert torch.autograd.gradcheck(cka, (t, u))
    assert torch.autograd.gradcheck(lambda a, b: cka(a, b, debiased=False), (t, u))


@pytest.mark.parametrize('kernel, one', [('linear', linear_cka), ('rbf', rbf_cka)])
@pytest.mark.parametrize('n, d', [(200, 6), (20, 90)])
def test_matrix_is_its_cells(kernel, one, n, d):
    "By pairs of features (many stimuli) and by one walk through the kernels (few)."
    x, y = views(n, d, 2*d)
    xs, ys = dict(a=x, b=x[:, :3], c=np.random.default_rng(0).normal(size=(n, 5))), dict(v=y, w=y[::-1])
    table = cka_matrix(xs, ys, kernel=kernel)
    assert list(table.index) == list('abc') and list(table.columns) == list('vw')
    assert np.allclose(table, [[one(a, b) for b in ys.values()] for a in xs.values()], atol=1e-10)
    tensors = [{k: torch.tensor(o.copy()) for k, o in part.items()} for part in (xs, ys)]
    assert np.allclose(cka_matrix(*tensors, kernel=kernel), table, atol=1e-10)
    plot_cka(table)


def test_own_terms_are_made_once(monkeypatch):
    made = []
    real = module._feature_trace
    monkeypatch.setattr(module, '_feature_trace', lambda x, y: made.append(x is y) or real(x, y))
    x, y = views(300, 5, 6)
    cka_matrix({i: x for i in range(3)}, {i: y for i in range(4)})
    assert sum(made) == 7 and len(made) == 7 + 12


@pytest.mark.parametrize('n, dx, dy, expected', [(20, 200, 300, ['kernels']*3), (300, 5, 6, ['features']*3), (100, 3, 400, ['features', 'features', 'kernels'])])
def test_each_term_goes_its_own_way(n, dx, dy, expected, monkeypatch):
    ways = []
    for name, f in (('features', module._feature_trace), ('kernels', module._kernel_sums)):
        monkeypatch.setattr(module, f.__name__, lambda *a, name=name, f=f: ways.append(name) or f(*a))
    x, y = (module._Side(o) for o in views(n, dx, dy))
    for a, b in ((x, y), (x, x), (y, y)): module._trace(a, b)
    assert ways == expected


def test_batches():
    "The accumulator is Nguyen et al.'s ratio of sums, and without bias for any size of batch; the mean of ratios is not."
    from ckatorch.core import cka_batch
    x, y = views(120, 10, 15)
    stream = MinibatchCKA()
    for r in np.split(np.arange(120), 6): stream.update(x[r], y[r])
    assert stream.score() == pytest.approx(float(cka_batch(*[torch.tensor(np.stack(np.split(o, 6))) for o in (x, y)])), abs=1e-9)
    assert MinibatchCKA().update(x, y).score() == linear_cka(x, y)
    scores = []
    for seed in range(40):
        a, b = views(200, 30, 30, seed)
        order = np.random.default_rng(seed).permutation(200)
        s = MinibatchCKA()
        for r in np.split(order, [7, 30, 100]): s.update(a[r], b[r])
        scores.append((s.score(), linear_cka(a, b)))
    assert abs(np.diff(scores, axis=1)).mean() < .1 and abs(np.mean(np.diff(scores, axis=1))) < .02


def test_batches_share_scale_and_kernel():
    "A louder batch counts for what it is; a first batch that is flat does not fix a scale."
    x, y = views(60, 8, 9)
    x[30:] *= 50
    def summed(rows): return np.sum([[float(hsic(*o)) for o in ((x[r], y[r]), (x[r], x[r]), (y[r], y[r]))] for r in rows], axis=0)
    rows = np.split(np.arange(60), 3)
    stream, late = MinibatchCKA(), MinibatchCKA()
    late.update(np.ones((10, 8)), y[:10])
    for r in rows: stream.update(x[r], y[r]), late.update(x[r], y[r])
    xy, xx, yy = summed(rows)
    assert stream.score() == pytest.approx(xy/np.sqrt(xx*yy), abs=1e-10)
    assert late.score() == pytest.approx(xy/np.sqrt(xx*(yy + float(hsic(y[:10], y[:10])))), abs=1e-10)
    rbf = MinibatchCKA(kernel='rbf').update(x, y)
    assert rbf.scales[0, None][1] is rbf.update(x[:30], y[:30]).scales[0, None][1]


def test_tables_from_batches():
    x, y = views(90, 6, 7)
    stream = MinibatchCKA()
    for r in np.split(np.arange(90), 3): stream.update(dict(a=x[r], b=x[r, :2]), dict(v=y[r]))
    one = MinibatchCKA()
    for r in np.split(np.arange(90), 3): one.update(x[r, :2], y[r])
    assert stream.score().loc['b', 'v'] == pytest.approx(one.score(), abs=1e-10)


def test_memory_of_blocks(monkeypatch):
    "No n × n array, no copy of the data: what is allocated stays under a few blocks."
    monkeypatch.setattr(module, 'BLOCK', 2**16)
    monkeypatch.setattr(module, 'WHOLE', 2**16)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6000, 60)).astype(np.float32), rng.normal(size=(6000, 900)).astype(np.float32)
    y[:, :60] += x
    tracemalloc.start()
    score = linear_cka(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6 < y.nbytes < 6000**2*8
    monkeypatch.undo()
    assert score == pytest.approx(linear_cka(x, y), abs=1e-9)


@BOTH
def test_no_value(cka):
    x, _ = views(20, 5, 5)
    for other in (np.full((20, 3), .1), np.eye(20), np.zeros((20, 2)), np.full((20, 3), 1e8) + 1e-9):
        with pytest.warns(match='equally alike'): assert np.isnan(cka(x, other))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert np.isfinite(cka(x, np.repeat(np.eye(4), 5, axis=0)[:, :2] + 0))
    with pytest.warns(match='one, at most'): assert np.isnan(cka(x, np.eye(20)[:, :1]))
    assert cka(x, np.eye(20)[:, :1], debiased=False) > 0 if cka is linear_cka else True


def test_no_width():
    x, _ = views(20, 5, 5)
    with pytest.warns(match='median distance is 0'): assert np.isnan(rbf_cka(x, np.eye(20)[:, :2]))


def test_one_flat_layer_costs_only_its_row():
    x, y = views(20, 5, 5)
    with pytest.warns(match='equally alike'): table = cka_matrix(dict(a=x, flat=np.ones((20, 4))), dict(v=y))
    assert table.loc['a', 'v'] == pytest.approx(linear_cka(x, y)) and np.isnan(table.loc['flat', 'v'])
    plot_cka(table)


@pytest.mark.parametrize('call, match', [
    (lambda x, y: linear_cka(x, y[1:]), r'same stimuli on both sides, got shapes \(20, 5\) and \(19, 6\)'),
    (lambda x, y: linear_cka(x[:3], y[:3]), 'at least 4 stimuli, got 3'),
    (lambda x, y: linear_cka(x, torch.tensor(y)), 'two arrays or two tensors'),
    (lambda x, y: linear_cka(x, np.where(y > 2, np.nan, y)), 'NaN or infinite'),
    (lambda x, y: rbf_cka(x, y, 0), 'must be positive, got 0'),
    (lambda x, y: MinibatchCKA(kernel='poly'), "'linear' or 'rbf', got 'poly'"),
    (lambda x, y: MinibatchCKA().score(), 'no batch yet'),
    (lambda x, y: MinibatchCKA().update(dict(a=x), y).update(dict(b=x), y), 'first had'),
    (lambda x, y: MinibatchCKA(False).update(x, y).update(x, y), 'only where it is unbiased'),
    (lambda x, y: cka_matrix({}, dict(v=y)), 'got 0 and 1'),
    (lambda x, y: cka_matrix(dict(a=x, b=x[1:]), dict(v=y)), 'same stimuli')])
def test_refused(call, match):
    x, y = views(20, 5, 6)
    y[0, 0] = 3
    with pytest.raises(ValueError, match=match): call(x, y)


def test_large_arrays_are_checked_too(monkeypatch):
    monkeypatch.setattr(module, 'WHOLE', 50)
    x, y = views(20, 5, 6)
    with pytest.raises(ValueError, match=r'same stimuli.*\(20, 5\).*\(19, 6\)'): linear_cka(x, y[1:])
    with pytest.raises(ValueError, match='NaN or infinite'): linear_cka(x, np.where(np.arange(6) == 2, np.inf, y))
    with pytest.raises(ValueError, match='at least 4 stimuli, got 3'): linear_cka(np.tile(x[:3], 9), y[:3])
