"RSA against other libraries over many shapes, at the borders of blocks, in 32 bits, and at the size its pages promise."
import subprocess, sys

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata, spearmanr

from conftest import ROOT, needs_data
from protoalign import ranks as ranks_page, rsa as rsa_page
from protoalign.crossnobis import average_folds, crossnobis, cv_correlation
from protoalign.noise import noise_whitener
from protoalign.ranks import ranks, spearman
from protoalign.rsa import is_square_rdm, plot_rdms, rdm, rsa, rsa_ceiling, rsa_subjects
from protoalign.rsa_models import category_contrast, category_rdm, partial_rsa, regression_rsa

METHODS = {'spearman': 'spearman', 'rho-a': 'rho-a', 'tau-a': 'tau-a', 'pearson': 'corr', 'cosine': 'cosine', 'whitened-pearson': 'corr_cov', 'whitened-cosine': 'cosine_cov'}
DIFFERENTIABLE = 'pearson', 'cosine', 'whitened-pearson', 'whitened-cosine'


@pytest.mark.parametrize('n', [2, 3, 17, 64, 65, 200])
@pytest.mark.parametrize('metric', ['correlation', 'cosine', 'euclidean', 'sqeuclidean'])
def test_rdm_equals_scipy_across_blocks(n, metric, monkeypatch):
    monkeypatch.setattr(rsa_page, '_ROWS', 32)
    x = np.random.default_rng(n).normal(size=(n, 9)) + 5
    np.testing.assert_allclose(rdm(x, metric), pdist(x, metric), rtol=1e-9, atol=1e-10)
    single = rdm(x.astype(np.float32), metric)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, pdist(x, metric), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize('metric', ['correlation', 'cosine', 'euclidean', 'sqeuclidean', 'mahalanobis', 'sqmahalanobis'])
@pytest.mark.parametrize('kind', ['float32', 'float64'])
def test_rdm_of_a_tensor(metric, kind):
    import torch
    x = np.random.default_rng(0).normal(size=(12, 7)).astype(kind)
    noise = noise_whitener(np.random.default_rng(1).normal(size=(5, 7))) if 'mahalanobis' in metric else None
    found = rdm(torch.tensor(x), metric, noise)
    assert found.dtype == getattr(torch, kind)
    np.testing.assert_allclose(found.numpy(), rdm(x, metric, noise), atol=1e-12 if kind == 'float64' else 1e-4)


def test_gradient_of_the_mahalanobis_distance():
    import torch
    whitener = noise_whitener(np.random.default_rng(1).normal(size=(5, 7)))
    x = torch.tensor(np.random.default_rng(0).normal(size=(5, 7)), requires_grad=True)
    assert torch.autograd.gradcheck(lambda o: rdm(o, 'mahalanobis', whitener), x)


@pytest.mark.parametrize('dtype', ['f2', 'f4', 'f8', 'i1', 'u2', 'i4', 'i8', '?'])
@pytest.mark.parametrize('n', [1, 2, 99, 100, 101, 1000])
def test_ranks_equal_scipy_across_blocks(dtype, n, monkeypatch):
    monkeypatch.setattr(ranks_page, '_BLOCK', 100)
    rng = np.random.default_rng(n)
    for v in (rng.integers(-50, 50, n), 40*rng.normal(size=n), np.zeros(n), np.arange(n)[::-1]):
        v = v.astype(dtype)
        np.testing.assert_array_equal(ranks(v), rankdata(v))


def test_ranks_of_awkward_floats():
    tiny = np.finfo(np.float32).smallest_subnormal
    v = np.array([0., -0., np.inf, -np.inf, tiny, -tiny, 1, np.nextafter(np.float32(1), np.float32(2)), -1, np.inf], dtype=np.float32)
    np.testing.assert_array_equal(ranks(v), rankdata(v))
    np.testing.assert_array_equal(ranks(v.astype(float)), rankdata(v))
    np.testing.assert_array_equal(ranks(np.repeat(v, 2)[::2]), rankdata(v))


def test_memory_of_ranks(monkeypatch):
    "Beside the values: their order and their ranks, 12 bytes, one mark, and a block."
    import tracemalloc
    monkeypatch.setattr(ranks_page, '_BLOCK', 1 << 15)
    rng, n = np.random.default_rng(0), 1 << 21
    for v in (rng.normal(size=n), rng.integers(0, 5, n).astype(float)):
        tracemalloc.start()
        found = ranks_page._double_ranks(v)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert np.array_equal(found, 2*rankdata(v)) and peak < (15 if len(np.unique(v)) > 5 else 22)*n


@pytest.mark.parametrize('levels', [1, 2, 7, 1000])
def test_runs_of_ties_longer_than_a_block(levels, monkeypatch):
    monkeypatch.setattr(ranks_page, '_BLOCK', 16)
    for seed, dtype in enumerate((float, np.float32, np.int8, np.int64)):
        v = np.random.default_rng(seed).integers(0, min(levels, 100), 200).astype(dtype)
        assert np.array_equal(ranks(v), rankdata(v))


def test_spearman_of_many_float32_cells():
    "Sums in 32 bits would overflow; distances near 1 tie heavily."
    rng = np.random.default_rng(0)
    a = (1 - .1*rng.standard_normal(2_000_000)).astype(np.float32)
    b = (a + .2*rng.standard_normal(len(a), dtype=np.float32)).astype(np.float32)
    assert len(np.unique(a)) < .9*len(a)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-10)


def made(n=15, seed=0, d=6):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, d))
    return shared + rng.normal(size=(n, d)), shared + rng.normal(size=(n, d))


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('levels', [0, 3])
@pytest.mark.parametrize('n', [4, 15, 40])
def test_comparisons_equal_rsatoolbox(method, levels, n):
    from rsatoolbox.rdm import RDMs, compare
    a, b = (rdm(o, 'euclidean') for o in made(n))
    if levels: a = np.round(levels*a/a.max())/levels
    assert rsa(a, b, method) == pytest.approx(compare(RDMs(a[None]), RDMs(b[None]), method=METHODS[method]).item(), abs=1e-8)
    assert rsa(b, a, method) == pytest.approx(rsa(a, b, method), abs=1e-12)


@pytest.mark.parametrize('method', METHODS)
def test_twins_and_gradients(method):
    import torch
    x, y = made(7)
    a, b = torch.tensor(x, requires_grad=True), torch.tensor(y)
    found = rsa(a, b, method, 'euclidean')
    assert float(getattr(found, 'detach', lambda: found)()) == pytest.approx(rsa(x, y, method, 'euclidean'), abs=1e-10)
    single = rsa(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32), method, 'euclidean')
    assert float(single) == pytest.approx(rsa(x, y, method, 'euclidean'), abs=1e-5)
    if method in DIFFERENTIABLE: assert torch.autograd.gradcheck(lambda o: rsa(o, b, method, 'euclidean'), a)
    else: assert isinstance(found, float)


@pytest.mark.parametrize('method', METHODS)
def test_no_score_is_nan_with_a_warning(method):
    a, b = (rdm(o) for o in made())
    with pytest.warns(UserWarning, match='1 of 2 RDMs hold NaN or do not vary'): assert np.isnan(rsa(np.where(a == a[3], np.nan, a), b, method))
    flat = np.full_like(a, 0. if 'cosine' in method else .3)
    with pytest.warns(UserWarning, match='1 of 2 RDMs hold NaN or do not vary'): assert np.isnan(rsa(flat, b, method))


def test_refusals():
    x, y = made()
    for call, said in ((lambda: rdm(x[:1]), 'at least 2 stimuli'), (lambda: rsa(x, y[:-1]), r'\(15, 6\) and \(14, 6\)'), (lambda: rsa(x[:2], y[:2]), 'at least 3 stimuli'),
                       (lambda: rsa(x, y, 'kendall'), 'unknown method'), (lambda: rdm(np.where(x == x[2, 2], np.nan, x)), 'holds NaN'),
                       (lambda: rdm(squareform(rdm(x))), 'square RDM'), (lambda: rsa(np.arange(7.), np.arange(7.), 'whitened-cosine'), '7 cells are no condensed RDM'),
                       (lambda: rdm(x, noise=np.eye(6)), 'the others use none'), (lambda: rdm(x, 'mahalanobis', np.eye(5)), r'is \(6, 6\), got \(5, 5\)'),
                       (lambda: rdm(x, 'mahalanobis', np.tril(np.ones((6, 6)))), 'symmetric'),
                       (lambda: rsa_ceiling([rdm(x)]), 'at least 2 subjects'), (lambda: rsa_ceiling([rdm(x), rdm(y)*np.nan]), '1 of 2 RDMs hold NaN'),
                       (lambda: partial_rsa(rdm(x), rdm(y), {}), 'without controls'), (lambda: partial_rsa(rdm(x), rdm(y)[:-1], {'x': rdm(x)}), 'same stimuli'),
                       (lambda: category_contrast(rdm(x), ['a']*14 + ['b'], of='b'), 'no pairs within'), (lambda: category_contrast(rdm(x), ['a', 'b']), '2 labels for an RDM of 15'),
                       (lambda: noise_whitener(np.ones((2, 5))), 'at least 3 residuals'), (lambda: crossnobis(np.ones((5, 3))), 'at least 2 stimuli and 2 folds')):
        with pytest.raises(ValueError, match=said): call()


@pytest.mark.parametrize('kind', ['float64', 'float32', 'tensor', 'tensor with gradient'])
def test_a_square_rdm_with_rounding_is_no_patterns(kind):
    "1 - corrcoef has neither exact zeros nor exact symmetry; every function says so, and no patterns are refused."
    import torch
    x, y = (1 - np.corrcoef(o) for o in made(30))
    assert np.diag(x).any()
    cell = x[4, 7]
    x[4, 7] += 1e-9
    asked = {'float64': lambda o: o, 'float32': np.float32, 'tensor': torch.tensor, 'tensor with gradient': lambda o: torch.tensor(o, requires_grad=True)}[kind]
    for call in (lambda: rdm(asked(x)), lambda: rsa(asked(x), asked(y)), lambda: rsa_subjects(np.stack([x, y]), {'a': asked(x)})):
        with pytest.raises(ValueError, match='square RDM'): call()
    x[4, 7] = cell + 1e-3
    assert not is_square_rdm(asked(x)) and not is_square_rdm(asked(made(30)[0])) and not is_square_rdm(asked(x[:, :20]))


def test_models_take_a_square_rdm_with_rounding():
    from protoalign.inference import rdm_stack
    x, y = (1 - np.corrcoef(o) for o in made(30))
    a, b = (squareform(o, checks=False) for o in (x, y))
    assert partial_rsa(x, y, {'c': y[::-1, ::-1]}) == pytest.approx(partial_rsa(a, b, {'c': squareform(y[::-1, ::-1], checks=False)}), abs=1e-9)
    assert regression_rsa(x, {'y': y}).weight[0] == pytest.approx(regression_rsa(a, {'y': b}).weight[0], abs=1e-9)
    with pytest.raises(ValueError, match='square RDM'): rdm_stack([x, y])
    with pytest.raises(ValueError, match='at least 2 subjects'): rsa_ceiling(x)


@pytest.mark.parametrize('dtype', [np.float32, float])
@pytest.mark.parametrize('tensor', [False, True])
@pytest.mark.parametrize('d', [5, 512, 20_000])
def test_equal_patterns_are_tied(dtype, tensor, d):
    "Every stimulus three times, in another place: distance 0, not the rounding of a product."
    import torch
    rng = np.random.default_rng(d)
    which = rng.permutation(np.repeat(np.arange(12), 3))
    x, (i, j) = (rng.normal(size=(12, d)) + 3)[which].astype(dtype), np.triu_indices(36, 1)
    for metric in ('correlation', 'cosine', 'euclidean', 'sqeuclidean'):
        found = np.asarray(rdm(torch.tensor(x) if tensor else x, metric))
        assert found.dtype == dtype and ((found == 0) == (which[i] == which[j])).all()


def test_categories_make_an_rdm_of_two_values():
    labels, y = np.random.default_rng(0).integers(0, 5, 60), made(60)[1]
    onehot = np.eye(5)[labels]
    for o in (onehot, onehot.astype(np.float32)):
        assert len(np.unique(rdm(o))) == 2
        assert rsa(rdm(o).astype(float), rdm(y)) == pytest.approx(rsa(category_rdm(labels), rdm(y)), abs=1e-12)


@pytest.mark.parametrize('metric', ['correlation', 'euclidean'])
def test_gradient_of_equal_patterns_is_finite(metric):
    import torch
    x = torch.tensor(made()[0][[0, 0, 1, 2, 3]], requires_grad=True)
    rdm(x, metric).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize('method', METHODS)
def test_the_ceiling_is_a_ceiling(method):
    "No RDM found by climbing beats the upper bound; for tau-a the mean of ranks is only close to the best."
    people = np.stack([rdm(made(8, seed=0)[0] + .7*np.random.default_rng(s).normal(size=(8, 6)), 'euclidean') for s in range(5)])
    lower, upper = rsa_ceiling(people, method)
    assert lower < upper <= 1
    rng, best = np.random.default_rng(0), people.mean(0)
    def mean_score(d): return np.mean([rsa(o, d, method) for o in people])
    reached = mean_score(best)
    for _ in range(400):
        step = best + .05*best.std()*rng.normal(size=best.shape)
        if (score := mean_score(step)) > reached: best, reached = step, score
    assert lower < reached <= upper + (.02 if method == 'tau-a' else 1e-9)


def test_subjects_table():
    people = np.stack([rdm(made(8, seed=s)[0]) for s in range(4)])
    table = rsa_subjects(people, {'a': people[0], 'b': made(8, seed=9)[0]}, 'pearson')
    assert len(table) == 8 and table.score[0] == pytest.approx(1)
    assert (table.lower.mean(), table.upper.mean()) == pytest.approx(rsa_ceiling(people, 'pearson'))


def test_crossnobis_vanishes_between_equal_stimuli():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(20, 20))
    whitener = noise_whitener(rng.normal(size=(200, 20)) @ noise)
    x = [np.ones((10, 1, 20)) + rng.normal(size=(10, 3, 20)) @ noise for _ in range(300)]
    crossed, ordinary = (np.array([f(o).mean() for o in x]) for f in (lambda o: crossnobis(o, whitener), lambda o: rdm(o.mean(1), 'sqmahalanobis', whitener)))
    assert abs(crossed.mean()) < 4*crossed.std()/300**.5
    assert ordinary.mean() > 2*20/3*.8


def test_collinear_voxels_need_shrinkage():
    r = np.random.default_rng(0).normal(size=(40, 6))
    for copies in (np.hstack([r, r[:, :1]]), np.hstack([r, r @ np.ones((6, 1))])):
        with pytest.raises(ValueError, match='rank 6.*or shrink'): noise_whitener(copies, 'none')
        assert np.isfinite(noise_whitener(copies).precision()).all()
    assert noise_whitener(r, 'none').precision() == pytest.approx(np.linalg.inv(np.cov(r.T)))


def test_folds_of_unequal_size():
    rng = np.random.default_rng(0)
    ids, runs = rng.permutation(np.tile(np.arange(5), 30)), np.repeat([0, 1, 2], [40, 60, 50])
    trials = rng.normal(size=(150, 4))
    patterns, names = average_folds(trials, ids, runs)
    for i, name in enumerate(names):
        for run in range(3): np.testing.assert_allclose(patterns[i, run], trials[(ids == name) & (runs == run)].mean(0), atol=1e-12)


def test_cv_correlation_is_the_correlation_without_noise():
    x = made(6, d=30)[0]
    np.testing.assert_allclose(cv_correlation(np.stack([x, x, x], axis=1)), rdm(x), atol=1e-10)


@pytest.mark.parametrize('nonnegative', [False, True])
def test_regression_recovers_a_mixture(nonnegative):
    models = {str(s): rdm(made(12, seed=s)[0], 'sqeuclidean') for s in range(4)}
    mixed = sum(w*m for w, m in zip((.5, 0, 2, 1), models.values()))
    table = regression_rsa(squareform(mixed), models, nonnegative)
    raw = table.weight*mixed.std()/[m.std() for m in models.values()]
    np.testing.assert_allclose(raw, [.5, 0, 2, 1], atol=1e-8)
    assert table.r2[0] == pytest.approx(1) and table.unique[1] == pytest.approx(0, abs=1e-10)


def test_weights_that_may_not_be_negative():
    from scipy.optimize import nnls
    models = {str(s): rdm(made(12, seed=s)[0]) for s in range(3)}
    d = models['0'] - models['1'] + models['2']
    m = np.transpose([(o - o.mean())/o.std() for o in models.values()])
    table = regression_rsa(d, models, nonnegative=True)
    np.testing.assert_allclose(table.weight, nnls(m, (d - d.mean())/d.std())[0], atol=1e-10)
    assert table.weight[1] == 0


def test_partial_of_what_is_wholly_explained():
    a, b = (rdm(o) for o in made())
    with pytest.warns(UserWarning, match='nothing is left'): assert np.isnan(partial_rsa(a, b, {'itself': 2*a + 1}, 'pearson'))


@pytest.mark.parametrize('of', [None, 'b'])
def test_contrast_pair_by_pair(of):
    labels = np.array(list('aaabbbbccddddd'))
    d = rdm(made(len(labels))[0])
    i, j = np.triu_indices(len(labels), 1)
    same = labels[i] == labels[j]
    inside, outside = (same, ~same) if of is None else (same & (labels[i] == of), ~same & ((labels[i] == of) | (labels[j] == of)))
    found = category_contrast(d, labels, of, 99)
    assert (found['within'], found['between']) == pytest.approx((d[inside].mean(), d[outside].mean()))
    assert found['difference'] == pytest.approx(found['between'] - found['within'])


def test_one_shuffle_too_few():
    "p is never 0, and 1 where the contrast is the other way."
    d = 1 - category_rdm([0]*5 + [1]*5)
    assert category_contrast(d, [0]*5 + [1]*5, n_permutations=19)['p'] == 1
    assert category_contrast(1 - d, [0]*5 + [1]*5, n_permutations=19)['p'] >= 1/20


def test_searchlight_takes_an_atlas_and_two_processes():
    nib = pytest.importorskip('nibabel')
    from protoalign.searchlight import searchlight_rsa
    rng = np.random.default_rng(0)
    atlas = nib.Nifti1Image(rng.integers(0, 3, (9, 9, 9)).astype(np.int16), np.diag([2., 2, 2, 1]))
    n = int((np.asarray(atlas.dataobj) == 2).sum())
    values, model = rng.normal(size=(8, n)), pdist(rng.normal(size=(8, 2)))
    one, two = (searchlight_rsa(values, atlas, {'m': model}, radius=5, label=2, min_voxels=1, n_jobs=jobs)['m'].get_fdata() for jobs in (1, 2))
    np.testing.assert_array_equal(one, two)
    assert not one[np.asarray(atlas.dataobj) != 2].any()


def test_searchlight_sphere_by_sphere():
    nib = pytest.importorskip('nibabel')
    from scipy.spatial.distance import cdist
    from protoalign.fmri import region_values, voxel_table
    from protoalign.searchlight import searchlight_rsa
    rng = np.random.default_rng(0)
    mask = nib.Nifti1Image((rng.random((6, 7, 5)) < .8).astype(np.int8), np.diag([2., 3, 4, 1]))
    places = voxel_table(mask)[list('xyz')].to_numpy()
    values, model = rng.normal(size=(9, len(places))), pdist(rng.normal(size=(9, 2)))
    spheres = cdist(places, places) <= 5
    found = region_values(searchlight_rsa(values, mask, model, radius=5, min_voxels=1, metric='euclidean'), mask)[0]
    np.testing.assert_allclose(found, [spearmanr(pdist(values[:, o]), model).statistic for o in spheres], atol=1e-6)


def test_plot_of_square_and_condensed():
    import matplotlib
    matplotlib.use('agg')
    a = rdm(made()[0])
    first, second = plot_rdms({'a': a, 'b': squareform(a)}, order=np.arange(15)[::-1], ranked=False)
    np.testing.assert_allclose(first.images[0].get_array(), squareform(a)[::-1, ::-1])
    np.testing.assert_allclose(second.images[0].get_array(), squareform(a)[::-1, ::-1])
    matplotlib.pyplot.close('all')


@pytest.mark.parametrize('module', ['rsa', 'ranks', 'noise', 'crossnobis', 'rsa_models', 'searchlight'])
def test_neither_torch_nor_nilearn_is_loaded(module):
    code = f'import sys, protoalign.{module}; print([m for m in ("torch", "fastai", "nilearn", "matplotlib") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip() == '[]'


@needs_data('objects92')
def test_published_facts_of_objects92():
    from scipy.io import loadmat
    from protoalign.sources import data_folder
    folder = data_folder('objects92')
    for region, bounds in (('IT', (.453, .542)), ('EVC', (.242, .392))):
        assert rsa_ceiling(np.load(folder/f'fmri15_{region}_RDMs.npz')['Net_RDM']) == pytest.approx(bounds, abs=.001)
    held = loadmat(folder/'Kriegeskorte_Neuron2008_supplementalData.mat', simplify_cells=True)
    monkey, human = (np.ravel(o['RDM']) for o in held['RDMs_mIT_hIT_fig1'])
    assert rsa(monkey, human, 'pearson') == pytest.approx(.49, abs=.005)
    for flag in ('animal', 'face'):
        for d in (monkey, human): assert category_contrast(d, [o[flag] for o in held['stimuli_92objs']], of=1)['p'] < .01


@needs_data('objects92')
def test_ceilings_of_real_people_equal_rsatoolbox():
    from rsatoolbox.inference import boot_noise_ceiling
    from rsatoolbox.rdm import RDMs
    from protoalign.sources import data_folder
    d = np.load(data_folder('objects92')/'fmri15_IT_RDMs.npz')['Net_RDM'].astype(float)[:, *np.triu_indices(92, 1)]
    for method in ('spearman', 'pearson', 'cosine', 'rho-a'):
        theirs = [float(o) for o in boot_noise_ceiling(RDMs(d), method=METHODS[method])]
        assert rsa_ceiling(d, method) == pytest.approx(theirs, abs=1e-8)
