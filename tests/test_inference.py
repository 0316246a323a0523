"Inference beside its oracles: permutation, bootstrap, corrections, calibration."
from contextlib import redirect_stderr
from io import StringIO
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.spatial.distance import squareform
from statsmodels.stats.multitest import multipletests

from conftest import ROOT
from protoalign.bootstrap import bootstrap_counts, bootstrap_rsa, bootstrap_score, jackknife_score, resampled_rsa, two_factor_variance
from protoalign.calibration import CHECKS, binomial_limit, calibrate
from protoalign.cka import linear_cka
from protoalign.inference import exact_p, permutation_cka, permutation_encoding, permutation_rsa, permutation_test, rdm_stack, reindexed_scores, stimulus_orders, u_centred
from protoalign.ranks import rho_a, tau_a
from protoalign.rsa import rdm, rsa
from protoalign.stats import _sign_patterns, adjust_p, compare_arms, crossed_test, paired_over_stimuli, sign_flip_p


@pytest.fixture
def rng(): return np.random.default_rng(0)


def test_p_is_exact_and_uniform(rng):
    "With all orders equally likely, p takes each of its values equally often: Kolmogorov-Smirnov against the uniform distribution on 1/20 ... 1."
    p = np.array([permutation_rsa(*rng.standard_t(1.5, size=(2, 9, 3)), n_permutations=19, metric='euclidean', random_state=k).table.p[0] for k in range(800)])
    counts = np.bincount(np.round(20*p).astype(int), minlength=21)[1:]
    assert stats.chisquare(counts).pvalue > .001
    assert abs((p <= .05).mean() - .05) < .025


def test_permutation_of_six_stimuli_against_all_orders(rng):
    x, y = rng.normal(size=(2, 6, 3))
    scores = [rsa(x, y[list(o)], metric='euclidean') for o in permutations(range(6))]
    p = np.mean(np.array(scores) >= scores[0] - 1e-12)
    assert permutation_rsa(x, y, 8000, metric='euclidean').table.p[0] == pytest.approx(p, abs=.02)
    orders = np.array(list(permutations(range(6))))
    cka = reindexed_scores(u_centred(x)[None], u_centred(y), orders)[:, 0]*2
    np.testing.assert_allclose(cka[:50], [linear_cka(x, y[o]) for o in orders[:50]], atol=1e-12)


def test_scipy_permutation_of_pairings(rng):
    x = rng.normal(size=30)
    y = .4*x + rng.normal(size=30)
    r = lambda a, b: np.corrcoef(a, b)[0, 1]
    for tail, theirs in (('greater', 'greater'), ('two-sided', 'two-sided')):
        oracle = stats.permutation_test((y,), lambda o: r(x, o), permutation_type='pairings', n_resamples=4000, alternative=theirs, rng=1).pvalue
        assert permutation_test(r, x, y, 4000, tail=tail).table.p[0] == pytest.approx(oracle, abs=.012)


def test_orders_keep_groups_blocks_and_sizes():
    groups, blocks = np.array(list('aabbccdeefgg')), np.array([0]*6 + [1]*6)
    for order in stimulus_orders(12, 200, groups, blocks):
        assert sorted(order) == list(range(12)) and (blocks[order] == blocks).all()
        moved = groups[order]
        for start in np.flatnonzero(np.append(True, groups[1:] != groups[:-1])):
            assert (moved[groups == groups[start]] == moved[start]).all()
            assert (np.diff(order[groups == groups[start]]) == 1).all()


def test_max_statistic_is_never_smaller_and_stops_at_the_family(rng):
    scores = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12))
    p, family = exact_p(scores)
    assert (family >= p).all() and exact_p(scores[:, :1])[1] == exact_p(scores[:, :1])[0]
    t = (scores - scores.mean(0))/scores.std(0)
    np.testing.assert_allclose(family, [(t.max(1) >= o).mean() for o in t[0]])
    assert (family[:6] >= exact_p(scores[:, :6])[1] - 1e-12).all()
    bad = scores.copy()
    bad[:, 3] = np.nan
    assert np.isnan(exact_p(bad)[0][3]) and np.isnan(exact_p(bad)[1][3]) and np.isfinite(exact_p(bad)[1][:3]).all()


@pytest.mark.parametrize('tail', ['greater', 'two-sided'])
def test_an_order_without_a_score_counts_as_reaching(rng, tail):
    "One NaN made p and p_max of its score 1, and the mean of the null NaN, without a word."
    scores = rng.normal(size=(200, 5))
    scores[0] = 3
    holes = scores.copy()
    holes[[7, 70], 2] = np.nan
    full = exact_p(np.delete(scores, [7, 70], 0), tail)
    with pytest.warns(UserWarning, match='2 of 199 random orders have no score.* for 1 of 5 scores'): p, p_max = exact_p(holes, tail)
    t = (holes - np.nanmean(holes, 0))/np.nanstd(holes, 0)
    t = np.abs(t) if tail == 'two-sided' else t
    assert p[2] == pytest.approx((198*full[0][2] + 2)/200) and p[2] < .05
    np.testing.assert_allclose(p_max, [((np.nanmax(t, 1) >= t[0, k]) | np.isnan(t[:, k])).mean() for k in range(5)])
    assert (p_max < .2).all() and (p_max >= p).all()


def test_permutation_test_with_an_order_without_a_score(rng):
    x, y = np.arange(9.), np.arange(9.)
    score = lambda a, b: np.nan if b[0] == 4 else stats.pearsonr(a, b).statistic
    with pytest.warns(UserWarning, match='random orders have no score'): found = permutation_test(score, x, y, 99)
    known = found.null[np.isfinite(found.null)]
    lost = 99 - len(known)
    assert 0 < lost < 40 and found.table.p[0] == found.table.p_max[0] == (lost + 1)/100
    assert found.table.null_mean[0] == pytest.approx(known.mean()) and found.table.null_95[0] == pytest.approx(np.quantile(known, .95))


def test_a_stimulus_without_a_score_is_refused(rng):
    "With groups, pandas left it out of its sum: p_sign_flip was that of other data."
    a, b = rng.normal(size=(2, 3, 20)) + [[[.6]], [[0]]]
    a[1, 4] = np.nan
    for groups in (None, np.arange(20)//2):
        with pytest.raises(ValueError, match='1 of 20 stimuli have a NaN or infinite difference'): paired_over_stimuli(a, b, groups, n_draws=50)


def test_torch_and_lists(rng):
    torch = pytest.importorskip('torch')
    x, y = rng.normal(size=(2, 12, 4))
    for f in (permutation_rsa, permutation_cka): assert f(torch.as_tensor(x), torch.as_tensor(y), 50).table.equals(f(x, y, 50).table)
    assert bootstrap_rsa(torch.as_tensor(x), torch.as_tensor(y), n_draws=20).table.equals(bootstrap_rsa(x, y, n_draws=20).table)


@pytest.mark.parametrize('method, theirs', [('spearman', 'spearman'), ('pearson', 'corr'), ('cosine', 'cosine')])
def test_rsatoolbox_on_the_same_draws(rng, method, theirs):
    rsatoolbox = pytest.importorskip('rsatoolbox')
    n, k = 15, 40
    z = rng.normal(size=(n, 4))
    x = np.stack([rdm(z), rdm((z[:, :1] > 0).astype(float), 'euclidean')])
    y = np.stack([rdm(z + rng.normal(size=z.shape)) for _ in range(3)])
    state = np.random.RandomState(2)
    counts = np.array([np.bincount(state.randint(0, n, size=n), minlength=n) for _ in range(k)])
    np.random.seed(2)
    with redirect_stderr(StringIO()):
        peer = rsatoolbox.inference.eval_bootstrap_pattern([rsatoolbox.model.ModelFixed(str(i), d) for i, d in enumerate(x)], rsatoolbox.rdm.RDMs(y), method=theirs, N=k, boot_noise_ceil=False)
    ours = resampled_rsa(x, y, counts, method).mean(2)
    np.testing.assert_allclose(ours, peer.evaluations, atol=1e-10)
    gap = ours[:, 0] - ours[:, 1]
    np.testing.assert_allclose([n/(n - 1)*ours[:, 0].var(ddof=1), n/(n - 1)*gap.var(ddof=1)], [peer.model_var[0], peer.diff_var[0]], rtol=1e-8)


def test_rsatoolbox_correction_of_two_factors(rng):
    util = pytest.importorskip('rsatoolbox.util.inference_util')
    three = rng.uniform(.1, 1, size=(3, 200))
    np.testing.assert_allclose(two_factor_variance(*three, 6, 20), util._dual_bootstrap(three, 6, 20), rtol=1e-12)


def test_groups_in_a_bootstrap_sample(rng):
    "Written out: a copy of a group is a group of its own, and pairs of two copies of one group are dropped."
    groups, (i, j) = np.arange(24)//3, np.triu_indices(24, 1)
    x, y = (rdm(rng.normal(size=(24, 5)))[None] for _ in range(2))
    counts = bootstrap_counts(24, 5, groups)
    assert (counts.reshape(5, 8, 3) == counts.reshape(5, 8, 3)[:, :, :1]).all()
    for c, score in zip(counts, resampled_rsa(x, y, counts, 'spearman', groups)[:, 0, 0]):
        times = np.where(groups[i] == groups[j], c[i], c[i]*c[j])
        assert score == pytest.approx(stats.spearmanr(np.repeat(x[0], times), np.repeat(y[0], times)).statistic, abs=1e-10)


def test_models_that_do_not_vary_in_some_draws(rng):
    z = rng.normal(size=(8, 3))
    odd = np.r_[1, np.zeros(7)][:, None]
    found = bootstrap_rsa({'z': z, 'odd one out': rdm(odd, 'euclidean')}, [z + rng.normal(size=z.shape)], n_draws=200, metric='euclidean')
    assert np.isnan(found.draws[:, 1]).any() and np.isfinite(found.table.se).all() and np.isfinite(found.differences.se).all()


def test_a_model_that_does_not_vary_is_nan_with_a_warning(rng):
    x, models = rng.normal(size=(10, 3)), {'flat': np.ones(45), 'z': rng.uniform(size=45)}
    for test in (permutation_rsa, bootstrap_rsa):
        for method in ('spearman', 'pearson'):
            with pytest.warns(UserWarning, match='RDMs of 1 of 2 systems do not vary') as told: found = test(models, x, method=method)
            assert {o.category for o in told} == {UserWarning}
            assert np.isnan(found.table.score[0]) and np.isnan(found.table.p[0]) and np.isfinite(found.table.p[1])
            if test is permutation_rsa: assert found.table.p_max[1] == found.table.p[1]


@pytest.mark.parametrize('call, said', [
    (lambda x: bootstrap_rsa(x[:6], x[:6]), 'at least 7 different ones'),
    (lambda x: bootstrap_rsa(x, x[:10]), '12 stimuli|pairs'),
    (lambda x: bootstrap_rsa(x, x, over='people'), "unknown factor 'people'"),
    (lambda x: bootstrap_counts(12, groups=range(5)), '5 groups for 12 stimuli'),
    (lambda x: jackknife_score(lambda rows: 0., 12, groups=np.arange(12)//2), 'got 6'),
    (lambda x: bootstrap_score(lambda rows: [0., 1.], 12, names=['one']), '1 names'),
    (lambda x: permutation_rsa([], x), 'at least one system'),
    (lambda x: permutation_rsa([x, x[:10]], x), 'all with the same stimuli'),
    (lambda x: permutation_encoding(x, x[:, :2]), r'\(12, 4\) and \(12, 2\)'),
    (lambda x: permutation_test(np.dot, x, x[:5]), r'\(12, 4\) and \(5, 4\)'),
    (lambda x: stimulus_orders(3, 10, groups=['a', np.nan, 'b']), 'no value in groups'),
    (lambda x: exact_p(x, 'less'), "unknown tail 'less'"),
    (lambda x: crossed_test(x[:1]), 'at least 2 of each'),
    (lambda x: paired_over_stimuli(x[0], x[1]), 'at least 7')])
def test_bad_input_says_what_is_wrong(rng, call, said):
    with pytest.raises(ValueError, match=said): call(rng.normal(size=(12, 4)))


def test_one_model_has_no_differences(rng):
    found = bootstrap_rsa(rng.normal(size=(10, 3)), rng.normal(size=(10, 3)), n_draws=30)
    assert len(found.table) == 1 and len(found.differences) == 0 and list(found.differences)[:3] == ['name', 'minus', 'difference']


def test_subjects_closed_form_and_interval(rng):
    x, ys = rng.normal(size=(12, 4)), [rng.normal(size=(12, 4)) for _ in range(6)]
    each = [rsa(x, y) for y in ys]
    row = bootstrap_rsa(x, ys, 'subjects', 40_000).table.iloc[0]
    test = stats.ttest_1samp(each, 0)
    low, high = test.confidence_interval()
    np.testing.assert_allclose([row.se, row.ci_low, row.ci_high, row.p], [stats.sem(each), low, high, test.pvalue], atol=.005)


def test_corrections_as_properties(rng):
    p = rng.uniform(size=(40, 9))**3
    for row in p:
        bonferroni, holm, bh, by = (adjust_p(row, m) for m in ('bonferroni', 'holm', 'bh', 'by'))
        assert (row <= bh).all() and (bh <= holm + 1e-15).all() and (holm <= bonferroni).all() and (bh <= by).all()
        np.testing.assert_allclose([bonferroni, holm, bh, by], [multipletests(row, method=m)[1] for m in ('bonferroni', 'holm', 'fdr_bh', 'fdr_by')], rtol=1e-12)
        order = rng.permutation(9)
        np.testing.assert_array_equal(adjust_p(row[order]), holm[order])
    assert adjust_p([]).size == 0 and np.isnan(adjust_p([np.nan])).all()


def test_a_claim_over_stimuli_beside_ttest(rng):
    a, b = rng.normal(size=(2, 40)) + [[.5], [0]]
    found, test = paired_over_stimuli(a, b, n_draws=8000), stats.ttest_rel(a, b)
    low, high = test.confidence_interval()
    np.testing.assert_allclose([found['ci_low'], found['ci_high']], [low, high], atol=.02)
    assert found['p'] == pytest.approx(test.pvalue, abs=.01)


def test_groups_flip_as_wholes_and_seeds_and_stimuli_cross(rng):
    d = rng.normal(size=10) + .3
    copies = paired_over_stimuli(d.repeat(3), np.zeros(30), groups=np.arange(30)//3)
    assert copies['p_sign_flip'] == pytest.approx(paired_over_stimuli(d, np.zeros(10))['p_sign_flip']) and copies['n_groups'] == 10
    table = rng.normal(size=(6, 1)) + rng.normal(size=9) + .5*rng.normal(size=(6, 9))
    m, s = table.mean(1).var(ddof=1), table.mean(0).var(ddof=1)
    e = ((table - table.mean(1, keepdims=True) - table.mean(0) + table.mean())**2).sum()/40
    assert crossed_test(table)['se']**2 == pytest.approx(m/6 + s/9 - e/54)


def test_compare_arms_names_its_family(rng):
    made = pd.DataFrame([dict(arm=a, seed=s, split_seed=s, metric=m, layer='l', split='test', value=rng.normal()) for a in ('protoalign', 'vanilla', 'shuffled') for s in range(4) for m in 'xyz'])
    table = compare_arms(made)
    assert set(table.family) == {'6 paired t-tests over seeds: 3 metrics × 1 layer × 2 baselines, against protoalign'}
    task = compare_arms(made.assign(layer=made.layer.where(made.metric != 'z', '')))
    assert set(task.family) == set(table.family), 'rows of the task have no layer, which is not a layer more'
    np.testing.assert_allclose(table.p_holm, adjust_p(table.p, 'holm'))
    assert set(compare_arms(made, metrics=['x'], baselines=['vanilla']).family) == {'1 paired t-test over seeds: 1 metric × 1 layer × 1 baseline, against protoalign'}


def test_calibration_table_is_committed_and_complete():
    table = pd.read_csv(ROOT/'nbs'/'results'/'calibration.csv')
    assert (table.n_worlds == 2000).all() and table[table.role == 'ours'].kept.all() and (~table.within & table.kept).sum() == table.rate_again.notna().sum() <= 2
    live = calibrate(8)
    pd.testing.assert_frame_equal(live[['test', 'world', 'what', 'role', 'check']], table[['test', 'world', 'what', 'role', 'check']])
    assert binomial_limit(2000) == table[table.what == 'false positives'].limit.iloc[0] == .0655 and len(CHECKS) == 10


def test_speed_table_meets_its_aim():
    table = pd.read_csv(ROOT/'nbs'/'results'/'bootstrap_speed.csv')
    assert (table.largest_difference < 1e-10).all() and (table.n_draws == 1000).all()
    assert (table[table.what != 'protoalign'].ratio >= 30).all()


def test_signs_by_blocks(rng):
    "Blocks are the same patterns as all at once, and need little memory."
    import tracemalloc
    for n in (1, 5, 16, 17, 40):
        d = rng.normal(size=n) + .3
        signs = 1 - 2*((np.arange(2**n)[:, None] >> np.arange(n)) & 1 if n <= 16 else np.random.default_rng(0).integers(2, size=(2**16, n)))
        reached = np.abs(signs @ d) >= abs(d.sum()) - 1e-12*np.abs(d).sum()
        assert sign_flip_p(d) == (reached.mean() if n <= 16 else (reached.sum() + 1)/(2**16 + 1))
        np.testing.assert_array_equal(np.concatenate(list(_sign_patterns(n, 3*n + 1))), (1 - signs)//2)
    tracemalloc.start()
    sign_flip_p(rng.normal(size=2000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e8


def cells(o, method): return np.round(5*rdm(o, 'euclidean')) if method in ('rho-a', 'tau-a') else rdm(o, 'sqeuclidean')


@pytest.mark.parametrize('method', ['spearman', 'rho-a', 'tau-a', 'pearson', 'cosine', 'whitened-pearson', 'whitened-cosine'])
@pytest.mark.parametrize('groups', [None, np.arange(12)//2])
def test_every_comparison_is_that_of_rsa(rng, method, groups):
    "Reordered and resampled by hand, with `rsa` for the score."
    x, y = rng.normal(size=(2, 12, 4)), rng.normal(size=(3, 12, 4))
    models, people = ([cells(o, method) for o in side] for side in (x, y))
    found, (i, j) = permutation_rsa(models, people, 9, groups, method=method), np.triu_indices(12, 1)
    for o, scores in zip(stimulus_orders(12, 9, groups), np.vstack([found.table.score, found.null])):
        moved = [squareform(d)[np.ix_(o, o)][i, j] for d in people]
        np.testing.assert_allclose(scores, [np.mean([rsa(m, d, method) for d in moved]) for m in models], atol=1e-10)
    each = np.array([[rsa(m, d, method) for d in people] for m in models])
    over_people = bootstrap_rsa(models, people, 'subjects', 50, method=method)
    np.testing.assert_allclose(over_people.table.score, each.mean(1), atol=1e-10)
    np.testing.assert_allclose(over_people.draws, over_people.subject_counts/3 @ each.T, atol=1e-10)
    if 'whitened' in method:
        with pytest.raises(ValueError, match="jackknife_score.*'spearman', 'rho-a', 'tau-a', 'pearson' or 'cosine'"): bootstrap_rsa(models, people, n_draws=5, method=method)
        return
    if groups is not None: groups = np.r_[np.arange(10), 9, 9]
    drawn = bootstrap_rsa(models, people, n_draws=6, groups=groups, method=method)
    for c, scores in zip(drawn.counts, drawn.draws):
        times = c[i]*c[j] if groups is None else np.where(groups[i] == groups[j], c[i], c[i]*c[j])
        compare = {'rho-a': rho_a, 'tau-a': tau_a}.get(method, lambda a, b: compare_values(a, b, method))
        np.testing.assert_allclose(scores, [np.mean([compare(np.repeat(m, times), np.repeat(d, times)) for d in people]) for m in models], atol=1e-10)


def compare_values(a, b, method):
    if method == 'spearman': return stats.spearmanr(a, b).statistic
    return stats.pearsonr(a, b).statistic if method == 'pearson' else a @ b/np.sqrt((a @ a)*(b @ b))


@pytest.mark.parametrize('method', ['rho-a', 'tau-a', 'whitened-pearson', 'whitened-cosine'])
def test_a_model_that_says_nothing_has_no_score(rng, method):
    flat, y = np.full(45, 0. if method == 'whitened-cosine' else .3), rng.normal(size=(10, 3))
    for test in (permutation_rsa, lambda *o, **about: bootstrap_rsa(o[0], [o[1]]*2, 'subjects', 20, **about)):
        with pytest.warns(UserWarning, match='do not vary'): found = test({'flat': flat, 'y': rdm(y)}, y, method=method)
        assert np.isnan(found.table.score[0]) and found.table.score[1] == pytest.approx(1)
