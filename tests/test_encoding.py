"Ridge regression, encoding models and banded ridge beside himalaya, scikit-learn and loops, at the edges, and on real recordings."
import sys

import numpy as np
import pytest
from scipy.stats import ortho_group
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut, ShuffleSplit, TimeSeriesSplit
from sklearn.utils.estimator_checks import parametrize_with_checks

from conftest import needs_data
from protoalign.encoding import ALPHAS, encoding_cv, encoding_score, encoding_table, explained_share, fit_encoding, prediction_scores, score_encoding
from protoalign.ridge import VoxelRidge, ridge_cv

PENALTIES = np.logspace(-1, 6, 10)


def voxels(n, d, n_voxels=30, dtype=float, seed=0, noise=1.):
    "Features of falling variance, standardised, and voxels of more and more signal."
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ (rng.normal(size=(d, d))*np.arange(1, d + 1)[:, None]**-.5)
    x = (x - x.mean(0))/x.std(0)
    signal = x @ rng.normal(size=(d, n_voxels))
    return x.astype(dtype), (signal/signal.std(0)*np.linspace(0, 2, n_voxels) + noise*rng.normal(size=(n, n_voxels)) + 7).astype(dtype)


def by_loops(x, y, folds, intercept=True):
    "Mean squared error of each penalty, from large to small, by scikit-learn's Ridge."
    def error(a, train, test): return ((y[test] - Ridge(a, fit_intercept=intercept, solver='svd').fit(x[train], y[train]).predict(x[test]))**2).mean(0)
    return np.mean([[error(a, *fold) for a in PENALTIES[::-1]] for fold in folds], axis=0)


@parametrize_with_checks([VoxelRidge(), VoxelRidge(cv='loo'), VoxelRidge(alphas=(1., 10.), cv=3, fit_intercept=False)])
def test_scikit_learn(estimator, check): check(estimator)


@pytest.mark.parametrize('n, d', [(60, 1), (60, 12), (61, 37), (203, 130), (60, 52), (60, 59), (60, 60), (60, 61), (40, 300)])
@pytest.mark.parametrize('intercept', [True, False])
def test_folds_equal_loops_and_himalaya(n, d, intercept):
    "Few and many features, more than a fold trains on, more than there are stimuli."
    himalaya = pytest.importorskip('himalaya.ridge')
    x, y = voxels(n, d)
    if not intercept: x, y = x - .3, y - 7
    fit = ridge_cv(x, y, PENALTIES, 5, intercept=intercept)
    assert np.allclose(fit.losses, by_loops(x, y, KFold(5).split(x), intercept), rtol=1e-8)
    theirs = himalaya.RidgeCV(PENALTIES, fit_intercept=intercept, cv=5, solver_params=dict(warn=False)).fit(x, y)
    assert np.allclose(fit.alpha, theirs.best_alphas_, rtol=1e-6)
    assert np.allclose(fit.coef, theirs.coef_, atol=1e-9)
    assert np.allclose(x @ fit.coef + fit.intercept, theirs.predict(x), atol=1e-8)


@pytest.mark.parametrize('n, d', [(40, 1), (40, 12), (41, 39), (40, 40), (40, 300)])
@pytest.mark.parametrize('intercept', [True, False])
def test_leave_one_out_equals_loops_and_scikit_learn(n, d, intercept):
    x, y = voxels(n, d)
    fit = ridge_cv(x, y, PENALTIES, 'loo', intercept=intercept)
    singles = [(np.delete(np.arange(n), i), [i]) for i in range(n)]
    assert np.allclose(fit.losses, by_loops(x, y, singles, intercept), rtol=1e-7)
    theirs = RidgeCV(PENALTIES, alpha_per_target=True, fit_intercept=intercept).fit(x, y)
    assert np.allclose(fit.alpha, theirs.alpha_) and np.allclose(fit.coef, theirs.coef_.T, atol=1e-9)
    by_folds = ridge_cv(x, y, PENALTIES, KFold(n), intercept=intercept)
    assert np.allclose(by_folds.losses, fit.losses, rtol=1e-8) and np.allclose(by_folds.cv_r2, fit.cv_r2)


@pytest.mark.filterwarnings('ignore:The groups parameter is ignored')
@pytest.mark.parametrize('cv', [KFold(7, shuffle=True, random_state=0), GroupKFold(4), LeaveOneGroupOut(), 5, 'splits'], ids=str)
def test_folds_of_any_kind(cv):
    "Unequal folds, folds of groups, folds in any order of rows."
    x, y = voxels(90, 20)
    groups = np.random.default_rng(1).permutation(np.repeat(np.arange(6), [30, 20, 15, 10, 10, 5]))
    splits = list((GroupKFold(5) if isinstance(cv, (int, str)) else cv).split(x, groups=groups))
    fit = ridge_cv(x, y, PENALTIES, splits if isinstance(cv, (KFold, str)) else cv, groups)
    assert np.allclose(fit.losses, by_loops(x, y, splits), rtol=1e-8)
    of_mean = np.mean([((y[test] - y[train].mean(0))**2).mean(0) for train, test in splits], axis=0)
    assert np.allclose(fit.cv_r2, 1 - fit.losses.min(0)/of_mean)


def test_every_block_of_voxels():
    "More voxels than a block holds, and the same voxel alone."
    x, y = voxels(30, 8, 2500)
    fit = ridge_cv(x, y)
    for v in (0, 1023, 1024, 2047, 2048, 2499):
        alone = ridge_cv(x, y[:, [v]])
        assert alone.alpha == fit.alpha[v] and np.allclose(alone.coef[:, 0], fit.coef[:, v], atol=1e-12)


@pytest.mark.parametrize('cv', [5, 'loo'])
@pytest.mark.parametrize('d', [30, 400])
def test_float32(cv, d):
    "Penalties as in float64, whatever the offset of the voxel; weights to single precision."
    x, y = voxels(200, d, 300, seed=2)
    double = ridge_cv(x, y, PENALTIES, cv)
    for offset in (0, 5000):
        single = ridge_cv(x.astype(np.float32), (y + offset).astype(np.float32), PENALTIES, cv)
        same = single.alpha == double.alpha
        assert single.coef.dtype == single.intercept.dtype == np.float32 and same.mean() >= .99
        assert np.abs(single.coef - double.coef)[:, same].max() < 1e-3*np.abs(double.coef).max()
    assert ridge_cv(x.astype(np.float32), y).coef.dtype == float


@pytest.mark.parametrize('cv', [4, 'loo'])
def test_float32_with_hardly_a_penalty(cv):
    "Where features outnumber stimuli and the penalty is small, rounding on empty axes must not be blown up."
    x, y = voxels(80, 300, seed=4)
    double, single = ridge_cv(x, y, (1e-5, 10.), cv), ridge_cv(x.astype(np.float32), y.astype(np.float32), (1e-5, 10.), cv)
    assert np.allclose(single.losses, double.losses, rtol=2e-3)


def test_features_without_variance():
    "Constant everywhere, constant in the training rows of one fold, and copies: weights are the smallest that do."
    x, y = voxels(100, 6)
    rare = np.r_[np.zeros(80), np.ones(20)][:, None] + np.r_[np.zeros(80), np.arange(20)][:, None]
    odd = np.hstack([x, np.full((100, 1), 3.), rare, x[:, :2], 1e-9*x[:, :1]])
    fit = ridge_cv(odd, y, PENALTIES)
    assert np.allclose(fit.losses, by_loops(odd, y, KFold(5).split(x)), rtol=1e-8)
    assert np.allclose(fit.coef[6], 0, atol=1e-12) and np.allclose(fit.coef[0], fit.coef[8], atol=1e-10)
    nothing = ridge_cv(np.ones((100, 4)), y)
    assert (nothing.coef == 0).all() and np.allclose(nothing.intercept, y.mean(0)) and (nothing.alpha == max(ALPHAS)).all() and np.allclose(nothing.cv_r2, 0, atol=1e-12)


@pytest.mark.parametrize('cv', [5, 'loo'])
def test_voxels_that_do_not_vary(cv):
    x, y = voxels(50, 6)
    y[:, 3] = .1
    with pytest.warns(UserWarning, match='1 of 30 voxels do not vary over the 50 training stimuli'): fit = ridge_cv(x, y, PENALTIES, cv)
    assert np.isnan(fit.cv_r2[3]) and np.isfinite(np.delete(fit.cv_r2, 3)).all()
    assert (fit.coef[:, 3] == 0).all() and fit.intercept[3] == pytest.approx(.1) and fit.alpha[3] == PENALTIES.max()


def test_noise_is_found_out():
    "Features that say nothing: explained variance in the folds is at most what choosing among penalties gains, and none on new stimuli."
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 50)), rng.normal(size=(200, 400))
    fit = ridge_cv(x[:100], y[:100])
    new = 1 - ((y[100:] - x[100:] @ fit.coef - fit.intercept)**2).sum(0)/((y[100:] - y[:100].mean(0))**2).sum(0)
    assert -.01 < fit.cv_r2.mean() < .03 and new.mean() < .005


def test_rotations_and_shifts():
    "Ridge regression does not see a rotation of the features, nor a shift of either side; voxels scale."
    x, y = voxels(80, 15)
    turn = ortho_group.rvs(15, random_state=0)
    a, b = ridge_cv(x, y, PENALTIES), ridge_cv(x @ turn + 4, 3*y - 50, PENALTIES)
    assert (a.alpha == b.alpha).all() and np.allclose(3*a.coef, turn @ b.coef, atol=1e-9) and np.allclose(a.cv_r2, b.cv_r2)


@pytest.mark.parametrize('change, match', [
    (dict(y=np.ones((9, 2))), r'\(40, 5\) and \(9, 2\)'), (dict(y=np.ones(40)), r'\(40,\)'), (dict(x=np.full((40, 5), np.nan)), 'features of shape .* NaN'),
    (dict(alphas=(0., 1.)), 'above 0'), (dict(alphas=()), 'above 0'), (dict(alphas=(np.inf,)), 'above 0'), (dict(cv='leave'), "got 'leave'"),
    (dict(cv=ShuffleSplit(3)), 'each of 40 stimuli once'), (dict(cv=TimeSeriesSplit(3)), 'each of 40 stimuli once'), (dict(cv='loo', groups=np.arange(40)), 'LeaveOneGroupOut'),
    (dict(cv=50), 'n_samples=40'), (dict(cv=5, groups=np.arange(40)//20), 'groups')])
def test_refused(change, match):
    x, y = voxels(40, 5)
    with pytest.raises(ValueError, match=match): ridge_cv(**{**dict(x=x, y=y), **change})


# Encoding models

@pytest.mark.parametrize('dtype', [np.float32, float])
@pytest.mark.parametrize('options', [{}, dict(cv=5), dict(cv=5, groups=np.arange(150)//3)], ids=['loo', 'folds', 'groups'])
def test_encoding_is_a_pipeline(dtype, options):
    x, y = voxels(200, 20, dtype=dtype)
    x = x*np.arange(1, 21, dtype=dtype) + 3
    score = encoding_score(x[:150], y[:150], x[150:], y[150:], **options)
    mean, sd = x[:150].mean(0), x[:150].std(0)
    for v in (0, 15, 29):
        by_hand = Ridge(score.alpha[v], solver='svd').fit((x[:150] - mean)/sd, y[:150, v].astype(float)).predict((x[150:] - mean)/sd)
        assert np.allclose(score.predicted[:, v], by_hand, atol=1e-8 if dtype is float else 2e-3)
    assert score.predicted.dtype == dtype


def test_single_precision_forgives_an_offset():
    "Units with a mean of 1,000 and a deviation of 1, of which the features explain next to nothing: scores as in float64."
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(150, 8)).astype(np.float32), rng.normal(1000, 1, size=(150, 30)).astype(np.float32)
    single, double = (encoding_score(*(o.astype(kind) for o in (x[:100], y[:100], x[100:], y[100:]))) for kind in (np.float32, float))
    assert (single.alpha == double.alpha).all() and single.predicted.dtype == np.float32
    for name in ('r', 'r2', 'pooled_r2'): assert np.abs(getattr(single, name) - getattr(double, name)).max() < 1e-5
    near = prediction_scores(y[100:].astype(float), double.predicted, y[:100].mean(0, dtype=float))
    assert np.allclose(near, (double.r2, double.r))


def test_test_stimuli_have_no_say():
    "Predictions of a fold do not move when the responses, or scales, of its own stimuli do; those of the other folds do."
    x, y = voxels(120, 10)
    groups = np.arange(120)//4
    found = encoding_cv(x, y, groups)
    spoilt = np.where((found.fold == 2)[:, None], 50 - 9*y, y)
    again = encoding_cv(x, spoilt, groups)
    here = found.fold == 2
    assert (again.fold == found.fold).all() and (again.predicted[here] == found.predicted[here]).all() and (again.alpha[2] == found.alpha[2]).all()
    assert not np.allclose(again.predicted[~here], found.predicted[~here])
    assert all(len(set(found.fold[groups == g])) == 1 for g in range(30))


def test_inner_folds_keep_groups_together():
    "Pairs whose noise is shared: with groups kept together inside, penalties are larger, and new stimuli better predicted."
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.arange(320)//4)
    x = rng.normal(size=(80, 40))[groups] + .1*rng.normal(size=(320, 40))
    y = x @ rng.normal(size=(40, 50))/6 + rng.normal(size=(80, 50))[groups]
    together, blind = encoding_cv(x, y, groups), encoding_cv(x, y, groups, cv=list(KFold(5, shuffle=True, random_state=0).split(np.arange(256))))
    assert together.r2.mean() > blind.r2.mean() + .05 and np.median(together.alpha) > 3*np.median(blind.alpha)


def test_shares_of_the_reliable():
    assert np.allclose(explained_share([[.1, .2], [-.1, .3]], [.5, .2]), [[.2, 1], [-.2, 1.5]])
    assert np.allclose(explained_share([.5, -.5], [.5, .5], 'r'), [.5, -.5])
    assert np.isnan(explained_share([.1, .1, .1], [0, -.2, np.nan])).all()
    for wrong, match in (((.1, .1, 'r²'), "'r2' or 'r'"), (([.1, .1], [.1]), r'\(2,\) and reliabilities of shape \(1,\)'), (([.1], [30.]), 'at most 1, got 30')):
        with pytest.raises(ValueError, match=match): explained_share(*wrong)


@pytest.mark.parametrize('share, rho', [(.36, .3), (.36, .8), (.1, .5), (1., .3)])
def test_planted_share_comes_back(share, rho):
    "The mean over voxels of R²/reliability and of r²/reliability is the planted share of the signal's variance."
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4000, 4))
    seen = x @ rng.normal(size=(4, 120))
    signal = np.sqrt(share)*seen/seen.std(0) + np.sqrt(1 - share)*rng.normal(size=seen.shape)
    measured = encoding_cv(x, signal + np.sqrt((1 - rho)/rho)*rng.normal(size=seen.shape))
    for of in ('r2', 'r'): assert explained_share(getattr(measured, of).mean(0), np.full(120, rho), of).mean() == pytest.approx(share, abs=.015)


def test_table_and_map_of_voxels():
    nib = pytest.importorskip('nibabel')
    from protoalign.fmri import region_values, to_image, voxel_table
    x, y = voxels(100, 6, 24)
    mask = nib.Nifti1Image(np.ones((4, 3, 2), np.int8), np.eye(4))
    scores, ceiling = encoding_cv(x, y), np.r_[np.nan, np.linspace(.1, 1, 23)]
    table = encoding_table(scores, ceiling, voxel_table(mask))
    assert list(table) == ['r2', 'r2_sd', 'r', 'r_sd', 'alpha', 'r2_share', 'r_share', 'i', 'j', 'k', 'x', 'y', 'z']
    back = region_values(to_image(table.r2_share, mask), mask)[0]
    assert np.isnan(back[0]) and np.allclose(back[1:], scores.r2.mean(0)[1:]/ceiling[1:], atol=1e-6)
    with pytest.raises(ValueError, match='24 rows of features for 30 units'): encoding_table(encoding_cv(*voxels(100, 6)), features=voxel_table(mask))


def test_one_fit_many_test_sets():
    x, y = voxels(150, 10)
    model = fit_encoding(x[:100], y[:100], cv=5)
    for part in (slice(100, 120), slice(120, 150)):
        assert (score_encoding(model, x[part], y[part]).r2 == encoding_score(x[:100], y[:100], x[part], y[part], cv=5).r2).all()


# Several feature spaces

def spaces_of(n=300, seed=0):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 2))
    spaces = {'a': np.hstack([shared, rng.normal(size=(n, 4))]), 'b': np.hstack([shared, rng.normal(size=(n, 3))]) @ ortho_group.rvs(5, random_state=0), 'c': rng.normal(size=(n, 7))}
    return spaces, np.hstack(list(spaces.values())) @ rng.normal(size=(18, 9)) + rng.normal(size=(n, 9))


def test_parts_of_any_number_of_spaces():
    "Overlapping sets of points: the R² of a set of spaces is the measure of their union, the parts are the cells."
    from protoalign.banded import _subsets, commonality
    rng = np.random.default_rng(0)
    names = 'abcd'
    cells = {s: rng.normal() for s in _subsets(names)}
    found = commonality({t: sum(v for s, v in cells.items() if set(s) & set(t)) for t in _subsets(names)})
    assert list(found) == list(cells) and np.allclose(list(found.values()), list(cells.values()))


@pytest.mark.parametrize('kernel', [False, True])
@pytest.mark.parametrize('n', [30, 300])
def test_banded_weights_solve_their_equations(kernel, n):
    pytest.importorskip('himalaya')
    from protoalign.banded import fit_banded, predict_banded
    spaces, y = spaces_of(n)
    spaces['a'][:, 3] = 5
    model = fit_banded(spaces, y, splits=6, kernel=kernel, groups=np.arange(n)//3)
    z = {name: (x - model.scaling[name][0])/model.scaling[name][1] for name, x in spaces.items()}
    x, sizes = np.hstack(list(z.values())), [o.shape[1] for o in z.values()]
    for v in range(9):
        penalty = np.repeat([model.alpha[name][v] for name in z], sizes)
        solved = np.linalg.solve(x.T @ x + np.diag(penalty), x.T @ (y - y.mean(0))[:, v])
        assert np.allclose(np.concatenate([model.coef[name][:, v] for name in z]), solved, atol=1e-7)
    total = model.y_mean + sum(predict_banded(model, spaces).values())
    assert np.allclose(total, y.mean(0) + x @ np.vstack(list(model.coef.values())))


def test_banded_folds_keep_groups_together():
    pytest.importorskip('himalaya')
    from protoalign.banded import fit_banded
    spaces, y = spaces_of(120)
    groups = np.random.default_rng(0).permutation(np.arange(120)//4)
    y = y + 20*np.random.default_rng(1).normal(size=(30, 9))[groups]
    by_groups, by_splits, blind = (fit_banded(spaces, y, splits=5, **o) for o in (dict(groups=groups), dict(cv=list(GroupKFold(5).split(y, groups=groups))), {}))
    for name in spaces: assert (by_groups.alpha[name] == by_splits.alpha[name]).all()
    assert any((by_groups.alpha[name] != blind.alpha[name]).any() for name in spaces)


@pytest.mark.parametrize('model, options', [('ridge', {}), ('banded', dict(splits=5))])
def test_partition_of_copies(model, options):
    "Two copies of a space have nothing of their own; all is shared."
    pytest.importorskip('himalaya')
    from protoalign.banded import variance_partition
    spaces, y = spaces_of()
    two = {'one': spaces['a'], 'two': spaces['a'] @ ortho_group.rvs(6, random_state=1)}
    train, test = [({k: x[half] for k, x in two.items()}, y[half]) for half in (slice(0, 200), slice(200, 300))]
    found = variance_partition(*train, *test, model=model, **options)
    assert found.parts[['one', 'two']].abs().max(axis=None) < .02
    assert np.allclose(found.parts['one & two'], found.r2['one'], atol=.02) and np.allclose(found.parts.sum(axis=1), found.r2['one & two'])


@pytest.mark.parametrize('model, options', [('ridge', {}), ('banded', dict(splits=5))])
def test_partition_keeps_groups_together(model, options):
    "Groups and seed say which folds choose the penalties, the same ones for both models; here they are made by hand."
    pytest.importorskip('himalaya')
    from protoalign.banded import fit_banded, predict_banded, variance_partition
    spaces, y = spaces_of(160)
    groups = np.random.default_rng(0).permutation(np.arange(120)//4)
    y[:120] += 20*np.random.default_rng(1).normal(size=(30, y.shape[1]))[groups]
    train, test = [({k: x[half] for k, x in spaces.items()}, y[half]) for half in (slice(0, 120), slice(120, 160))]
    def by_hand(folds, seed):
        if model == 'ridge': return encoding_score(np.hstack(list(train[0].values())), train[1], np.hstack(list(test[0].values())), test[1], cv=folds).r2
        fitted = fit_banded(*train, cv=folds, seed=seed, **options)
        return prediction_scores(test[1], fitted.y_mean + sum(predict_banded(fitted, test[0]).values()), fitted.y_mean)[0]
    found = {seed: variance_partition(*train, *test, model=model, groups=groups, seed=seed, **options).r2.iloc[:, -1] for seed in (0, 1)}
    for seed, r2 in found.items():
        assert np.allclose(r2, by_hand(list(GroupKFold(5, shuffle=True, random_state=seed).split(groups, groups=groups)), seed), atol=1e-10)
    blind = variance_partition(*train, *test, model=model, **options).r2.iloc[:, -1]
    assert not np.allclose(blind, found[0]) and not np.allclose(found[0], found[1])
    numbered = variance_partition(*train, *test, model=model, cv=3, seed=4, **options).r2.iloc[:, -1]
    assert np.allclose(numbered, by_hand(list(KFold(3, shuffle=True, random_state=4).split(groups)), 4), atol=1e-10)
    with pytest.raises(ValueError, match='119 content groups for 120 training stimuli'): variance_partition(*train, *test, model=model, groups=groups[1:], **options)


def test_product_split_is_himalayas():
    scoring = pytest.importorskip('himalaya.scoring')
    from protoalign.banded import product_split
    rng = np.random.default_rng(0)
    y, terms = rng.normal(size=(50, 4)) + 3, {k: rng.normal(size=(50, 4)) for k in 'abc'}
    split = product_split(y, terms, y.mean(0))
    assert np.allclose(split.T, scoring.r2_score_split(y - y.mean(0), np.array(list(terms.values()))))
    assert np.allclose(split.sum(axis=1), scoring.r2_score(y, y.mean(0) + sum(terms.values())))


def test_without_himalaya(monkeypatch):
    "Plain ridge regression partitions variance without it; banded says how to get it."
    from protoalign.banded import fit_banded, variance_partition
    for name in ('himalaya', 'himalaya.ridge'): monkeypatch.setitem(sys.modules, name, None)
    spaces, y = spaces_of()
    with pytest.raises(ImportError, match=r"pip install 'protoalign\[encoding\]'"): fit_banded(spaces, y)
    halves = [({k: x[half] for k, x in spaces.items()}, y[half]) for half in (slice(0, 200), slice(200, 300))]
    assert variance_partition(*halves[0], *halves[1], model='ridge').r2.shape == (9, 7)


@pytest.mark.parametrize('wrong, match', [(dict(spaces=[1, 2]), 'got list'), (dict(spaces={}), 'got dict'), (dict(spaces={'a': np.ones((299, 3))}), r"\(299, 3\)\} for 300 responses")])
def test_spaces_refused(wrong, match):
    from protoalign.banded import fit_banded
    with pytest.raises(ValueError, match=match): fit_banded(**{**dict(zip(('spaces', 'y'), spaces_of())), **wrong})


# Real recordings

@needs_data('macaque_v4')
def test_v4_is_predicted_below_its_ceiling():
    "Photographs at 8 × 8 pixels predict V4 channels, not those of shuffled photographs; no more is explained than is reliable, in the mean."
    from protoalign.data import mean_repeats, select
    from protoalign.datasets import load
    from protoalign.layers import pool
    from protoalign.networks import prepare
    from protoalign.quality import noise_ceilings
    d = load('macaque-v4', session='210325', repeats=True)
    recording = select(d.responses['V4-210325'], d.ids)
    x, y, ceiling = pool(prepare(d.stimuli, 48), 8).numpy(), mean_repeats(recording).values, noise_ceilings(recording).noise_ceiling.to_numpy()
    right, wrong = (encoding_cv(x[i], y, d.groups) for i in (np.arange(len(x)), np.random.default_rng(0).permutation(len(x))))
    share = np.nanmean(explained_share(right.r2.mean(0), ceiling))
    assert right.r.mean() > .2 and abs(wrong.r.mean()) < .05 and wrong.r2.mean() < .01 and right.r2.mean() < share < .6
    himalaya = pytest.importorskip('himalaya.ridge')
    z, y = ((x - x.mean(0))/x.std(0)).astype(float), y.astype(float)
    theirs, ours = himalaya.RidgeCV(PENALTIES, fit_intercept=True, cv=5).fit(z, y), ridge_cv(z, y, PENALTIES)
    assert np.allclose(ours.alpha, theirs.best_alphas_, rtol=1e-6) and np.allclose(ours.coef, theirs.coef_, atol=1e-11)


def test_banded_folds_keep_groups_whatever_the_kind_of_number(monkeypatch):
    from protoalign import banded
    seen = []
    monkeypatch.setattr(banded, '_search', lambda xs, y, alphas, splits, folds, *rest: seen.append(folds) or ([np.zeros((o.shape[1], y.shape[1])) for o in xs], np.zeros((len(xs), y.shape[1]))))
    x, y = voxels(60, 5)
    groups = np.random.default_rng(0).permutation(np.arange(60)//4)
    for cv in (3, np.int64(3)): banded.fit_banded({'a': x}, y, cv=cv, groups=groups)
    for fit, held in seen[1]: assert not set(groups[fit]) & set(groups[held])
