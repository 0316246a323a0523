"Objectives to compare with: one protocol, exact gradients, known values, and controls that take away what they say."
from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad, isotonic_regression
from scipy.special import logsumexp
from scipy.stats import rankdata, spearmanr
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from protoalign.baselines import BASELINES, CKALoss, RSALoss, ResponseRegression, soft_rank, soft_spearman
from protoalign.controls import CONTROLS, class_numbers, control_prototypes, control_responses, given_prototypes, label_library, random_library
from protoalign.data import planted_world
from protoalign.joint import JointPrototypes
from protoalign.library import PrototypeLibrary, make_library
from protoalign.protonce import ProtoNCE, concentration
from protoalign.rsa import rdm, rsa

ACTS, BRAIN, CONCEPT = planted_world(n_stimuli=120, n_units=20, n_voxels=15, noise=1.)
IDS = [f's{i}' for i in range(120)]
H, ROWS = torch.tensor(ACTS), torch.arange(120)

MAKERS = {
    'rsa': lambda: RSALoss(BRAIN),
    'rsa_cosine': lambda: RSALoss(BRAIN, metric='cosine'),
    'rsa_sqeuclidean': lambda: RSALoss(BRAIN, metric='sqeuclidean'),
    'rsa_spearman': lambda: RSALoss(BRAIN, 'spearman'),
    'cka': lambda: CKALoss(BRAIN),
    'regression': lambda: ResponseRegression(BRAIN, 20),
    'regression_pca': lambda: ResponseRegression(BRAIN, 20, n_components=5),
    'protonce': lambda: ProtoNCE(120, 20, (3, 6, 12)),
    'protonce_no_instances': lambda: ProtoNCE(120, 20, (6,), instance=False, centred=False),
}


def made(name):
    objective = MAKERS[name]()
    if hasattr(objective, 'refresh'): objective.refresh(ACTS)
    return objective


@pytest.fixture(params=MAKERS)
def objective(request): return made(request.param)


def test_gradient_is_that_of_finite_differences(objective):
    rows = torch.tensor([3, -1, 50, 7, 20, 110, 64])
    assert torch.autograd.gradcheck(lambda o: objective(o, rows), H[rows.clip(0)].clone().requires_grad_())


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_protocol(objective, dtype):
    "A float32 scalar whatever comes in, under autocast too; finite gradients for known rows and none for others."
    h = H[:40].to(dtype).requires_grad_()
    rows = torch.where(ROWS[:40] % 5 == 0, -1, ROWS[:40])
    with torch.autocast('cpu', dtype=torch.bfloat16): loss = objective(h, rows)
    grad, = torch.autograd.grad(loss, h)
    assert loss.shape == () and loss.dtype == torch.float32 and loss.isfinite()
    assert grad.isfinite().all() and (grad[rows < 0] == 0).all() and (grad[rows >= 0].float().norm(dim=1) > 0).all()


def test_unknown_rows_are_as_if_they_were_not_there(objective):
    state = {k: v.clone() for k, v in objective.state_dict().items()}
    some = torch.where(ROWS[:30] % 3 == 0, -1, ROWS[:30])
    whole = objective(H[:30], some)
    objective.load_state_dict(state)
    torch.testing.assert_close(whole, objective(H[:30][some >= 0], some[some >= 0]))
    h = H[:30].clone()
    h[some < 0] = torch.nan
    objective.load_state_dict(state)
    torch.testing.assert_close(whole, objective(h, some))


@pytest.mark.parametrize('n_known', [0, 1, 2, 3])
def test_too_few_known_rows(objective, n_known):
    h, rows = H[:6].clone().requires_grad_(), torch.where(ROWS[:6] < n_known, ROWS[:6], -1)
    loss = objective(h, rows)
    grad, = torch.autograd.grad(loss, h)
    assert loss.isfinite() and grad.isfinite().all()
    if n_known < getattr(objective, 'min_known', 1): assert loss == 0 and (grad == 0).all()


def test_faults_are_named(objective):
    with pytest.raises(ValueError, match=r'got \(5, 20\) and \(4,\)'): objective(H[:5], ROWS[:4])
    with pytest.raises(ValueError, match='row 120 is asked for, there are 120 training stimuli'): objective(H[:5], ROWS[:5] + 116)
    if hasattr(objective, 'refresh'):
        with pytest.raises(ValueError, match=r'need activations \(120, 20\), got \(119, 20\)'): objective.refresh(ACTS[1:])
        with pytest.raises(ValueError, match='NaN or infinite'): objective.refresh(ACTS*np.nan)


@pytest.mark.parametrize('name', MAKERS)
def test_global_random_states_are_left_alone(name):
    "Or λ = 0 would not be the vanilla run, bit for bit."
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    objective = made(name)
    objective(H, ROWS)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize('name', MAKERS)
def test_state_is_all_that_a_run_needs_to_go_on(name, tmp_path):
    first, second = made(name), MAKERS[name]()
    h = torch.tensor(planted_world(n_stimuli=120, n_units=20, noise=2., seed=1)[0])
    first(h, ROWS)
    torch.save(first.state_dict(), tmp_path/'state.pt')
    second.load_state_dict(torch.load(tmp_path/'state.pt', weights_only=True))
    for _ in range(2): assert first(h, ROWS) == second(h, ROWS)


@pytest.mark.parametrize('name', MAKERS)
def test_each_is_lowered_by_gradient_descent(name):
    objective = made(name)
    layer = torch.nn.Parameter(torch.eye(20))
    x = torch.tensor(ACTS + np.random.default_rng(1).normal(size=ACTS.shape), dtype=torch.float32)
    optimiser = torch.optim.AdamW([layer, *objective.parameters()], lr=.02)
    losses = []
    for _ in range(40):
        losses.append(objective(x @ layer, ROWS))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0] - .05


def test_parameters_are_there_from_the_start():
    "An optimiser made before the first refresh keeps the same tensors."
    head = ResponseRegression(BRAIN, 20)
    before = list(head.parameters())
    head.refresh(ACTS)
    assert [id(o) for o in before] == [id(o) for o in head.parameters()] and len(before) == 2
    assert not any(list(made(name).parameters()) for name in MAKERS if 'regression' not in name)


# Soft ranks

@pytest.mark.parametrize('seed', range(30))
def test_soft_ranks_of_any_numbers(seed):
    "Their sum, their order, the exact limit with ties, and scikit-style isotonic regression of sorted numbers."
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    x = np.round(rng.normal(size=n), int(rng.integers(1, 4)))
    strength = float(10**rng.uniform(-3, 2))
    ranks = soft_rank(torch.tensor(x), strength).numpy()
    np.testing.assert_allclose(ranks.sum(), n*(n + 1)/2)
    order = np.argsort(x)
    assert (np.diff(ranks[order]) > -1e-9).all()
    np.testing.assert_allclose(soft_rank(torch.tensor(x), 1e-6).numpy(), rankdata(x), atol=1e-7)
    fit = isotonic_regression(x[order]/strength - np.arange(1, n + 1)).x
    np.testing.assert_allclose(ranks[order], x[order]/strength - fit, atol=1e-8)
    mixed = rng.permutation(n)
    np.testing.assert_allclose(soft_rank(torch.tensor(x[mixed]), strength).numpy(), ranks[mixed], atol=1e-9)


@pytest.mark.parametrize('strength', [.02, .2, 3.])
def test_soft_ranks_gradient(strength):
    assert torch.autograd.gradcheck(lambda o: soft_rank(o, strength), torch.tensor(np.random.default_rng(0).normal(size=15), requires_grad=True))


def test_soft_ranks_refuse():
    for wrong, match in ((torch.zeros(2, 2), r'shape \(2, 2\)'), (torch.tensor([1., torch.nan]), '1 of 2 values'), (torch.zeros(0), r'shape \(0,\)')):
        with pytest.raises(ValueError, match=match): soft_rank(wrong)
    with pytest.raises(ValueError, match='strength must be positive'): soft_rank(torch.zeros(3), 0)


@pytest.mark.parametrize('n', [3, 40, 2000])
def test_soft_spearman_at_the_ends(n):
    rng = np.random.default_rng(n)
    a = rng.normal(size=n)
    b = a + rng.normal(size=n)
    ours = [soft_spearman(torch.tensor(7*a - 3), torch.tensor(b), s).item() for s in (1e-5, 1e3)]
    np.testing.assert_allclose(ours[0], spearmanr(a, b).statistic, atol=2e-3)
    np.testing.assert_allclose(ours[1], np.corrcoef(a, rankdata(b))[0, 1], atol=1e-9)


@pytest.mark.parametrize('softness', [.3, 1., 3.])
def test_soft_spearman_knows_no_units(softness):
    rng = np.random.default_rng(0)
    a, b = (torch.tensor(o) for o in rng.normal(size=(2, 60)))
    torch.testing.assert_close(soft_spearman(a, b, softness), soft_spearman(1e-3*a + 7, b.exp(), softness), rtol=1e-8, atol=1e-8)


def test_soft_spearman_by_scipy_differences():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50))
    def value(x): return soft_spearman(torch.tensor(x), torch.tensor(b)).item()
    def slope(x):
        x = torch.tensor(x, requires_grad=True)
        return torch.autograd.grad(soft_spearman(x, torch.tensor(b)), x)[0].numpy()
    assert check_grad(value, slope, a) < 1e-5


# RSA, CKA, regression

@pytest.mark.parametrize('metric', ['correlation', 'cosine', 'sqeuclidean'])
def test_rsa_is_that_of_the_measure(metric):
    x, y = ACTS[:20], BRAIN[:20].astype(np.float32)
    for method, tolerance in (('pearson', 1e-6), ('spearman', 1e-4)):
        ours = RSALoss(BRAIN, method, metric, softness=1e-4)(H[:20], ROWS[:20]).item()
        np.testing.assert_allclose(ours, 1 - rsa(x, y, method, metric), atol=tolerance)


def test_pairs_are_drawn_anew_and_at_most_so_many():
    loss = RSALoss(BRAIN, 'spearman', n_pairs=50)
    seen = {loss(H, ROWS).item() for _ in range(5)}
    assert len(seen) == 5
    again = RSALoss(BRAIN, 'spearman', n_pairs=50)
    assert {again(H, ROWS).item() for _ in range(5)} == seen
    everything = RSALoss(BRAIN, 'spearman', n_pairs=10**6)
    assert everything(H, ROWS) == everything(H, ROWS)


@pytest.mark.parametrize('method', ['pearson', 'spearman'])
def test_silent_stimuli_are_left_out(method):
    "Whole rows of zeros come out of a ReLU; they must not make the loss NaN."
    h = H[:12].clone()
    h[[2, 5]] = 0
    alive = [i for i in range(12) if i not in (2, 5)]
    x = h.clone().requires_grad_()
    loss = RSALoss(BRAIN, method)(x, ROWS[:12])
    torch.testing.assert_close(loss, RSALoss(BRAIN, method)(h[alive], ROWS[alive]))
    assert torch.autograd.grad(loss, x)[0].isfinite().all()
    assert RSALoss(BRAIN, method)(x*0, ROWS[:12]) == 0


@pytest.mark.parametrize('name', [o for o in MAKERS if o.startswith(('rsa', 'cka'))])
def test_activations_that_became_nan_are_not_passed_over(name):
    h = H[:12].clone()
    h[3, 0] = torch.nan
    with pytest.raises(ValueError, match='NaN or infinite'): made(name)(h, ROWS[:12])


def test_a_copy_goes_its_own_way():
    first = RSALoss(BRAIN, 'spearman')
    first(H, ROWS)
    copy = deepcopy(first)
    assert first(H, ROWS) == copy(H, ROWS) != RSALoss(BRAIN, 'spearman')(H, ROWS)


def test_the_same_stimulus_twice_in_a_batch():
    rows = torch.tensor([0, 1, 2, 2, 3, 4])
    for name in MAKERS:
        x = H[rows].clone().requires_grad_()
        assert torch.autograd.grad(made(name)(x, rows), x)[0].isfinite().all(), name


@pytest.mark.parametrize('wrong, match', [
    (lambda: RSALoss(BRAIN, 'kendall'), "method is 'pearson' or 'spearman', got 'kendall'"),
    (lambda: RSALoss(BRAIN, metric='euclidean'), "take 'sqeuclidean'"),
    (lambda: RSALoss(np.where(np.arange(120)[:, None] < 3, 2., BRAIN)), '3 of 120 stimuli have responses without a direction'),
    (lambda: CKALoss(BRAIN*np.nan), 'NaN or infinite'),
    (lambda: ResponseRegression(np.ones((120, 3)), 20), 'none of the 3 voxels varies'),
    (lambda: ResponseRegression(BRAIN, 20)(H[:, :7], ROWS), 'made for 20 units, the layer has 7'),
    (lambda: ResponseRegression(BRAIN, 20).refresh(np.ones((120, 20))), 'no unit varies'),
    (lambda: ProtoNCE(120, 20, tau=0), 'tau must be positive'),
    (lambda: ProtoNCE(120, 20, (121,)), 'numbers from 1 to the 120 training stimuli'),
    (lambda: ProtoNCE(120, 20)(H, ROWS), 'call refresh'),
])
def test_refused(wrong, match):
    with pytest.raises(ValueError, match=match): wrong()


def test_cka_needs_the_debiased_estimate():
    "With more units than stimuli, unrelated data cost 1 on average; the biased estimate would say far less."
    rng = np.random.default_rng(0)
    loss = CKALoss(rng.normal(size=(32, 200)))
    values = np.array([loss(torch.tensor(rng.normal(size=(32, 300))), ROWS[:32]).item() for _ in range(40)])
    assert abs(values.mean() - 1) < 4*values.std()/np.sqrt(40) and values.std() < .1


def test_regression_ignores_voxels_that_do_not_vary_and_units_of_measurement():
    flat = ResponseRegression(np.hstack([BRAIN*1e4 + 5, np.full((120, 2), .1)]), 20)
    plain = ResponseRegression(BRAIN, 20)
    for o in (flat, plain): o.refresh(1e-3*ACTS)
    torch.testing.assert_close(flat(1e-3*H, ROWS), plain(1e-3*H, ROWS), rtol=1e-4, atol=1e-6)


# ProtoNCE

def test_concentrations_by_the_formula():
    rng = np.random.default_rng(0)
    v = rng.normal(size=(30, 5))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    labels = np.repeat([0, 1, 2, 3], [15, 10, 4, 1])
    by_hand = []
    for k in range(3):
        own = v[labels == k]
        by_hand.append(sum(np.linalg.norm(o - own.mean(0)) for o in own)/(len(own)*np.log(len(own) + 10)))
    by_hand.append(max(by_hand))
    np.testing.assert_allclose(concentration(v, labels, 4, .2, percentiles=None), .2*np.array(by_hand)/np.mean(by_hand))
    clamped = np.clip(by_hand, *np.percentile(by_hand, (10, 90)))
    np.testing.assert_allclose(concentration(v, labels, 4, .2), .2*clamped/clamped.mean())


def test_protonce_by_the_formula():
    "Instance and prototype terms as in the paper, one stimulus at a time; clusters from scikit-learn, with the same seeds."
    objective = made('protonce')
    v = ACTS - ACTS.mean(0)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    moved = ACTS + np.random.default_rng(2).normal(size=ACTS.shape)
    q = moved - ACTS.mean(0)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    losses = -np.diag(q @ v.T)/.1 + logsumexp(q @ v.T/.1, axis=1)
    for m, k in enumerate((3, 6, 12)):
        s = KMeans(k, n_init=5, random_state=m).fit(v).labels_
        means = np.stack([v[s == j].mean(0) for j in range(k)])
        logits = q @ (means/np.linalg.norm(means, axis=1, keepdims=True)).T/concentration(v, s, k)
        losses += (logsumexp(logits, axis=1) - logits[np.arange(120), s])/3
    np.testing.assert_allclose(objective(torch.tensor(moved), ROWS).item(), losses.mean(), rtol=1e-5)
    assert np.ptp(objective.phi2.numpy()) > .01


def test_a_cluster_that_all_share_costs_nothing_but_the_instances():
    "The fault of gathered positives: log of the members of the own cluster in the batch."
    objective = ProtoNCE(120, 20, (1,), instance=False)
    objective.refresh(ACTS)
    assert objective(H[:50], ROWS[:50]) == 0


@pytest.mark.filterwarnings('ignore:Number of distinct clusters')
def test_features_that_do_not_move():
    objective = ProtoNCE(8, 4, (2,))
    objective.refresh(np.ones((8, 4)))
    x = torch.ones(8, 4, requires_grad=True)
    loss = objective(x, ROWS[:8])
    assert loss.isfinite() and torch.autograd.grad(loss, x)[0].isfinite().all()


# Controls

def test_table_names_all_arms():
    assert set(CONTROLS) - {'protoalign'} <= set(BASELINES.index) and BASELINES.index.is_unique
    assert not BASELINES.loc[['vanilla', 'protonce', 'dnn_only', 'labels', 'random'], 'sees_brain'].any()
    assert BASELINES.index[BASELINES.sees_labels].tolist() == ['labels']
    assert BASELINES.source.str.contains('could not be identified').sum() == 1


@pytest.mark.parametrize('joint', [None, 'pca', 'cca', 'plsc'])
def test_given_partition_is_fit_without_clustering(joint):
    found = JointPrototypes(6, joint=joint).fit(ACTS, BRAIN)
    again = given_prototypes(ACTS, BRAIN, found.labels_, 6, joint=joint)
    for name, value in vars(found).items():
        if name.endswith('_') and isinstance(value, np.ndarray): np.testing.assert_allclose(getattr(again, name), value, atol=1e-10, err_msg=name)
    assert (again.predict(ACTS, BRAIN) == found.predict(ACTS, BRAIN)).all()


@pytest.mark.parametrize('arm', CONTROLS)
@pytest.mark.parametrize('joint', [None, 'pca', 'cca'])
def test_controls_are_libraries(arm, joint, tmp_path):
    "Each can be saved and read, keeps what a library promises, and is the same for the same seed."
    def lib(seed=0): return make_library(control_prototypes(arm, ACTS, BRAIN, CONCEPT % 3, 6, seed, joint=joint), IDS, control=arm)
    whole = lib()
    back = PrototypeLibrary.load(whole.save(tmp_path/'x.safetensors'))
    for name in ('p_z', 'p_r', 'assign', 'weights', 'centroids'): np.testing.assert_array_equal(getattr(back, name), getattr(lib(), name))
    assert len(whole) == (3 if arm == 'labels' else 6) and whole.counts.sum() == 120
    np.testing.assert_allclose(np.hstack([whole.p_z*whole.scales[0], whole.p_r*whole.scales[1]]) @ whole.joint_map, whole.centroids, atol=1e-4)
    u = whole.joint_vectors(ACTS, control_responses(arm, BRAIN, 0))
    np.testing.assert_allclose(np.linalg.norm(u - whole.centroids[whole.assign], axis=1), whole.distance, rtol=1e-4)
    assert (lib(1).assign == whole.assign).all() == (arm not in ('shuffled', 'random'))


def test_numbers_are_kept_from_an_earlier_assignment():
    for arm in ('shuffled', 'dnn_only', 'brain_only'):
        first = control_prototypes(arm, ACTS, BRAIN, n_prototypes=6)
        moved = control_prototypes(arm, ACTS + .01, BRAIN, n_prototypes=6, init=first.labels_)
        assert (moved.labels_ == first.labels_).all(), arm


def test_dnn_only_does_not_move_with_the_brain_nor_brain_only_with_the_network():
    other = np.random.default_rng(5).normal(size=(120, 15))
    assert (control_prototypes('dnn_only', ACTS, BRAIN, n_prototypes=6).labels_ == control_prototypes('dnn_only', ACTS, other, n_prototypes=6).labels_).all()
    other = np.random.default_rng(5).normal(size=(120, 20))
    assert adjusted_rand_score(control_prototypes('brain_only', ACTS, BRAIN, n_prototypes=6).labels_, control_prototypes('brain_only', other, BRAIN, n_prototypes=6).labels_) == 1
    joint = [control_prototypes('protoalign', ACTS, o, n_prototypes=6).labels_ for o in (BRAIN, np.roll(BRAIN, 7, 0))]
    assert adjusted_rand_score(*joint) < .9


def test_random_directions_are_unrelated_to_the_joint_ones():
    joint = make_library(JointPrototypes(6).fit(ACTS, BRAIN), IDS)
    cosines = []
    for seed in range(50):
        p = random_library(ACTS, BRAIN, IDS, 6, seed).p_z
        cosines.append((p*joint.p_z).sum()/(p**2).sum())
    assert abs(np.mean(cosines)) < 4*np.std(cosines)/np.sqrt(50)


@pytest.mark.parametrize('labels, numbers', [
    (CONCEPT, CONCEPT), ([f'c{o}' for o in CONCEPT], CONCEPT), (np.array(CONCEPT, dtype=object), CONCEPT), (CONCEPT.astype(float)*10, CONCEPT), (torch.tensor(CONCEPT), CONCEPT),
])
def test_labels_of_any_kind(labels, numbers):
    found, names = class_numbers(labels, 120)
    assert (found == numbers).all() and len(names) == 6
    assert label_library(ACTS, BRAIN, labels, IDS).names == tuple(names)


@pytest.mark.parametrize('labels, match', [
    (None, 'these stimuli have no labels'), (CONCEPT[1:], 'one label for each of 120 stimuli'), (np.where(CONCEPT == 0, np.nan, CONCEPT), '20 of 120 stimuli have no label'),
    (['']*120, '120 of 120'), ([None]*120, '120 of 120'), (np.where(CONCEPT < 2, -1, CONCEPT), '40 of 120'), (np.zeros(120, int), "at least two classes, all 120 stimuli are '0'"),
])
def test_missing_labels(labels, match):
    with pytest.raises(ValueError, match=match): control_prototypes('labels', ACTS, BRAIN, labels)


def test_shuffled_rows_are_all_there_elsewhere():
    moved = control_responses('shuffled', BRAIN, 3)
    np.testing.assert_array_equal(moved, BRAIN[np.random.default_rng(3).permutation(120)])
    assert all(control_responses(arm, BRAIN, 3) is BRAIN for arm in CONTROLS if arm != 'shuffled')
