"People as the other system: judgements and labels against SciPy and scikit-learn, leaks, and what is refused."
import numpy as np
import pytest
import torch
from conftest import needs_data
from scipy.spatial.distance import pdist, squareform
from scipy.special import softmax
from scipy.stats import entropy, kstest, pearsonr, spearmanr
from sklearn.metrics import log_loss

from protoalign.behaviour import calibrated, fit_temperature, halve_counts, judgement_alignment, label_alignment, label_scores, load_judgements

METHODS = pytest.mark.parametrize('method, oracle', [('spearman', spearmanr), ('pearson', pearsonr)])


def judged(n=20, people=6, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    return x, np.round([pdist(x) + rng.normal(size=n*(n - 1)//2) for _ in range(people)], 1)


@METHODS
def test_each_person_by_scipy(method, oracle):
    "Ties included: judgements are rounded."
    x, rdms = judged()
    found = judgement_alignment(x, rdms, method, 'euclidean', n_permutations=20)
    assert np.allclose(found.people.score, [oracle(pdist(x), o)[0] for o in rdms], atol=1e-12)
    assert found.score == pytest.approx(found.people.score.mean()) and found.lower == pytest.approx(found.people.others.mean(), abs=1e-12)
    if method == 'pearson':
        z = (rdms - rdms.mean(1, keepdims=True))/rdms.std(1, keepdims=True)
        assert np.allclose(found.people.others, [oracle(np.delete(z, i, 0).mean(0), o)[0] for i, o in enumerate(rdms)], atol=1e-12)
    square = np.stack([squareform(o) for o in rdms])
    for again in (judgement_alignment(pdist(x), square, method, n_permutations=20), judgement_alignment(torch.tensor(x), rdms, method, 'euclidean', n_permutations=20)):
        assert again.score == pytest.approx(found.score, abs=1e-12) and again.p == found.p


def test_ceilings_are_rsatoolbox():
    from rsatoolbox.inference import boot_noise_ceiling
    from rsatoolbox.rdm import RDMs
    x, rdms = judged(seed=1)
    for method, name in (('spearman', 'spearman'), ('pearson', 'corr')):
        found = judgement_alignment(x, rdms, method, n_permutations=5)
        theirs = boot_noise_ceiling(RDMs(rdms, rdm_descriptors=dict(index=np.arange(6))), method=name)
        assert np.allclose([found.lower, found.upper], np.squeeze(theirs), atol=1e-6)


def test_null_by_hand():
    "Stimuli are permuted, rows and columns alike."
    x, rdms = judged()
    found, rng = judgement_alignment(x, rdms, metric='euclidean', n_permutations=20), np.random.default_rng(0)
    null = [np.mean([spearmanr(pdist(x[o]), d)[0] for d in rdms]) for o in [np.arange(20)] + [rng.permutation(20) for _ in range(20)]]
    assert found.null_high == pytest.approx(np.quantile(null, .95), abs=1e-12) and found.p == np.mean(null >= null[0] - 1e-12)


@METHODS
@pytest.mark.parametrize('spoil, why', [
    (lambda x, d: (np.full(190, .1), d), 'all dissimilarities of the network are equal'), (lambda x, d: (np.r_[np.nan, pdist(x)[1:]], d), '1 of 190 dissimilarities'),
    (lambda x, d: (np.vstack([np.ones(4), x[1:]]), d), '19 of 190 dissimilarities.*do not vary'), (lambda x, d: (x, np.vstack([np.full(190, .1), d[1:]])), '1 of 6 people judge all pairs alike')])
def test_no_score_no_p(spoil, why, method, oracle):
    "A score that has no value had p = 0: nothing reaches NaN."
    with pytest.warns(UserWarning, match=why): found = judgement_alignment(*spoil(*judged()), method, n_permutations=9)
    assert np.isnan(found.score) and np.isnan(found.p) and np.isnan(found.null_high)


def test_p_is_uniform_under_the_null():
    rng = np.random.default_rng(0)
    p = [judgement_alignment(rng.normal(size=(10, 3)), rng.normal(size=(3, 45)), n_permutations=99).p for _ in range(200)]
    assert kstest(np.array(p) - rng.uniform(size=200)/100, 'uniform').pvalue > .01


def simulated(n=150, k=6, people=41, seed=0):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(k, .5), size=n)
    return np.log(shares + .01)*2 + .3*rng.normal(size=(n, k)), np.stack([rng.multinomial(people, o) for o in shares])


def test_label_scores_by_scipy():
    logits, counts = simulated()
    p = softmax(logits, axis=1)
    found = label_scores(p, counts)
    image, choice = (o.ravel() for o in np.indices(counts.shape))
    assert found['cross_entropy'] == pytest.approx(log_loss(choice, p[image], sample_weight=counts.ravel(), labels=range(6)), abs=1e-10)
    assert found['entropy_r'] == pytest.approx(spearmanr(entropy(p, axis=1), entropy(counts, axis=1))[0], abs=1e-10)
    assert found['image_r'] == pytest.approx(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, counts)]), abs=1e-10)
    rest = [(np.delete(a, b.argmax()), np.delete(b, b.argmax())) for a, b in zip(p, counts)]
    assert found['doubt_r'] == pytest.approx(np.mean([np.corrcoef(a, b)[0, 1] for a, b in rest if np.ptp(b)]), abs=1e-10)
    assert label_scores(torch.tensor(p), torch.tensor(counts)) == found


def test_one_image_by_hand():
    found = label_scores([[.7, .2, .1], [.25, .25, .5]], [[8, 2, 0], [0, 0, 5]])
    assert found['cross_entropy'] == pytest.approx(-(.8*np.log(.7) + .2*np.log(.2) + np.log(.5))/2)
    assert found['n_doubted'] == 1 and found['doubt_r'] == pytest.approx(1) # two classes are left: .2 against .1, 2 against 0
    assert label_scores([[1, 0, 0.]], [[1, 1, 0]])['cross_entropy'] == np.inf


def test_temperature():
    "Moment condition, planted value, one-hot labels, and extremes."
    logits, counts = simulated()
    t = fit_temperature(logits, counts)
    assert ((calibrated(logits, t)*logits).sum(1)).mean() == pytest.approx((counts/counts.sum(1, keepdims=True)*logits).sum(1).mean(), abs=1e-5)
    assert fit_temperature(3*logits, counts) == pytest.approx(3*t, rel=1e-5)
    assert fit_temperature(logits + 100*np.arange(150)[:, None], counts) == pytest.approx(t, rel=1e-5)
    assert fit_temperature(logits, np.eye(6)[logits.argmax(1)]) == pytest.approx(.01, rel=.01)
    assert np.allclose(calibrated(logits, 2.), softmax(logits/2, axis=1)) and calibrated(np.array([[1e5, 0, 0]]))[0, 0] == 1


def test_halves_are_dealt_fairly():
    _, counts = simulated()
    a, b = halve_counts(counts)
    assert (a + b == counts).all() and (a >= 0).all() and (b >= 0).all() and (a.sum(1) == 20).all() and (b.sum(1) == 21).all()
    assert (halve_counts(counts)[0] == a).all() and (halve_counts(counts, 1)[0] != a).any()
    one = np.array([[1, 1, 0]])
    firsts = [halve_counts(one, s)[0][0].tolist() for s in range(200)]
    assert {tuple(o) for o in firsts} == {(1, 0, 0), (0, 1, 0)} and abs(np.mean(firsts, axis=0)[0] - .5) < .12


def test_people_are_their_own_ceiling():
    "A third sample of people does as well as the other half; a network that knows nothing does not."
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(6, .5), size=400)
    counts, more = (np.stack([rng.multinomial(n, o) for o in shares]) for n in (50, 25))
    table = label_alignment((more + 1/6)/26, counts, n_splits=4)
    assert np.allclose(table.network_half[1:4], table.people_half[1:4], atol=.06)
    lost = label_alignment(softmax(rng.normal(size=(400, 6)), axis=1), counts, n_splits=2)
    assert (abs(lost.network[1:4]) < .12).all() and lost.network.cross_entropy > lost.people_half.cross_entropy + .3
    assert np.isfinite(table.people_half).all()


def test_doubt_over_the_same_images():
    "By hand: network and people are averaged over the images in which both halves doubt, and the table says how many."
    rng = np.random.default_rng(0)
    shares = np.tile([.6, .2, .1, .06, .04], (300, 1))
    shares[100:] = [.985, .005, .004, .003, .003]
    counts = np.stack([rng.multinomial(20, o) for o in shares])
    p = np.where(np.arange(300)[:, None] < 100, shares, shares[:, [0, 4, 3, 2, 1]])
    table, differences, sizes = label_alignment(p, counts, n_splits=3), [], []
    for s in range(3):
        one, two = halve_counts(counts, (0, s))
        for a, b in ((one, two), (two, one)):
            rest = [[np.delete(o, k.argmax()) for o in row] for *row, k in zip(p, a, b, b)]
            targets = [np.delete(k, k.argmax()) for k in b]
            rows = [i for i in range(300) if np.ptp(rest[i][1]) and np.ptp(targets[i])]
            differences.append([np.mean([np.corrcoef(rest[i][j], targets[i])[0, 1] for i in rows]) for j in (0, 1)])
            sizes.append(len(rows))
    assert np.allclose(table.loc['doubt_r', ['network_half', 'people_half']], np.mean(differences, axis=0), atol=1e-12)
    assert table.network_half.n_doubted == table.people_half.n_doubted == np.mean(sizes) and table.network.n_doubted > np.mean(sizes)


def test_sure_networks_are_scored():
    "Doubts of 1e-14 are doubts: an image is left out where its probabilities do not vary, not where they are small."
    sure = [[1 - 6e-14, 3e-14, 2e-14, 1e-14], [.4, .2, .2, .2]]
    found = label_scores(sure, [[8, 3, 2, 1], [8, 3, 2, 1]])
    assert found['n_doubted'] == 1 and found['doubt_r'] == pytest.approx(1)


@pytest.mark.parametrize('call, match', [
    (lambda p, c: label_scores(5*p, c), 'apply a softmax first'), (lambda p, c: label_scores(p, c[1:]), r'\(150, 6\) and \(149, 6\)'),
    (lambda p, c: label_scores(p, 0*c), '150 of 150 images were judged by nobody'), (lambda p, c: label_scores(p, -c), 'not negative'),
    (lambda p, c: halve_counts(c/2), 'whole counts'), (lambda p, c: calibrated(p, 0), 'positive'), (lambda p, c: fit_temperature(p*np.nan, c), 'finite'),
    (lambda p, c: judgement_alignment(p, np.ones((3, 7))), r'got shape \(3, 7\)'), (lambda p, c: judgement_alignment(p[:5], np.random.rand(3, 45)), r'10 pairs of stimuli, the judgements have 45 \(10 stimuli\)'),
    (lambda p, c: judgement_alignment(p[:10], np.full((3, 45), np.nan)), '3 of 3 people'), (lambda p, c: judgement_alignment(p[:10], np.random.rand(3, 45), 'tau'), "got 'tau'")])
def test_refused(call, match):
    logits, counts = simulated()
    with pytest.raises(ValueError, match=match): call(softmax(logits, axis=1), counts)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='92_behavRDMs.mat'): load_judgements(tmp_path)


@needs_data('objects92')
def test_sixteen_people():
    "What the set's own page says of them; faces are alike to them."
    from protoalign.datasets import load
    rdms = load_judgements()
    assert rdms.shape == (16, 4186)
    faces = np.array(['ace' in load('objects92').class_names[i] for i in load('objects92').labels], dtype=float)
    found = judgement_alignment(pdist(faces[:, None]), rdms, n_permutations=50)
    assert found.people.others.mean() == pytest.approx(.48, abs=.01) and found.p < .05
    it = load('objects92').responses['IT-mean-of-15'].values.astype(float)
    assert spearmanr(pdist(it, 'correlation'), np.mean(rdms, axis=0))[0] == pytest.approx(.30, abs=.02)
