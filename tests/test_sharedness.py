"Choosing K and sharedness: planted truth, exact nulls against brute force, invariances, and bad input."
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from conftest import ROOT
from protoalign.choose_k import CRITERIA, best_k, choose_k, cross_modal_agreement, half_samples, match_prototypes, stimulus_permutations, subject_stability
from protoalign.data import planted_world
from protoalign.joint import JointPrototypes
from protoalign.sharedness import FLAGS, _both_ways, margins, mixed_world, permutation_p, plot_sharedness, sharedness

TRAIN, NEW = slice(0, 400), slice(400, 600)


def fitted(x, y, k=6, **options): return JointPrototypes(k, n_init=5, **options).fit(x[TRAIN], y[TRAIN])


def carriers(model, sees_network, sees_brain):
    "What each prototype's training members were made of, where four fifths are of one kind; None for mixed ones."
    found = []
    for k in range(model.n_prototypes):
        a, b = (np.bincount(s[TRAIN][model.labels_ == k], minlength=6)/max(1, (model.labels_ == k).sum()) for s in (sees_network, sees_brain))
        pure = {'shared': np.minimum(a, b)[:3].max(), 'network only': a[3:5].max(), 'brain only': b[5]}
        best = max(pure, key=pure.get)
        found.append(best if pure[best] > .8 else None)
    return found


def test_mixed_carriers_are_told_apart():
    "Over 12 worlds: every shared prototype is called shared, no single-sided one is, and most of those are called by their side."
    rows = []
    for seed in range(12):
        x, y, *sees = mixed_world(noise=1., seed=seed)
        model = fitted(x, y)
        table = sharedness(model, x[NEW], y[NEW], n_permutations=200)
        rows += [(t, f) for t, f in zip(carriers(model, *sees), table.flag) if t]
    rows = pd.DataFrame(rows, columns=['truth', 'flag'])
    table = pd.crosstab(rows.truth, rows.flag, normalize='index').reindex(columns=FLAGS, fill_value=0)
    assert table.loc['shared', 'shared'] > .95
    assert (table.loc[['network only', 'brain only'], 'shared'] < .1).all(), table
    assert table.loc['network only', 'network only'] > .8 and table.loc['brain only', 'brain only'] > .95, table


def test_crossed_cells_are_not_called_shared():
    "Two independent structures, K the product of their concepts: K-means makes cells that both sides carry in part."
    x, y = planted_world(n_stimuli=600, n_concepts=2, carriers=('dnn',), seed=1)[0], planted_world(n_stimuli=600, n_concepts=2, carriers=('brain',), seed=2)[1]
    table = sharedness(fitted(x, y, 4), x[NEW], y[NEW], n_permutations=300)
    assert table.flag.tolist() == ['crossed']*4


def test_p_values_are_uniform_and_families_are_held():
    "Noise on both sides; one shared null, so that both directions of the score must be permuted alike."
    p, families, carried = [], [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(120, 8)), rng.normal(size=(120, 9))
        table = sharedness(JointPrototypes(4, n_init=1).fit(x[:60], y[:60]), x[60:], y[60:], n_permutations=199, random_state=seed)
        carried += [(table[c] <= .05).any() for c in ('p_network', 'p_brain')]
        table = table.dropna(subset=['p'])
        p.append(table.p.iloc[0])
        families.append(table.p_corrected.min())
        assert (table.p_corrected >= table.p).all()
    assert kstest(p, 'uniform').pvalue > .01
    assert np.mean(np.array(families) <= .05) <= .15 and np.mean(carried) <= .05


def test_the_committed_calibration_holds():
    "nbs/results/sharedness_null.csv: 200 worlds each; what is tested rightly keeps its 5 %, within three standard errors."
    table = pd.read_csv(ROOT/'nbs'/'results'/'sharedness_null.csv', index_col='world')
    assert (table.n_worlds == 200).all()
    right = table.drop('in groups, tested by stimulus')
    for column in ('p', 'world', 'chosen'): assert (right[f'share_{column}'] <= .05 + 3*right[f'se_{column}'].clip(lower=.0154/3)).all(), column
    assert table.share_world['in groups, tested by stimulus'] > .15


def test_the_committed_choices_hold():
    "nbs/results/sharedness_choices.csv: one pairing keeps the family, two do not; the least part makes fewer one-sided prototypes crossed, and none more shared."
    table = pd.read_csv(ROOT/'nbs'/'results'/'sharedness_choices.csv')
    count = table.set_index(['choice', 'way', 'counted'])['count']/table.set_index(['choice', 'way', 'counted'])['of']
    null = count['null of the score'].droplevel(1)
    assert null['one pairing'] < .05 + 3*np.sqrt(.05*.95/200) < null['two pairings']
    least = count['least part of a carrier'].unstack()
    crossed, shared = (least[f'one-sided prototypes called {f}'] for f in ('crossed', 'shared'))
    assert crossed['0.25'] < crossed['0.0'] and shared['0.25'] == shared['0.0'] < .05


@pytest.mark.parametrize('seed', [0, 1])
def test_numbers_of_marks_do_not_overprint(seed):
    "As many as 20 prototypes, half of them in one corner: no two numbers on one another."
    import matplotlib.pyplot as plt
    from matplotlib.text import Text
    x, y, *_ = mixed_world(seed=seed)
    table = pd.concat([sharedness(fitted(x, y), x[NEW], y[NEW], n_permutations=20)]*4, ignore_index=True)[:20]
    rng = np.random.default_rng(seed)
    table = table.assign(prototype=range(20), explained_network=rng.uniform(0, .02, 20)*np.repeat([1, .15], 10), explained_brain=rng.uniform(0, .03, 20)*np.repeat([1, .15], 10))
    ax = plot_sharedness(table)[0]
    ax.figure.canvas.draw()
    boxes = [Text.get_window_extent(t) for t in ax.texts] # without the line to the mark
    plt.close(ax.figure)
    assert len(boxes) == 20 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_score_and_null_against_all_permutations():
    "Five stimuli, 120 orders: scores by scikit-learn, p by counting."
    rng = np.random.default_rng(0)
    z, r = rng.random(size=(2, 5, 2))
    orders = np.array(list(permutations(range(5))))
    members = z.argmin(1)[:, None] == np.arange(2), r.argmin(1)[:, None] == np.arange(2)
    scores = _both_ways(z, r, orders)
    def pooled(o, k):
        pairs = [(members[0][o, k], margins(r)[:, k]), (members[1][:, k], margins(z)[o, k])]
        weights = [m.sum()*(5 - m.sum()) for m, _ in pairs]
        return np.average([roc_auc_score(m, e) if w else 0 for (m, e), w in zip(pairs, weights)], weights=weights)
    np.testing.assert_allclose(scores, [[pooled(o, k) for k in range(2)] for o in orders], atol=1e-12)
    np.testing.assert_allclose(scores.mean(0), .5, atol=1e-12) # over all orders the area is one half
    alone, corrected = permutation_p(scores)
    np.testing.assert_allclose(alone, [(scores[:, k] >= scores[0, k] - 1e-12).mean() for k in range(2)], atol=.01)
    assert (corrected >= alone).all()


def test_correction_is_in_units_of_each_null():
    "A small prototype with a wide null does not hide a large one with a narrow null."
    scores = np.random.default_rng(0).normal(size=(1000, 2))*[1, .01]
    scores[0] = 0, .05
    alone, corrected = permutation_p(scores)
    assert corrected[1] < .01 and alone[0] > .3 and corrected[0] > .5


def test_units_rotation_and_order_do_not_matter():
    "The score, not the halves: these follow features, and features change under rotation."
    x, y, *_ = mixed_world(seed=3)
    table = sharedness(fitted(x, y), x[NEW], y[NEW], n_permutations=50)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(60, 60)))[0]
    other = sharedness(fitted(7*x + 3, 1e-3*y @ turn), 7*x[NEW] + 3, 1e-3*y[NEW] @ turn, n_permutations=50)
    match = match_prototypes(fitted(x, y), fitted(7*x + 3, y))['order']
    np.testing.assert_allclose(other.score.to_numpy()[match], table.score, atol=1e-6)
    shuffle = np.random.default_rng(0).permutation(200)
    again = sharedness(fitted(x, y), x[NEW][shuffle], y[NEW][shuffle], n_permutations=50)
    np.testing.assert_allclose(again[['score', 'explained_network', 'within_brain']], table[['score', 'explained_network', 'within_brain']], atol=1e-9)


def test_same_seed_same_table():
    x, y, *_ = mixed_world(seed=4)
    model = fitted(x, y)
    pd.testing.assert_frame_equal(*(sharedness(model, x[NEW], y[NEW], n_permutations=50) for _ in range(2)))


@pytest.mark.parametrize('options', [dict(joint='pca'), dict(joint='cca'), dict(brain_weight=0.), dict(brain_weight=1.), dict(back_projection='inverse'), dict(balance='singular')])
def test_every_kind_of_fit(options):
    x, y, *_ = mixed_world(noise=1., seed=5)
    table = sharedness(fitted(x, y, **options), x[NEW], y[NEW], n_permutations=50)
    assert np.isfinite(table.explained_network).all() and set(table.flag) <= set(FLAGS) and (table.flag == 'shared').any()


def test_empty_prototypes_are_neither():
    "Fewer distinct stimuli than prototypes: those without members have no score, and are not shared, wherever new stimuli fall."
    x, y = np.repeat(np.random.default_rng(0).normal(size=(2, 2, 4)), 6, axis=1)
    rng = np.random.default_rng(1)
    new = [np.concatenate([o[::2], o.mean(0) + .1*rng.normal(size=(12, 4))]) for o in (x, y)] # half of them at the mean, where empty prototypes are
    for weight in (0., .5, 1.):
        with pytest.warns(match='distinct clusters'): model = JointPrototypes(5, brain_weight=weight).fit(x, y)
        empty = model.counts_ == 0
        table = sharedness(model, *new, n_permutations=50)
        assert empty.sum() == 3 and (table.n_network[empty] == 0).all() and table.score[empty].isna().all() and table.p_corrected[empty].isna().all()
        assert (table.flag[empty] == 'neither').all() and (table.explained_network[empty] == 0).all()
        assert table.score[~empty].notna().any() and (table.within_network[~empty].dropna() >= 0).all()


def test_permutations_keep_groups():
    groups = np.repeat(np.arange(20), 3)
    orders = stimulus_permutations(60, 20, groups)
    assert (np.sort(orders, axis=1) == np.arange(60)).all()
    assert all(len(set(groups[o[3*i:3*i + 3]])) == 1 for o in orders for i in range(20))
    with pytest.raises(ValueError, match='none can change places'): stimulus_permutations(3, 5, ['a', 'a', 'b'])
    with pytest.raises(ValueError, match='2 groups for 3 stimuli'): stimulus_permutations(3, 5, ['a', 'b'])
    for a, b in half_samples(60, 5, groups): assert not set(groups[a]) & set(groups[b]) and len(a) + len(b) == 60


def test_best_k_by_its_rule():
    def row(k, criterion, value, sd=0., p=np.nan): return dict(K=k, criterion=criterion, value=value, sd=sd, n=4, null=np.nan, p=p)
    rows = [row(k, 'agreement', .5, p=p) for k, p in ((5, .001), (10, .001), (20, .001), (50, .2))]
    rows += [row(5, 'stability', .6, .1), row(10, 'stability', .8, .1), row(20, 'stability', .76, .1), row(50, 'stability', .99, .01)]
    table = pd.DataFrame(rows)
    assert best_k(table) == 20 # 50 is not above chance, 10 is the most stable, 20 within 0.1/sqrt(4) of it
    with pytest.raises(ValueError, match='above chance at none'): best_k(table, alpha=1e-4)


@pytest.mark.parametrize('seed', [0, 1])
def test_planted_k_is_found(seed):
    x, y, _ = planted_world(n_stimuli=300, n_concepts=5, noise=2., seed=seed)
    table = choose_k(JointPrototypes(n_init=5, n_components_dnn=20, n_components_brain=20), x, y, (3, 5, 8, 12), n_resamples=4, n_permutations=200)
    assert best_k(table) == 5 and set(table.criterion) == set(CRITERIA) and len(table) == 4*len(CRITERIA)
    with pytest.warns(UserWarning, match='K = .100. skipped'): choose_k(JointPrototypes(n_init=1), x, y, (5, 100), n_resamples=2, n_permutations=9)


def test_bad_input():
    x, y, _ = planted_world()
    model = JointPrototypes(6).fit(x, y)
    with pytest.raises(ValueError, match='same stimuli'): sharedness(model, x, y[:-1])
    with pytest.raises(ValueError, match='fitted with 40 features'): sharedness(model, x[:, :-1], y)
    with pytest.raises(ValueError, match='one feature'): sharedness(JointPrototypes(3).fit(x, y[:, 0]), x, y[:, 0])
    with pytest.raises(ValueError, match='fit two or more'): sharedness(JointPrototypes(1).fit(x, y), x, y)
    with pytest.raises(ValueError, match='fits 240 training stimuli'): choose_k(model, x, y, (1, 200))
    with pytest.raises(ValueError, match='n_resamples'): choose_k(model, x, y, n_resamples=1)
    with pytest.raises(ValueError, match='names for 6'): plot_sharedness(sharedness(model, x, y, 5), ['one'])
    with pytest.raises(ValueError, match='two subjects'): subject_stability({'a': model}, {'a': y})
    with pytest.raises(ValueError, match='same new stimuli'): subject_stability({'a': model, 'b': model}, {'a': y, 'b': y[:5]})
    with pytest.raises(ValueError, match='NaN'): sharedness(model, np.full_like(x, np.nan), y)
