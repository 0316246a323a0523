"Which prototypes two systems agree on: scikit-learn's numbers, planted truth, nulls and refusals."
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score, cohen_kappa_score, matthews_corrcoef, roc_auc_score

from protoalign.choose_k import cross_modal_agreement
from protoalign.data import planted_world
from protoalign.joint import JointPrototypes
from protoalign.prototype_alignment import PrototypeAlignment, _squared, alignment_difference, matched_labels, partition_agreement, phi, plot_prototype_alignment, prototype_alignment
from protoalign.sharedness import margins, mixed_world, sharedness


def both_new(n=400, seed=0, **about):
    acts, brain, concept = planted_world(2*n, noise=2., seed=seed, **about)
    return (acts[:n], brain[:n], acts[n:], brain[n:]), concept[:n], concept[n:]


@pytest.mark.parametrize('k_a, k_b', [(4, 4), (3, 6), (6, 3)])
def test_partitions_by_scikit_learn(k_a, k_b):
    rng = np.random.default_rng(k_a)
    b_train, b = rng.integers(k_b, size=(2, 120))
    a_train, a = (np.where(rng.random(120) < .6, o % k_a, rng.integers(k_a, size=120)) for o in (b_train, b))
    found, match = partition_agreement(a_train, b_train, a, b, n_permutations=50), matched_labels(a_train, b_train)
    assert found.value['ari'] == pytest.approx(adjusted_rand_score(a, b))
    assert found.value['kappa'] == pytest.approx(cohen_kappa_score(a, [match.get(int(j), 99) for j in b]))
    assert len(match) == min(k_a, k_b) == len(set(match.values())) and (found.p <= 1/51 + 1e-9).all()
    renamed = partition_agreement(np.roll(range(k_a), 1)[a_train], b_train, np.roll(range(k_a), 1)[a], b, n_permutations=50)
    assert np.allclose(renamed.value, found.value)


def test_partition_null():
    rng = np.random.default_rng(0)
    found = [partition_agreement(*rng.integers(5, size=(4, 60)), n_permutations=99) for _ in range(200)]
    for name in ('ari', 'kappa'):
        values = [o.value[name] for o in found]
        assert abs(np.mean(values)) < 4*np.std(values)/200**.5
        assert np.mean([o.p[name] <= .05 for o in found]) < .11
    flat = partition_agreement(*rng.integers(2, size=(2, 20)), np.zeros(20, int), np.zeros(20, int), n_permutations=9)
    assert np.isnan(flat.value['ari']) and np.isnan(flat.p['ari']) and not flat.value['kappa'] > 0


def test_phi_by_scikit_learn():
    rng = np.random.default_rng(0)
    a, b = rng.integers(4, size=(3, 60)), rng.integers(4, size=60)
    assert np.allclose(phi(a, b, 4), [[matthews_corrcoef(o == k, b == k) for k in range(4)] for o in a])
    assert np.isnan(phi(a[0], b, 5)[4]) and np.allclose(phi(b, b, 4), 1)


def test_auc_by_scikit_learn_and_by_sharedness():
    "The same number as `sharedness` where the prototypes are those of one joint fit in full rank."
    (x, y, x_new, y_new), _, _ = both_new()
    fitted = JointPrototypes(6, n_components_dnn=500, n_components_brain=500).fit(x, y)
    found = prototype_alignment(x, y, x_new, y_new, labels=fitted.labels_, n_permutations=50)
    table = sharedness(fitted, x_new, y_new, n_permutations=50)
    assert np.allclose(found.table.auc, table.score, atol=1e-9) and np.allclose(found.table.p, table.p) and np.allclose(found.table.p_corrected, table.p_corrected) and np.allclose(found.table.null_high, table.null_high)
    theirs = cross_modal_agreement(fitted, x_new, y_new, n_permutations=50)
    assert found.kappa == pytest.approx(theirs['kappa']) and found.p == pytest.approx(theirs['p'])
    squared = [_squared(a, fitted.labels_, b, 6) for a, b in ((x, x_new), (y, y_new))]
    ways = [[(m == k, margins(s)[:, k]) for m, s in ((found.first, squared[1]), (found.second, squared[0]))] for k in range(6)]
    pooled = [np.average([roc_auc_score(*o) for o in w], weights=[o[0].sum()*(~o[0]).sum() for o in w]) for w in ways]
    assert np.allclose(found.table.auc, pooled)


def test_planted_truth():
    "Shared concepts are found, the brain's own is not, whatever the seed; the parts of the table belong together."
    wrong = 0
    for seed in range(10):
        acts, brain, _, sees = mixed_world(900, seed=seed)
        codes = np.unique(sees, return_inverse=True)[1]
        found = prototype_alignment(acts[:500], brain[:500], acts[500:], brain[500:], labels=codes[:500], n_permutations=200).table
        assert (found.p_corrected[:3] < .05).all()
        wrong += found.p_corrected[3] <= .05
        assert (found.n_first.sum(), found.n_second.sum()) == (400, 400)
        assert np.allclose(found.found*found.n_second, found.right*found.n_first) and (found.instead_share <= 1 - found.found + 1e-9).all()
    assert wrong <= 2


def test_order_of_the_systems():
    (x, y, x_new, y_new), concept, _ = both_new()
    one, other = prototype_alignment(x, y, x_new, y_new, labels=concept, n_permutations=9), prototype_alignment(y, x, y_new, x_new, labels=concept, n_permutations=9)
    assert np.allclose(one.table.phi, other.table.phi) and np.allclose(one.table.auc, other.table.auc) and np.allclose(one.table.found, other.table.right)


def test_nothing_of_the_new_stimuli_decides_the_prototypes():
    (x, y, x_new, y_new), _, _ = both_new(n=100)
    whole, part = (prototype_alignment(x, y, x_new[:n], y_new[:n], n_prototypes=4, n_permutations=5) for n in (100, 50))
    assert (whole.first[:50] == part.first).all() and (whole.second[:50] == part.second).all()


def test_p_in_noise():
    "Ties between permutations make kappa's p a little conservative with 30 stimuli."
    rng = np.random.default_rng(0)
    found = [prototype_alignment(*(rng.normal(size=(n, 6)) for n in (40, 40, 30, 30)), n_prototypes=4, n_permutations=49) for _ in range(200)]
    p = np.array([o.p for o in found])
    assert (p <= .05).mean() < .1 and .45 < p.mean() < .65
    assert np.mean([o.table.p_corrected.min() <= .05 for o in found]) < .1


def test_groups_are_permuted_as_wholes():
    (x, y, x_new, y_new), concept, _ = both_new(n=60)
    twice = np.repeat(np.arange(60), 2)
    alone = prototype_alignment(x, y, x_new, y_new, labels=concept, n_permutations=99)
    doubled = prototype_alignment(x, y, x_new[twice], y_new[twice], labels=concept, n_permutations=99, groups=twice)
    assert np.allclose(alone.table.phi, doubled.table.phi) and np.allclose(alone.table.null_high, doubled.table.null_high, atol=.06)


def test_ceiling():
    (x, y, x_new, y_new), concept, _ = both_new()
    noise = np.random.default_rng(0).normal(size=(2, *y_new.shape))*3
    again = prototype_alignment(x, y, x_new, y_new + noise[0], labels=concept, y_again=y_new + noise[1], n_permutations=5)
    same = prototype_alignment(x, y, x_new, y_new, labels=concept, y_again=y_new, n_permutations=5)
    assert np.allclose(same.table.ceiling, 1) and (again.table.ceiling < .99).all()


def test_a_prototype_without_members():
    (x, y, x_new, y_new), concept, _ = both_new(n=60)
    found = prototype_alignment(x, y, x_new, y_new, labels=np.where(concept == 2, 7, concept), n_permutations=9).table
    assert len(found) == 8 and found.phi[[2, 6]].isna().all() and found.p_corrected[[2, 6]].isna().all() and (found.n_first[[2, 6]] == 0).all()
    plot_prototype_alignment({'a': prototype_alignment(x, y, x_new, y_new, labels=np.where(concept == 2, 7, concept), n_permutations=9)})


def test_difference():
    "One network is better by noise alone, on all prototypes; swapping the two turns signs; a network is no better than itself."
    (x, y, x_new, y_new), concept, _ = both_new()
    noisy = [o + 3*np.random.default_rng(i).normal(size=o.shape) for i, o in enumerate((x, x_new))]
    good, bad = prototype_alignment(x, y, x_new, y_new, labels=concept, n_permutations=5), prototype_alignment(noisy[0], y, noisy[1], y_new, labels=concept, n_permutations=5)
    one, other = alignment_difference(good, bad, 200), alignment_difference(bad, good, 200)
    assert (one.p_corrected < .05).all() and (one.ci_low > 0).all() and np.allclose(one.difference, one.phi_one - one.phi_two)
    assert np.allclose(one.difference, -other.difference) and np.allclose(one.ci_low, -other.ci_high) and np.allclose(one.p, other.p)
    same = alignment_difference(good, good, 20)
    assert (same.difference == 0).all() and not (same.p_corrected <= .05).any()
    grouped = alignment_difference(good, bad, 50, groups=np.arange(400)//2)
    assert (grouped.ci_high - grouped.ci_low > 0).all()


def test_difference_of_a_rare_prototype():
    "One system says 2 once, the other as often as it is true: exchanges and samples lose phi of 2. They count against the difference, the interval says how many it has, and the other prototypes keep their p."
    rng = np.random.default_rng(0)
    b = np.r_[np.repeat([0, 1], 40), 2, 2]
    good, poor = b.copy(), np.where(rng.random(82) < .6, rng.integers(2, size=82), b)
    good[81], poor[80:] = 0, (0, 1)
    poor[3] = 2
    both = [PrototypeAlignment(pd.DataFrame(dict(phi=phi(o, b, 3))), 0., 0., o, b) for o in (good, poor)]
    with pytest.warns(UserWarning, match='random orders have no score'): found = alignment_difference(*both, n_permutations=300)
    swap = np.vstack([np.zeros(82, bool), np.random.default_rng(0).integers(2, size=(300, 82)).astype(bool)])
    null = np.abs(phi(np.where(swap, poor, good), b, 3) - phi(np.where(swap, good, poor), b, 3))
    lost = np.isnan(null).sum(0)
    assert lost[2] > 30 and lost[:2].sum() == 0
    assert np.allclose(found.p, [((null[:, k] >= null[0, k] - 1e-12) | np.isnan(null[:, k])).mean() for k in range(3)])
    assert (found.p_corrected[:2] < .05).all() and found.p_corrected[2] >= found.p[2]
    assert (found.n_draws[:2] == 300).all() and found.n_draws[2] < 200
    assert np.isnan(found.ci_low[2]) == np.isnan(found.ci_high[2]) == (found.n_draws[2] < 150) and np.isfinite(found.ci_low[:2]).all()


def test_difference_of_equals():
    "The same training responses, new ones with noise of their own: few small p values."
    rng = np.random.default_rng(0)
    def smallest(seed):
        (x, y, x_new, y_new), concept, _ = both_new(n=60, seed=seed)
        both = [prototype_alignment(x, y, x_new + 2*rng.normal(size=x_new.shape), y_new, labels=concept, n_permutations=5) for _ in range(2)]
        found, turned = (alignment_difference(*o, n_permutations=59) for o in (both, both[::-1]))
        assert np.allclose(found.p, turned.p) and np.allclose(found.p_corrected, turned.p_corrected)
        return found.p_corrected.min()
    assert np.mean([smallest(s) <= .05 for s in range(80)]) < .14


@pytest.mark.parametrize('change, match', [
    (lambda a: dict(a, x_new=a['x_new'][:, :-1]), 'first system: 40 features in training, 39'), (lambda a: dict(a, y_new=a['y_new'][:-1]), 'same stimuli'),
    (lambda a: dict(a, labels=a['labels'][1:]), 'one for each of 60'), (lambda a: dict(a, labels=a['labels']*1.), 'whole numbers'), (lambda a: dict(a, labels=a['labels'] - 1), 'whole numbers from 0'),
    (lambda a: dict(a, y_again=a['y_new'][1:]), r'y_again has shape \(59, 60\)'), (lambda a: dict(a, groups=np.arange(59)), '59 groups for 60')])
def test_refused(change, match):
    (x, y, x_new, y_new), concept, _ = both_new(n=60)
    with pytest.raises(ValueError, match=match): prototype_alignment(**change(dict(x_train=x, y_train=y, x_new=x_new, y_new=y_new, labels=concept, n_permutations=5)))


def test_refused_labels():
    with pytest.raises(ValueError, match=r'new stimuli must be two equally long vectors, got shapes \(3,\) and \(4,\)'): partition_agreement([0, 1], [0, 1], [0, 1, 1], [0, 1, 1, 0])
