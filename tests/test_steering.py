"Steering beyond the page: who is reached, what is unbiased, how sure the intervals are, and Learners of every kind."
from copy import deepcopy
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from conftest import ROOT # noqa: F401, sets PROTOALIGN_DATA
from protoalign.arms import Settings
from protoalign.judge import Judge, contrast, interval, judge_network, make_judge, prototype_cosines
from protoalign.bootstrap import bootstrap_counts
from protoalign.refit import Refit
from protoalign.refresh import ProtoLoss, ProtoRefresh
from protoalign.steering import ContrastLoss, ContrastObjective, dose_response, mean_gap, specificity, specificity_gap, specificity_p, steer, steerable, steering_weights, trend
from protoalign.train import Stimuli, Task, fit, make_learner, no_random

RNG = np.random.default_rng(0)
KNOWN = RNG.integers(3, size=240)
X = torch.tensor(2*np.eye(12)[KNOWN*4 + RNG.integers(4, size=240)] + .1*RNG.normal(size=(240, 12)), dtype=torch.float32)
BRAIN = RNG.normal(size=(3, 30))[KNOWN] + .5*RNG.normal(size=(240, 30))
Y = torch.tensor(RNG.integers(2, size=240))
IDS = [f's{i}' for i in range(240)]
TRAIN, NEW = np.arange(160), np.arange(160, 240)
STIMULI = Stimuli(X[TRAIN], BRAIN[TRAIN], tuple(IDS[:160]))
SETTINGS = Settings('0', K=3, batch_size=32, stimulus_batch=32, every=1, brain_weight=1., lam=1.)
with no_random(0): START = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 2))


def task(one_stream=True): return Task(X[TRAIN], Y[TRAIN], X[NEW], Y[NEW], X[NEW], Y[NEW], rows=torch.arange(160) if one_stream else None)


def make(seed=0, one_stream=True, settings=SETTINGS): return steerable(START, task(one_stream), STIMULI, settings, seed)


LIBRARY = make().proto_loss.library
JUDGE = make_judge(LIBRARY, X[TRAIN], X[NEW], BRAIN[NEW], IDS[160:])


def bits(model): return torch.cat([p.flatten() for p in model.state_dict().values()])


@pytest.mark.parametrize('one_stream', [True, False])
def test_no_weights_is_the_task_alone(one_stream):
    "Bit for bit, in both streams, whatever random numbers were drawn before the Learner was made."
    torch.rand(3)
    learn = make(4, one_stream)
    steer(learn, {}, JUDGE, 2, .01, seed=5)
    assert torch.equal(bits(learn.model), bits(fit(deepcopy(START), task(False), 2, .01, 5, batch_size=32).model))
    assert learn.proto_loss.lam == {'0': 1.}, 'λ is back'
    assert not learn.proto_loss.log, 'no batch of stimuli was shown for nothing'


@pytest.mark.parametrize('one_stream', [True, False])
@pytest.mark.parametrize('weight', [1., -1.])
def test_same_seed_same_numbers(one_stream, weight):
    a, b, c = (steer(make(s, one_stream), {0: weight}, JUDGE, 2, .01, seed=s) for s in (3, 3, 4))
    assert (a.cosines == b.cosines).all() and (a.cosines != c.cosines).any()
    assert (a.table.change[0] > 0) == (weight > 0)


def test_softmax_weights_reach_members_alone():
    "Concepts on inputs of their own: with weight 0 for the others and no task, what they are answered does not move by one bit."
    x = torch.tensor(np.eye(12)[KNOWN*4 + RNG.integers(4, size=240)], dtype=torch.float32)
    with no_random(0): net = nn.Sequential(nn.Linear(12, 8, bias=False), nn.Identity(), nn.Linear(8, 2))
    stimuli, data = replace(STIMULI, x=x[TRAIN]), Task(x[TRAIN], Y[TRAIN], x[NEW], Y[NEW], x[NEW], Y[NEW], torch.arange(160))
    learn = steerable(net, data, stimuli, SETTINGS)
    learn.loss_func, learn.wd = lambda pred, y: 0*pred.sum(), 0.
    library = learn.proto_loss.library
    judge = make_judge(library, x[TRAIN], x[NEW], BRAIN[NEW], IDS[160:])
    steer(learn, {1: 1.}, judge, 2, .01, how='softmax')
    moved = (learn.model[0](x[NEW]) != net[0](x[NEW])).any(1).numpy()
    assert (moved == (judge.labels_new == 1)).all() and moved.any()


def test_unknown_rows_do_not_count():
    "Rows of −1 add nothing: neither to the value nor to the gradient; a batch of nothing else is 0 with a gradient of 0."
    objective, h = ContrastObjective(LIBRARY, weights=[1., -1., 0.]), torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(40)
    mixed, more = torch.cat([rows, -torch.ones(7, dtype=torch.long)]), torch.cat([h, torch.randn(7, 16)]).requires_grad_()
    found = objective(more, mixed)
    torch.testing.assert_close(found, objective(h, rows))
    found.backward()
    assert (more.grad[40:] == 0).all() and (more.grad[:40] != 0).any()
    alone = h.clone().requires_grad_()
    nothing = objective(alone, -torch.ones(40, dtype=torch.long))
    nothing.backward()
    assert nothing.item() == 0 and (alone.grad == 0).all()
    with pytest.raises(ValueError, match='the layer has 15 pooled units'): objective(h[:, :15], rows)


def test_mean_gap_is_a_u_statistic():
    "Its mean over all ways to draw 2 of 4 members and 3 of 5 others is its value on all nine."
    u = torch.nn.functional.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    inside = (torch.arange(9) < 4).double()[:, None]
    gap = lambda rows: mean_gap(u[rows], inside[rows], 1 - inside[rows]).item()
    drawn = [gap([*a, *b]) for a in combinations(range(4), 2) for b in combinations(range(4, 9), 3)]
    assert np.isclose(np.mean(drawn), gap(list(range(9))), atol=1e-12)
    assert gap([0, 4, 5]) == 0, 'one member has no pairs'


def test_interval_covers():
    "200 draws of 60 held-out stimuli with given directions: 95 % intervals hold the contrast of 40,000 stimuli in about 95 % of the cases."
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(3, 10))
    def drawn(n):
        labels = rng.integers(3, size=n)
        x = .4*directions[labels] + rng.normal(size=(n, 10))
        return (x @ directions.T)/np.linalg.norm(x, axis=1)[:, None]/np.linalg.norm(directions, axis=1), labels
    truth, held = contrast(*drawn(40_000)), []
    for i in range(200):
        cosines, labels = drawn(60)
        low, high = interval(contrast(cosines, labels, bootstrap_counts(60, 300, random_state=i)))
        held.append((low <= truth) & (truth <= high))
    assert .91 < np.mean(held) < .98


def test_groups_are_drawn_as_wholes():
    "Every held-out stimulus twice under one group: the interval is that of the single ones, not narrower."
    twice = np.repeat(NEW, 2)
    double = Judge(X[TRAIN], JUDGE.labels, JUDGE.ids, X[twice], np.repeat(JUDGE.labels_new, 2), [f'{i}' for i in range(160)], JUDGE.names, '0', groups=[f'{i}' for i in twice])
    width = lambda judge: (lambda t: (t.high - t.low).mean())(judge_network(judge, START))
    assert np.isclose(width(double), width(JUDGE), rtol=.1) and width(replace(double, groups=None)) < .8*width(JUDGE)


def test_prototypes_without_members():
    "NaN where nobody is left to score, and no NaN anywhere else."
    cosines = prototype_cosines(X[TRAIN].numpy(), KNOWN[TRAIN], X[NEW].numpy(), 4)
    assert np.isnan(cosines[:, 3]).all() and np.isfinite(cosines[:, :3]).all()
    some = cosines[KNOWN[NEW] > 0]
    found = contrast(some, KNOWN[NEW][KNOWN[NEW] > 0])
    assert np.isnan(found[[0, 3]]).all() and np.isfinite(found[1:3]).all()
    changes = np.array([[np.nan, .3, .1], [np.nan, 0., .5]])
    assert np.isclose(specificity_gap(changes, np.array([1, 2])), .4 - .05)


def test_p_is_uniform_where_nothing_is_specific():
    rng = np.random.default_rng(0)
    ps = np.array([specificity_p(rng.normal(size=(4, 6)), np.arange(4)) for _ in range(400)])
    assert abs(ps.mean() - 25/48) < .05 and (ps <= 1/24 + 1e-9).mean() < .08
    assert specificity_p(rng.normal(size=(1, 6)), np.array([2])) == 1


def test_trend_of_nothing():
    assert np.isnan(trend(np.ones((2, 4)))['p']) and np.isnan(trend([[1, np.nan, 2]])['rho'])
    assert trend([[1, 2, 3], [1, 2, 4]])['rho'] == pytest.approx(1) and trend([[3, 2, 1], [9, 2, 1]])['rho'] == pytest.approx(-1)
    with pytest.raises(ValueError, match='at least three doses'): trend([[1, 2]])


def test_learners_of_other_kinds():
    "No library but a refresh that makes one; no refresh; several libraries; there and back between the two losses."
    refit = Refit(X[TRAIN], BRAIN[TRAIN], IDS[:160], '0', n_prototypes=3, brain_weight=1.)
    learner = lambda *cbs: make_learner(deepcopy(START), task(), 32, True, cbs)
    assert steer(learner(ProtoLoss(None, '0'), ProtoRefresh(refit)), {0: 1.}, JUDGE, 1, .01).table.weight.tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match='no ProtoRefresh to make one'): steer(learner(ProtoLoss(None, '0')), {0: 1.}, JUDGE, 1, .01)
    with pytest.raises(ValueError, match='with one library, this one has 2'): steer(learner(ProtoLoss([LIBRARY, LIBRARY], '0')), {0: 1.}, JUDGE, 1, .01)
    with pytest.raises(ValueError, match="how is 'contrast' or 'softmax'"): steer(learner(ProtoLoss(LIBRARY, '0')), {0: 1.}, JUDGE, 1, .01, how='pull')
    learn = learner(ProtoLoss(LIBRARY, '0', lam=.7, tau=.3, seed=9))
    steer(learn, {0: 1.}, JUDGE, 1, .01)
    assert type(learn.proto_loss) is ContrastLoss and len(learn.cbs.filter(lambda o: isinstance(o, ProtoLoss))) == 1
    steer(learn, {1: 1.}, JUDGE, 1, .01, how='softmax')
    loss = learn.proto_loss
    assert type(loss) is ProtoLoss and (loss.lam, loss.tau, loss.seed, loss.weights.tolist()) == ({'0': .7}, .3, 9, [0, 1, 0])


def test_lam_is_back_after_a_failure():
    learn = make()
    learn.loss_func = lambda pred, y: 1/0
    with pytest.raises(ZeroDivisionError): steer(learn, {}, JUDGE, 1, .01)
    assert learn.proto_loss.lam == {'0': 1.}


def test_weights():
    named = deepcopy(LIBRARY)
    named.names = 'a', 'b', 'c'
    assert steering_weights(named, {'b': -2, 2: .5}, others=1.).tolist() == [1, -2, .5]
    named.weights = np.array([1, 0, 1], dtype=np.float32)
    assert steering_weights(named, {'b': 0., 'a': 1.}, how='softmax').tolist() == [1, 0, 0], 'no direction is no fault of a prototype that nobody steers'
    with pytest.raises(ValueError, match='b: no direction'): steering_weights(named, {'b': 1.}, how='softmax')
    assert ContrastObjective(named, steering_weights(named, {'b': 1.})).weights.tolist() == [0, 1, 0], 'the contrast needs none'
    named.assign = np.where(named.assign == 1, 0, named.assign)
    with pytest.raises(ValueError, match='b: no members'): steering_weights(named, {'b': 1.})
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match='finite'): steering_weights(named, {'a': bad})


def test_other_judges_are_refused():
    with pytest.raises(ValueError, match='the judge has 3 prototypes, the library 4'):
        steer(make(settings=replace(SETTINGS, K=4)), {0: 1.}, JUDGE, 1, .01)
    with pytest.raises(ValueError, match='0 training stimuli are common'):
        steer(make(), {0: 1.}, replace(JUDGE, ids=[f'x{i}' for i in range(160)]), 1, .01)
    with pytest.raises(ValueError, match='give layer='):
        make_judge(replace(LIBRARY, provenance={}), X[TRAIN], X[NEW], BRAIN[NEW], IDS[160:])


def test_a_brain_alone_numbers_its_prototypes_after_the_library():
    "The library is clustered on both sides, the judge on the brain: the same concept has the same number."
    library = make(settings=replace(SETTINGS, brain_weight=.5)).proto_loss.library.renumber(np.array([2, 0, 1]))
    judge = make_judge(library, X[TRAIN], X[NEW], BRAIN[NEW], IDS[160:], y_train=BRAIN[TRAIN])
    for k in range(3): assert len(np.unique([*KNOWN[TRAIN][judge.labels == k], *KNOWN[NEW][judge.labels_new == k], *KNOWN[TRAIN][library.assign == k]])) == 1


def test_specificity_and_dose_say_the_same():
    "The diagonal of the matrix is the dose's target less its zero; the price is the difference of accuracies."
    spec = specificity(make, JUDGE, [0, LIBRARY.names[2]], 1, .01, weight=.5, seeds=(1, 2), n_draws=50)
    dose = dose_response(make, JUDGE, 0, (0, .5, -.5), 1, .01, seeds=(1, 2))
    by_dose = dose.table.groupby('weight').mean()
    assert np.isclose(spec.matrix.iloc[0, 0], by_dose.target[.5] - by_dose.target[0])
    row = spec.trainings.query('steered == @LIBRARY.names[0]')
    assert np.allclose(row.price, dose.table.query('weight == 0').accuracy.to_numpy() - row.accuracy)
    assert spec.summary.low <= spec.summary.difference <= spec.summary.high and spec.summary.n_seeds == 2
    assert np.isclose(spec.summary.diagonal - spec.summary.off_diagonal, spec.summary.difference)
    for bad in (dict(steered=[0, 0]), dict(steered=[]), dict(steered=[0], weight=0)):
        with pytest.raises(ValueError, match='different prototypes'): specificity(make, JUDGE, epochs=1, lr=.01, **bad)
