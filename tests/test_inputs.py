"Every public measure reads the same numbers in whatever form they come: arrays and tensors, with gradient, in 16 bits, in two precisions at once."
import warnings

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip('torch')

from protoalign.artefacts import stimulus_scores
from protoalign.banded import variance_partition
from protoalign.behaviour import calibrated, fit_temperature, judgement_alignment, label_scores
from protoalign.bootstrap import bootstrap_rsa, bootstrap_score, jackknife_score
from protoalign.cka import cka_matrix, linear_cka, rbf_cka
from protoalign.crossnobis import crossnobis, cv_correlation
from protoalign.data import as_floating, as_numpy, one_type, paired
from protoalign.dimensionality import dimensionality, effective_rank, participation_ratio, two_nn
from protoalign.encoding import encoding_cv, encoding_score, prediction_scores
from protoalign.inference import permutation_cka, permutation_encoding, permutation_rsa, permutation_test
from protoalign.joint import JointPrototypes
from protoalign.layer_sweep import layer_scores
from protoalign.noise import noise_whitener
from protoalign.prototype_alignment import prototype_alignment
from protoalign.ranks import rho_a, spearman, tau_a
from protoalign.ridge import VoxelRidge, ridge_cv
from protoalign.rsa import rdm, rsa, rsa_ceiling, rsa_subjects
from protoalign.rsa_models import partial_rsa, regression_rsa
from protoalign.score import score_layer
from protoalign.scores import score
from protoalign.shape import heldout_procrustes, heldout_soft_matching, procrustes_distance, procrustes_similarity, soft_matching
from protoalign.sharedness import sharedness
from protoalign.stats import paired_over_stimuli

RNG = np.random.default_rng(0)
CAUSES = RNG.normal(size=(100, 4))
WORLD = [CAUSES @ RNG.normal(size=(4, d)) + .5*RNG.normal(size=(100, d)) for d in (6, 5)]
X, Y, U, V = (o[part] for part in (slice(60), slice(60, 100)) for o in WORLD)
FOLDS = np.c_[np.arange(20), np.arange(20), np.corrcoef(X)[:20, 20:].argmax(1) + 20] # each stimulus twice and the one most like it; no arithmetic in the precision of what is given: only the measure's own

FORMS = {
    'float32 with gradient': [lambda o: torch.tensor(o, dtype=torch.float32, requires_grad=True)]*2,
    'bfloat16': [lambda o: torch.tensor(o, dtype=torch.bfloat16, requires_grad=True)]*2,
    'float16': [lambda o: torch.tensor(o, dtype=torch.float16)]*2,
    'float32 beside float64': [lambda o: torch.tensor(o, dtype=torch.float32), torch.tensor],
    'bfloat16 beside float64': [lambda o: torch.tensor(o, dtype=torch.bfloat16), lambda o: torch.tensor(o, requires_grad=True)],
    'arrays, float16': [np.float16]*2,
    'arrays, float32 beside float64': [np.float32, np.float64],
}

MEASURES = {
    **{f'rsa {m}': lambda x, y, u, v, m=m: rsa(x, y, m) for m in ('spearman', 'rho-a', 'tau-a', 'pearson', 'cosine', 'whitened-pearson', 'whitened-cosine')},
    **{f'rdm {m}': lambda x, y, u, v, m=m: rdm(x, m) for m in ('correlation', 'cosine', 'euclidean')},
    'rsa of RDMs': lambda x, y, u, v: rsa(rdm(x), rdm(y)),
    'rsa mahalanobis': lambda x, y, u, v: rsa(rdm(x, 'mahalanobis', noise_whitener(u)), rdm(y, 'sqmahalanobis', noise_whitener(v)), 'pearson'),
    'rsa ceiling': lambda x, y, u, v: (*rsa_ceiling([rdm(x), rdm(y)]), rsa_subjects([rdm(x), rdm(y)], {'x': rdm(x)})),
    'partial rsa': lambda x, y, u, v: partial_rsa(rdm(x), rdm(y), {'part': rdm(y[:, :3])}),
    'regression rsa': lambda x, y, u, v: regression_rsa(rdm(x), {'y': rdm(y), 'part': rdm(y[:, :3])}),
    'crossnobis': lambda x, y, u, v: (crossnobis(x.reshape(20, 3, 6)), cv_correlation(x[FOLDS])),
    'cka': lambda x, y, u, v: (linear_cka(x, y), linear_cka(x, y, debiased=False), rbf_cka(x, y)),
    'cka matrix': lambda x, y, u, v: cka_matrix({'x': x, 'y': y}, {'y': y, 'x': x}),
    'procrustes': lambda x, y, u, v: [procrustes_similarity(x, y), *(procrustes_distance(x, y, f) for f in ('angular', 'chord', 'euclidean'))],
    'held-out procrustes': heldout_procrustes,
    'soft matching': lambda x, y, u, v: (soft_matching(x, y), heldout_soft_matching(x, y, u, v)),
    'dimensions': lambda x, y, u, v: (participation_ratio(x), effective_rank(x)),
    'dimensions, tables': lambda x, y, u, v: (two_nn(x), dimensionality({'x': x, 'y': y})),
    'ridge': lambda x, y, u, v: (ridge_cv(x, y), VoxelRidge().fit(x, y).predict(u)),
    'encoding': lambda x, y, u, v: (encoding_score(x, y, u, v), encoding_cv(x, y, cv='loo'), prediction_scores(v, u[:, :5], v[0])),
    'variance partition': lambda x, y, u, v: variance_partition({'a': x[:, :3], 'b': x[:, 3:]}, y, {'a': u[:, :3], 'b': u[:, 3:]}, v, model='ridge'),
    'layers': lambda x, y, u, v: layer_scores({'x': x, 'y': y}, y),
    'permutations': lambda x, y, u, v: (permutation_rsa([x, x[:, :3]], [y, y[:, :3]], 19), permutation_cka(x, y, 19), permutation_encoding(y, x[:, :5], 19), permutation_test(linear_cka, x, y, 9)),
    'bootstrap': lambda x, y, u, v: (bootstrap_rsa(x, [y, y[:, :3]], 'both', 20), jackknife_score(lambda rows: linear_cka(x[rows], y[rows]), 60), bootstrap_score(lambda rows: y[rows].mean(), 60, 20)),
    'people': lambda x, y, u, v: (judgement_alignment(x, [rdm(y[:, :3]), rdm(y[:, 2:])], n_permutations=19), label_scores(calibrated(y), abs(y)), fit_temperature(y, abs(y))),
    'ranks': lambda x, y, u, v: [f(x[:, 0], y[:, 0]) for f in (spearman, rho_a, tau_a)],
    'stimuli': lambda x, y, u, v: paired_over_stimuli(x[:, 0], y[:, 0], n_draws=20),
    'layer on held-out stimuli': lambda x, y, u, v: score_layer(x, y, {'test': (u, v)}, 5)['test'],
    'what each stimulus adds': lambda x, y, u, v: stimulus_scores(x, y, u, v, n_groups=5),
    'prototype alignment': lambda x, y, u, v: prototype_alignment(x, y, u, v, n_prototypes=4, y_again=v, n_permutations=19),
    'joint prototypes': lambda x, y, u, v: (found := JointPrototypes(4).fit(x, y), found.predict(u, v), found.predict(u), sharedness(found, u, v, 19))[1:],
    'one table': lambda x, y, u, v: score(x, y, ['rsa', 'cka', 'encoding', 'procrustes', 'prototype_alignment'], n_prototypes=4)[['value', 'n']],
}


def numbers(o):
    "All numbers of a result in one vector."
    if o is None: return np.empty(0)
    if isinstance(o, pd.DataFrame): return o.select_dtypes('number').to_numpy(float).ravel()
    if isinstance(o, dict): o = list(o.values())
    if isinstance(o, (list, tuple)): return np.concatenate([numbers(v) for v in o])
    return as_numpy(o).ravel()


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', MEASURES)
def test_same_numbers_in_every_form(name, form):
    "Against float64 arrays of the very numbers that were given, rounded as they are: only the arithmetic may differ."
    left, right = FORMS[form]
    given = [f(o) for f, o in zip((left, right)*2, (X, Y, U, V))]
    with warnings.catch_warnings():
        warnings.simplefilter('error', RuntimeWarning)
        found, expected = (numbers(MEASURES[name](*o)) for o in (given, list(map(as_numpy, given))))
    assert np.isfinite(expected).mean() > .8
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', ['rsa pearson', 'rsa cosine', 'rsa whitened-pearson', 'rsa whitened-cosine', 'rdm euclidean', 'crossnobis', 'cka', 'procrustes', 'dimensions'])
def test_gradients_reach_the_tensor_that_was_given(name, dtype):
    found = {}
    for kind in (dtype, torch.float64):
        x = torch.tensor(X).to(dtype).to(kind).requires_grad_()
        value = MEASURES[name](x, torch.tensor(Y), U, V)
        sum(o.sum() for o in (value if isinstance(value, (tuple, list)) else [value])).backward()
        found[kind] = x.grad
    assert found[dtype].dtype == dtype and found[dtype].abs().sum() > 0
    torch.testing.assert_close(found[dtype].double(), found[torch.float64], rtol=.02, atol=.02*float(found[torch.float64].abs().max()))


def test_what_cannot_be_read_is_said():
    t = torch.tensor(X)
    with pytest.raises(ValueError, match='two arrays or two tensors'): paired(t, Y)
    with pytest.raises(ValueError, match='different devices: cpu, meta'): one_type([t, t.to('meta')])
    with pytest.raises(ValueError, match='real numbers, got complex128'): as_numpy(t + 1j)
    with pytest.raises(ValueError, match='real numbers, got complex128'): as_floating(X + 1j)
    assert as_numpy(X) is X and as_numpy(pd.DataFrame(X)).dtype == float and as_numpy([[1, 2]]).dtype == float
