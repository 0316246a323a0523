"JointPrototypes keeps scikit-learn's rules, and finds planted truth whatever the path to it."
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from protoalign.data import planted_world
from protoalign.joint import JointPrototypes


@parametrize_with_checks([JointPrototypes(n_prototypes=3)])
@pytest.mark.filterwarnings('ignore:Number of distinct clusters')
def test_scikit_learn(estimator, check): check(estimator)


@pytest.mark.parametrize('joint', [None, 'pca', 'cca'])
@pytest.mark.parametrize('balance', ['variance', 'singular'])
@pytest.mark.parametrize('back', ['mean', 'inverse'])
def test_planted_truth(joint, balance, back):
    acts, brain, concept = planted_world(seed=3)
    fitted = JointPrototypes(6, joint=joint, balance=balance, back_projection=back).fit(acts[:200], 1000*brain[:200])
    assert adjusted_rand_score(concept[:200], fitted.labels_) == 1
    for predicted in (fitted.predict(X=acts[200:]), fitted.predict(Y=1000*brain[200:]), fitted.predict(acts[200:], 1000*brain[200:])):
        assert adjusted_rand_score(concept[200:], predicted) > .95


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
