"JointPrototypes keeps scikit-learn's rules, and finds planted truth whatever the path to it."
import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from protoalign.clusters import ALGORITHMS, _lloyd, cluster_means, inertia, kmeans_labels
from protoalign.data import planted_world
from protoalign.joint import JointPrototypes
from protoalign.library import make_library
from protoalign.reduce import LARGE, fit_pca, variance_kept
from protoalign.subjects import Blocks, SubjectPrototypes, block_distances, block_means


@parametrize_with_checks([JointPrototypes(n_prototypes=3), JointPrototypes(n_prototypes=3, algorithm='sampled')])
@pytest.mark.filterwarnings('ignore:Number of distinct clusters')
def test_scikit_learn(estimator, check): check(estimator)


@pytest.mark.parametrize('joint', [None, 'pca', 'cca', 'plsc'])
@pytest.mark.parametrize('balance', ['variance', 'singular'])
@pytest.mark.parametrize('back', ['mean', 'inverse'])
def test_planted_truth(joint, balance, back):
    acts, brain, concept = planted_world(seed=3)
    fitted = JointPrototypes(6, joint=joint, balance=balance, back_projection=back).fit(acts[:200], 1000*brain[:200])
    assert adjusted_rand_score(concept[:200], fitted.labels_) == 1
    for predicted in (fitted.predict(X=acts[200:]), fitted.predict(Y=1000*brain[200:]), fitted.predict(acts[200:], 1000*brain[200:])):
        assert adjusted_rand_score(concept[200:], predicted) > .95


@pytest.mark.parametrize('joint', [None, 'pca', 'cca', 'plsc'])
@pytest.mark.parametrize('weight', [.2, .5])
def test_each_side_has_its_share(joint, weight):
    "The variance that is clustered is shared out as asked, whatever the joint map, where all its components are kept."
    acts, brain, _ = planted_world(noise=1., seed=4)
    sides = JointPrototypes(6, joint=joint, n_components_joint=500, brain_weight=weight).fit(acts, .01*brain).sides_
    assert sides['brain']['variance_share'] == pytest.approx(weight, abs=1e-9)
    assert sides['dnn']['variance_kept'] == pytest.approx(1)


def test_plsc_is_the_far_end_of_cca():
    acts, brain, _ = planted_world(noise=1.)
    a, b = (JointPrototypes(6, joint=j, n_components_joint=5, cca_shrinkage=1.).fit(acts, brain) for j in ('plsc', 'cca'))
    assert b.shrinkage_ == 1 and a.shrinkage_ is None
    assert np.allclose(a.canonical_correlations_, b.canonical_correlations_, atol=1e-8)


@pytest.mark.parametrize('algorithm', ALGORITHMS)
def test_algorithms_find_the_same(algorithm):
    acts, brain, concept = planted_world(seed=5)
    fitted = JointPrototypes(6, algorithm=algorithm).fit(acts, brain)
    assert adjusted_rand_score(concept, fitted.labels_) == 1
    again = clone(fitted).set_params(init=fitted.labels_).fit(acts, brain)
    assert (again.labels_ == fitted.labels_).all()


@pytest.mark.parametrize('algorithm', ALGORITHMS[1:4])
def test_kmeans_edges(algorithm):
    "K = 1, K = N, fewer distinct points than clusters, a far-away mean."
    u = np.random.default_rng(0).normal(size=(30, 3))
    assert set(kmeans_labels(u, 1, algorithm=algorithm)) == {0}
    assert sorted(kmeans_labels(u, 30, algorithm=algorithm)) == list(range(30))
    assert inertia(u + 1e4, kmeans_labels(u + 1e4, 4, algorithm=algorithm)) == pytest.approx(inertia(u, kmeans_labels(u, 4, algorithm=algorithm)), rel=.02)


@pytest.mark.filterwarnings('ignore:Number of distinct clusters')
@pytest.mark.parametrize('algorithm', ALGORITHMS[1:4])
def test_duplicates(algorithm):
    u = np.repeat(np.random.default_rng(0).normal(size=(3, 5)), 10, axis=0)
    labels = kmeans_labels(u, 6, algorithm=algorithm)
    assert labels.min() >= 0 and labels.max() < 6 and inertia(u, labels) < 1e-9


@pytest.mark.parametrize('n_lost', [1, 3])
def test_lost_centres_find_members(n_lost):
    x = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    start = np.vstack([x[:5], np.full((n_lost, 4), 99, dtype=np.float32)])
    labels, loss, centres = _lloyd(x, start, 1e-4)
    assert np.bincount(labels, minlength=5 + n_lost).min() > 0
    assert loss == pytest.approx(inertia(x, labels), rel=1e-3)
    assert np.allclose(centres, cluster_means(x, labels, 5 + n_lost), atol=.02)


def test_large_matrices_are_exact_and_stay_float32():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(1500, 30)) @ rng.normal(size=(30, 1800)) + rng.normal(size=(1500, 1800)) + 50).astype(np.float32)
    assert x.size > LARGE
    ours, exact = fit_pca(x, 40), PCA(40, svd_solver='full').fit(x.astype(float))
    assert ours.components_.dtype == np.float32 and ours.transform(x).dtype == np.float32
    assert np.allclose(ours.singular_values_, exact.singular_values_, rtol=1e-4)
    assert np.allclose(abs((ours.components_[:30]*exact.components_[:30]).sum(1)), 1, atol=1e-4)
    assert variance_kept(ours) == pytest.approx(exact.explained_variance_ratio_.sum(), rel=1e-5)
    assert np.allclose(pickle.loads(pickle.dumps(ours)).transform(x[:5]), ours.transform(x[:5]))
    assert clone(ours).fit(x[:, :50]).components_.shape == (40, 50)


def test_large_and_small_agree():
    "The same data above and below the size at which the solvers change hands."
    acts, brain, concept = planted_world(n_stimuli=2000, n_units=300, n_voxels=1200, seed=6)
    fits = [JointPrototypes(6).fit(acts, o) for o in (brain[:, :900], brain.astype(np.float32), brain)]
    assert brain.size > LARGE > brain[:, :900].size
    for fitted in fits:
        assert adjusted_rand_score(concept, fitted.labels_) == 1 and fitted.prototypes_brain_.dtype == float
    assert np.allclose(fits[1].prototype_voxels_, fits[2].prototype_voxels_, atol=1e-4)


@pytest.mark.parametrize('joint', [None, 'pca', 'cca', 'plsc'])
def test_all_the_way_back(joint):
    "At full rank the prototypes in the data's own units are the means of the members in the raw data."
    acts, brain, _ = planted_world(seed=7)
    acts, brain = 40 + 5*acts, .01*brain - 3
    back = 'inverse' if joint in (None, 'pca') else 'mean'
    fitted = JointPrototypes(6, joint=joint, n_components_joint=500, back_projection=back).fit(acts, brain)
    for k in range(6):
        assert np.allclose(fitted.prototype_units_[k], acts[fitted.labels_ == k].mean(0), atol=1e-10)
        assert np.allclose(fitted.prototype_voxels_[k], brain[fitted.labels_ == k].mean(0), atol=1e-10)
    with pytest.raises(NotFittedError): clone(fitted).prototype_units_


def test_edges():
    "One prototype, as many as stimuli, and duplicates with fewer distinct points than prototypes."
    acts, brain, _ = planted_world(n_stimuli=12)
    assert JointPrototypes(1).fit(acts, brain).counts_.tolist() == [12]
    assert sorted(JointPrototypes(12).fit(acts, brain).labels_) == list(range(12))
    twice = np.repeat(acts[:3], 4, axis=0), np.repeat(brain[:3], 4, axis=0)
    with pytest.warns(match='distinct clusters'): few = JointPrototypes(5).fit(*twice)
    assert (few.counts_ > 0).sum() == 3 and (few.direction_dnn_[few.counts_ == 0] == 0).all()
    assert np.isfinite(few.prototypes_dnn_).all() and np.isfinite(few.prototypes_brain_).all()
    assert set(few.predict(twice[0])) == set(few.labels_)


def test_report_is_plain_numbers():
    "What the library stores as JSON."
    acts, brain, _ = planted_world()
    fitted = JointPrototypes(6).fit(acts.astype(np.float32), brain.astype(np.float32))
    assert all(type(v) is float for side in fitted.sides_.values() for v in side.values())
    assert make_library(fitted, range(300)).provenance['sides']['brain']['variance_kept'] == pytest.approx(1)


@pytest.mark.parametrize('change, match', [
    (dict(joint='ccca'), "'plsc'.*got 'ccca'"), (dict(cca_shrinkage=2.), r'in \[0, 1\]'), (dict(algorithm='kmeans'), "got 'kmeans'"), (dict(brain_weight=-1), 'share')])
def test_refused(change, match):
    with pytest.raises(ValueError, match=match): JointPrototypes(3, **change).fit(*planted_world()[:2])


def gappy(missing, seed=0, n=240):
    "Three simulated subjects with gaps; each stimulus has one subject at least."
    acts, brain, concept = planted_world(n, noise=.8, n_voxels=90, seed=seed)
    gaps = np.random.default_rng(seed).uniform(size=(n, 3)) < missing
    gaps[gaps.all(1), 0] = False
    return acts, {s: np.where(gaps[:, [i]], np.nan, brain[:, 30*i:30*i + 30] + 4) for i, s in enumerate('abc')}, concept


@pytest.mark.parametrize('missing', [0, .2, .4, .6])
def test_subjects_with_gaps(missing):
    acts, brains, concept = gappy(missing)
    fitted = SubjectPrototypes(6).fit(acts, brains)
    assert adjusted_rand_score(concept, fitted.labels_) > .95
    assert adjusted_rand_score(concept, fitted.predict(acts)) > .95
    for s, y in brains.items():
        assert fitted.counts_brain_[s].sum() == fitted.sides_[s]['seen'] == (~np.isnan(y).any(1)).sum()
        assert np.allclose(fitted.prototype_voxels_[s], [np.nanmean(y[fitted.labels_ == k], axis=0) for k in range(6)], atol=1e-10)


def test_means_of_blocks_are_the_minimum():
    "The weighted means lower the sum that the assignment lowers; nothing near them is lower."
    rng = np.random.default_rng(0)
    weights = rng.uniform(.2, 1, size=(60, 3))*(rng.uniform(size=(60, 3)) < [1, .5, .5])
    blocks = Blocks(rng.normal(size=(60, 7)), weights, np.array([0, 2, 5]))
    blocks = blocks._replace(values=blocks.values*blocks.spread(weights > 0))
    labels = np.arange(60) % 3
    means = block_means(blocks, labels, 3)
    def objective(values): return (block_distances(blocks, means._replace(values=values))*weights.sum(1, keepdims=True))[np.arange(60), labels].sum()
    assert all(objective(means.values) < objective(means.values + .02*rng.normal(size=means.values.shape)) for _ in range(50))
    first = np.average(blocks.values[labels == 1, 2:5], axis=0, weights=weights[labels == 1, 1])
    assert np.allclose(means.values[1, 2:5], first, atol=1e-12)


def test_one_subject_many_times_is_one_subject():
    acts, brain, _ = planted_world(noise=2.)
    init = np.arange(300) % 6
    alone = JointPrototypes(6, init=init).fit(acts, brain)
    for brains in ([brain], [brain]*4):
        fitted = SubjectPrototypes(6, init=init).fit(acts, brains)
        assert adjusted_rand_score(alone.labels_, fitted.labels_) > .97


def test_one_subject_for_each_stimulus():
    "As in NSD: no stimulus was seen twice; the brain keeps its share all the same."
    acts, brain, concept = planted_world(noise=1.5, n_stimuli=400)
    who = np.random.default_rng(0).integers(4, size=400)
    brains = {s: np.where((who == s)[:, None], brain @ np.linalg.qr(np.random.default_rng(s).normal(size=(60, 60)))[0] + s, np.nan) for s in range(4)}
    fitted = SubjectPrototypes(6).fit(np.random.default_rng(1).normal(size=(400, 8)) + acts[:, :8], brains)
    assert adjusted_rand_score(concept, fitted.labels_) > adjusted_rand_score(who, fitted.labels_) + .3


@pytest.mark.parametrize('spoil, match', [
    (lambda b: {**b, 'a': b['a'][:-1]}, 'same stimuli everywhere'), (lambda b: {s: np.full_like(y, np.nan) for s, y in b.items()}, 'fewer than two'),
    (lambda b: {'a': np.where(np.arange(30) < 1, np.nan, b['a'])}, 'subject a: .* rows hold some NaN'), (lambda b: b['a'], 'for one subject use JointPrototypes')])
def test_subjects_refused(spoil, match):
    acts, brains, _ = gappy(0)
    with pytest.raises(ValueError, match=match): SubjectPrototypes(4).fit(acts, spoil(brains))
