"One table for all measures: each value is the direct call's, ceilings and inference too, planted truth is found, nothing leaks."
import numpy as np
import pytest

from protoalign.bootstrap import bootstrap_rsa, jackknife_score
from protoalign.cka import linear_cka, rbf_cka
from protoalign.data import Responses, Split, mean_repeats, planted_world, select
from protoalign.dimensionality import effective_rank, participation_ratio
from protoalign.encoding import encoding_cv, encoding_score
from protoalign.inference import permutation_cka, permutation_rsa
from protoalign.prototype_alignment import prototype_alignment
from protoalign.quality import noise_ceilings
from protoalign.registry import MEASURES, Measure
from protoalign.rsa import rdm, rsa, rsa_ceiling
from protoalign.score import score_layer
from protoalign.scores import plot_layers, score
from protoalign.shape import heldout_procrustes, heldout_soft_matching

FIT, NEW = np.arange(60), np.arange(60, 100)


def world(n=100, seed=0, **about): return planted_world(n, n_units=9, n_voxels=7, noise=1., seed=seed, **about)[:2]


def values(*args, **about): return score(*args, **about).set_index('measure')['value']


def test_values_on_a_split():
    x, y = world()
    four, (a, b) = (x[FIT], y[FIT], x[NEW], y[NEW]), (x[NEW], y[NEW])
    found, encoding = values(x, y, list(MEASURES), (FIT, NEW), n_prototypes=5), encoding_score(*four)
    direct = dict(rsa=rsa(a, b), rsa_pearson=rsa(a, b, 'pearson'), rsa_cosine=rsa(a, b, 'cosine'), rsa_kendall=rsa(a, b, 'tau-a'), rsa_rho_a=rsa(a, b, 'rho-a'),
                  rsa_euclidean=rsa(a, b, metric='euclidean'), rsa_whitened=rsa(a, b, 'whitened-pearson', 'sqeuclidean'), rsa_whitened_cosine=linear_cka(a, b, debiased=False),
                  rsa_centred=rsa(a - x[FIT].mean(0), b - y[FIT].mean(0)), cka=linear_cka(a, b), cka_biased=linear_cka(a, b, debiased=False), cka_rbf=rbf_cka(a, b),
                  encoding=encoding.r2.mean(), encoding_r=encoding.r.mean(), encoding_pooled=encoding.pooled_r2, procrustes=heldout_procrustes(*four),
                  soft_matching=heldout_soft_matching(*four), prototype_alignment=prototype_alignment(*four, n_prototypes=5, n_permutations=1).kappa,
                  participation_ratio=participation_ratio(a), effective_rank=effective_rank(a))
    direct.update(rsa_spearman=direct['rsa'], cka_debiased=direct['cka'], encoding_r2=direct['encoding'])
    assert set(direct) == set(MEASURES) and found.to_dict() == pytest.approx(direct, abs=1e-10)
    for side in (1, -1): assert values(*(x, y)[::side], 'procrustes', (FIT, NEW)).item() == pytest.approx(heldout_procrustes(*(o[rows] for rows in (FIT, NEW) for o in (x, y)[::side])), abs=1e-10)
    assert values(x, y, ['rsa'], Split(FIT, np.arange(0), NEW)).item() == direct['rsa']


@pytest.mark.parametrize('shared', [False, True])
def test_values_of_folds(shared):
    x, y = world()
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(25), 4)).astype(str) if shared else None
    names = ['rsa', 'encoding', 'encoding_r', 'procrustes', 'soft_matching', 'prototype_alignment']
    found, cv = values(x, y, names, groups=groups, n_prototypes=5), encoding_cv(x, y, groups, cv=5 if shared else 'loo')
    if shared: assert all(len(np.unique(cv.fold[groups == g])) == 1 for g in groups)
    folds = [(x[cv.fold != f], y[cv.fold != f], x[cv.fold == f], y[cv.fold == f]) for f in range(5)]
    direct = [rsa(x, y), cv.r2.mean(), cv.r.mean(), *(np.mean([f(*o) for o in folds]) for f in (heldout_procrustes, heldout_soft_matching, lambda *o: prototype_alignment(*o, n_prototypes=5, n_permutations=1).kappa))]
    assert np.allclose(found, direct, atol=1e-10)


def test_same_numbers_as_experiments():
    x, y = world()
    groups = np.repeat(np.arange(50), 2)
    for about, content in ((dict(), None), (dict(groups=groups), groups[FIT])):
        old = score_layer(x[FIT], y[FIT], {'test': (x[NEW], y[NEW])}, 5, content_groups=content)['test']
        names = [k for k in old if k in MEASURES]
        assert len(names) == 5 and values(x, y, names, (FIT, NEW), **about).to_dict() == pytest.approx({k: old[k] for k in names}, abs=1e-10)


def test_penalties_by_content_groups():
    x, y = world()
    plain = score_layer(x[FIT], y[FIT], {'test': (x[NEW], y[NEW])}, 5)['test']
    groups = np.repeat(np.arange(15), 4)
    by_groups = encoding_score(x[FIT], y[FIT], x[NEW], y[NEW], cv=5, groups=groups)
    assert score_layer(x[FIT], y[FIT], {'test': (x[NEW], y[NEW])}, 5, content_groups=list(groups))['test']['encoding_r2'] == pytest.approx(by_groups.r2.mean(), abs=1e-12)
    assert score_layer(x[FIT], y[FIT], {'test': (x[NEW], y[NEW])}, 5, content_groups=list('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ12345678'))['test'] == plain
    with pytest.raises(ValueError, match='3 content groups for 60'): score_layer(x[FIT], y[FIT], {}, 5, content_groups=[1, 2, 3])


def test_nothing_shared_is_zero():
    names = [k for k, m in MEASURES.items() if m.zero]
    found = np.array([values(x, y, names, (np.arange(25), np.arange(25, 50)), n_prototypes=4) for x, y in (world(50, s, carriers=()) for s in range(60))])
    high = found.mean(0) - 4*found.std(0)/60**.5
    assert (high < 0).all(), dict(zip(names, found.mean(0)))
    biased = np.mean([values(*world(50, s, carriers=()), ['cka_biased', 'rsa_whitened_cosine', 'rsa_cosine']) for s in range(20)], axis=0)
    assert np.allclose(biased[:2], (9*7/(59*57))**.5, atol=.02) and biased[2] > .8


def test_planted_layer_wins():
    rng, names = np.random.default_rng(0), [k for k, m in MEASURES.items() if not m.alone]
    x, _ = world(200)
    layers = {'other': planted_world(200, n_units=9, seed=9)[0], 'brain': x, 'noisy': x + 2*rng.normal(size=x.shape)}
    table = score(layers, x + .5*rng.normal(size=x.shape), names, n_prototypes=6)
    assert (table.loc[table.groupby('measure')['value'].idxmax(), 'layer'] == 'brain').all()
    assert (table.groupby('layer')['n'].unique().map(tuple) == (200,)).all()


def test_training_responses_reach_only_what_is_fitted():
    x, y = world()
    names, spoiled = [k for k, m in MEASURES.items() if not m.alone], y.copy()
    spoiled[FIT] = np.random.default_rng(1).normal(size=(60, 7))
    a, b = (values(x, o, names, (FIT, NEW), n_prototypes=5) for o in (y, spoiled))
    fitted = np.array([MEASURES[k].prepare is not None for k in names])
    assert (a[~fitted] == b[~fitted]).all() and (a[fitted] != b[fitted]).all()
    moved_x, moved_y = x.copy(), y.copy()
    moved_x[NEW[1:]], moved_y[NEW[1:]] = 0, 1
    from protoalign.scores import _folds, _parts
    first, second = (_parts(MEASURES['encoding'].prepare, o, [p], _folds(100, None, (FIT, NEW), 5, 0), NEW, None, n_prototypes=5, seed=0)[0].sides for o, p in ((x, y), (moved_x, moved_y)))
    assert (first[0][0] == second[0][0]).all() and (first[2] == second[2]).all()


def recorded(signal, seed, n_repeats=3, noise=1.):
    return Responses(signal[:, None] + noise*np.random.default_rng(seed).normal(size=(len(signal), n_repeats, signal.shape[1])), [f's{i}' for i in range(len(signal))], recorder='simulated')


def test_subjects_and_their_ceilings():
    x, y = world()
    people = [y + .5*np.random.default_rng(s).normal(size=y.shape) for s in range(4)]
    table = score(x, {'V': people, 'W': dict(enumerate(people[:2]))}, ['rsa', 'rsa_kendall', 'rsa_euclidean', 'cka'], (FIT, NEW)).set_index(['target', 'measure'])
    for target, some in (('V', people), ('W', people[:2])):
        for name, method, metric in (('rsa', 'spearman', 'correlation'), ('rsa_kendall', 'tau-a', 'correlation'), ('rsa_euclidean', 'spearman', 'euclidean')):
            row = table.loc[(target, name)]
            assert row['value'] == pytest.approx(np.mean([rsa(x[NEW], o[NEW], method, metric) for o in some]))
            assert (row['ceiling_low'], row['ceiling_high']) == pytest.approx(rsa_ceiling([rdm(o[NEW], metric) for o in some], method))
        assert table.loc[(target, 'cka'), 'value'] == pytest.approx(np.mean([linear_cka(x[NEW], o[NEW]) for o in some]))
        assert np.isnan(table.loc[(target, 'cka'), 'ceiling_high']) and 'no ceiling' in table.loc[(target, 'cka'), 'note']


def test_ceilings_of_repeats_are_what_a_perfect_model_reaches():
    bounds, reached = [], []
    for s in range(40):
        y = np.random.default_rng(s).normal(size=(120, 7))
        table = score(y, recorded(y, 99 + s), ['encoding', 'encoding_r'], (np.arange(80), np.arange(80, 120)))
        mean, new = mean_repeats(recorded(y, 99 + s)).values, slice(80, 120)
        bounds.append(table['ceiling_high'])
        reached.append([np.mean(1 - ((mean - y)[new]**2).sum(0)/((mean[new] - mean[:80].mean(0))**2).sum(0)), np.mean([np.corrcoef(mean[new, v], y[new, v])[0, 1] for v in range(7)])])
        assert table['ceiling_low'].isna().all()
        theirs = noise_ceilings(select(recorded(y, 99 + s), [f's{i}' for i in range(80, 120)]))
        assert np.allclose(table['ceiling_high'], [theirs.explainable_variance.mean(), np.sqrt(theirs.noise_ceiling).mean()])
    gap = np.array(bounds) - reached
    assert (abs(gap.mean(0)) < .015).all(), gap.mean(0)


def test_nothing_is_cut_at_a_ceiling():
    y = np.random.default_rng(0).normal(size=(100, 5))
    noisy = recorded(np.zeros((100, 5)), 1)
    row = score(mean_repeats(noisy).values.astype(float), noisy, 'encoding').iloc[0]
    assert row['value'] > .9 > .5 > row['ceiling_high']
    row = score(-y, [y + .1*np.random.default_rng(s).normal(size=y.shape) for s in range(2)], 'rsa').iloc[0]
    assert row['ceiling_high'] > .9 and row['value'] > .9
    assert score(y, recorded(0*y, 3), ['encoding'])['value'].item() < 0


def test_bootstrap_is_that_of_its_page():
    x, y = world(60)
    people, groups = [y, y + np.random.default_rng(0).normal(size=y.shape)], np.repeat(np.arange(20), 3)
    for about in (dict(), dict(groups=groups)):
        table = score(x, people, ['rsa', 'rsa_whitened', 'cka', 'cka_biased', 'rsa_cosine'], inference='bootstrap', n_draws=50, **about).set_index('measure')
        boot = bootstrap_rsa(x, people, n_draws=50, **about).table.iloc[0]
        left_out = {k: jackknife_score(lambda rows: np.mean([MEASURES[k].judge(x[rows], o[rows]) for o in people]), 60, **about).table.iloc[0] for k in ('rsa_whitened', 'cka')}
        for name, theirs in (('rsa', boot), *left_out.items()): assert np.allclose(table.loc[name, ['ci_low', 'ci_high', 'p']].astype(float), theirs[['ci_low', 'ci_high', 'p']].astype(float))
        assert table.loc[['cka_biased', 'rsa_cosine'], 'p'].isna().all() and table['ci_low'].notna().all()
    both = score(x, people, ['rsa', 'cka'], inference='bootstrap', over='both', n_draws=50)
    assert both['ci_low'][0] == pytest.approx(bootstrap_rsa(x, people, 'both', 50).table['ci_low'][0]) and 'drawn over both' in both['note'][1]


def test_interval_of_a_mean_over_voxels():
    "With one voxel and one feature, resampled predictions are pairs of numbers: SciPy's bootstrap of R² has the same width."
    from scipy.stats import bootstrap
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 1))
    y = x + rng.normal(size=(300, 1))
    fit, new = np.arange(100), np.arange(100, 300)
    row = score(x, y, 'encoding', (fit, new), inference='bootstrap', n_draws=1500).iloc[0]
    told, mean = encoding_score(x[fit], y[fit], x[new], y[new]).predicted[:, 0], y[fit].mean()
    theirs = bootstrap((told, y[new, 0]), lambda a, b: 1 - ((b - a)**2).sum()/((b - mean)**2).sum(), paired=True, vectorized=False, n_resamples=1500, method='percentile', random_state=rng)
    assert row['ci_high'] - row['ci_low'] == pytest.approx(3.94*theirs.standard_error, rel=.1)


def test_permutation_is_that_of_its_page():
    x, y = world(60)
    table = score({'a': x, 'b': x[::-1].copy()}, y, ['rsa', 'cka', 'effective_rank'], inference='permutation', n_draws=99).set_index(['layer', 'measure'])
    for layer, o in (('a', x), ('b', x[::-1])):
        assert table.loc[(layer, 'rsa'), 'p'] == permutation_rsa(o, y, 99).table['p'][0]
        assert table.loc[(layer, 'cka'), 'p'] == permutation_cka(o, y, 99).table['p'][0]
        assert np.isnan(table.loc[(layer, 'effective_rank'), 'p']) and 'no pairing' in table.loc[(layer, 'effective_rank'), 'note']
    assert table['ci_low'].isna().all()


def test_p_values_of_fitted_measures():
    "Uniform where nothing is shared, small where something is."
    names = ['encoding_r', 'procrustes', 'prototype_alignment']
    found = np.array([score(*world(42, s, carriers=()), names, inference='permutation', n_draws=39, n_folds=4, n_prototypes=4)['p'] for s in range(40)])
    assert (abs(found.mean(0) - .51) < 4*.29/40**.5).all(), found.mean(0)
    assert (score(*world(80), names, inference='permutation', n_draws=99, n_prototypes=5)['p'] <= .02).all()


def test_inputs():
    torch = pytest.importorskip('torch')
    x, y = world(40)
    before = x.copy(), y.copy()
    plain = score(x, y, ['rsa', 'cka', 'encoding'])
    tensors = score({'': torch.tensor(x)}, torch.tensor(y), ['rsa', 'cka', 'encoding'])
    assert np.allclose(plain['value'], tensors['value']) and (x == before[0]).all() and (y == before[1]).all()
    assert list(plain) == ['layer', 'target', 'measure', 'value', 'ceiling_low', 'ceiling_high', 'ci_low', 'ci_high', 'p', 'n', 'note']
    r = Responses(y, [str(i) for i in range(40)])
    assert np.allclose(score(x, {'V4': r}, ['rsa', 'encoding'])['value'], plain['value'][[0, 2]], atol=1e-6)
    turned = Responses(y, r.ids, rotated=True)
    table = score(x, turned, ['encoding', 'soft_matching', 'encoding_pooled', 'rsa']).set_index('measure')
    assert table['value'].isna().tolist() == [True, True, False, False] and 'arbitrary' in table['note'].iloc[0]
    assert score({'a': x, 'b': x}, {'A': y, 'B': y}, ['rsa', 'effective_rank'])[['layer', 'target']].apply(tuple, axis=1).tolist() == [('a', 'A'), ('a', 'B'), ('a', ''), ('b', 'A'), ('b', 'B'), ('b', '')]


def test_reasons_instead_of_stops():
    x, y = world(40)
    table = score(np.zeros((40, 3)), y, ['rsa', 'cka', 'soft_matching', 'effective_rank'], inference='bootstrap', n_draws=20).set_index('measure')
    assert table[['value', 'ci_low', 'p']].isna().all(axis=None) and 'do not vary' in table.loc['soft_matching', 'note'] and 'rows do not vary' in table.loc['rsa', 'note']
    flat = score(x, np.c_[y, np.ones(40)], 'encoding', (np.arange(20), np.arange(20, 40)))
    assert np.isfinite(flat['value'].item()) and '1 of 8 units are constant' in flat['note'].item()


@pytest.mark.parametrize('about, message', [
    (dict(measures='rsa_spaerman'), "unknown measure 'rsa_spaerman', did you mean 'rsa_spearman'"), (dict(measures=['cka', 'CCA']), "unknown measure 'CCA'.*Known: rsa, cka"), (dict(measures=[]), 'no measure is asked for'),
    (dict(activations={'a': np.ones((39, 2)), 'b': np.ones((40, 2))}), r"same stimuli.*layer 'a'.*\(39, 2\)"), (dict(responses={'V': [np.ones((40, 2)), np.ones((41, 2))]}), r'\(41, 2\)'), (dict(responses={}), 'at least one layer and one target'),
    (dict(activations={}), 'at least one layer'), (dict(responses={'V': []}), 'got shapes'), (dict(groups=[1, 2]), r'groups of shape \(2,\) for 40'), (dict(n_folds=41, measures='encoding'), '41 folds of 40'),
    (dict(split=(np.arange(20), np.arange(19, 40))), '1 stimuli or content groups are in training and in test'), (dict(split=(np.arange(20), np.arange(20, 41))), 'test rows of a split'), (dict(split=(np.arange(20), np.array([], int))), 'test rows'),
    (dict(split=(np.arange(20), np.arange(20, 40)), groups=np.arange(40) % 30), '10 stimuli or content groups'), (dict(inference='t'), "'bootstrap' or 'permutation', got 't'"), (dict(inference='bootstrap', over='voxels'), "over is 'stimuli'"),
    (dict(inference='bootstrap', split=(np.arange(34), np.arange(34, 40))), 'at least 7 judged stimuli.*got 6'), (dict(inference='bootstrap', groups=np.arange(40) % 6), 'got 6'), (dict(activations={'conv': np.full((40, 2), np.nan)}), "layer 'conv': .*NaN"),
    (dict(responses=[Responses(np.ones((40, 2)), range(40)), Responses(np.ones((40, 2)), range(1, 41))]), '2 different lists of stimulus ids')])
def test_refusals(about, message):
    x, y = world(40)
    with pytest.raises(ValueError, match=message): score(**{**dict(activations=x, responses=y), **about})


def test_a_measure_of_your_own(monkeypatch):
    monkeypatch.setitem(MEASURES, 'first_unit', Measure('correlation of the first units', lambda a, b: float(np.corrcoef(a[:, 0], b[:, 0])[0, 1]), rows=True))
    x, y = world(40)
    row = score(x, y, 'first_unit', inference='bootstrap', n_draws=50).iloc[0]
    assert row['value'] == pytest.approx(np.corrcoef(x[:, 0], y[:, 0])[0, 1]) and row['ci_low'] < row['value'] < row['ci_high']


def test_curves():
    import matplotlib.pyplot as plt
    x, y = world(40)
    table = score({'a': x, 'b': 2*x + 1}, {'V': [recorded(y, 0), recorded(y, 1)], 'W': y}, ['rsa', 'encoding', 'effective_rank'], inference='bootstrap', n_draws=20)
    axes = plot_layers(table)
    assert [ax.get_title() for ax in axes] == ['rsa', 'encoding', 'effective_rank']
    assert len(axes[0].patches) == 1 and len(axes[0].lines) > len(axes[2].lines)
    curve = axes[0].containers[0].lines[0].get_ydata()
    assert np.allclose(curve, table[(table['measure'] == 'rsa') & (table['target'] == 'V')]['value'])
    plt.close('all')
