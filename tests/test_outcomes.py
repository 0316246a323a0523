"Verdicts on runs whose truth is known, and what a cell leaves behind."
import inspect
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from made_run import make_run
from protoalign import outcomes as page
from protoalign.artefacts import Artefact, compare_over_stimuli, load_artefact, save_artefact, stimulus_scores, stimulus_table
from protoalign.datasets import load
from protoalign.config import Config
from protoalign.outcomes import CONTROLS, MET, NOT_MET, PRIORS, UNTESTABLE, judge_run, read_run
from protoalign.score import score_layer

CONFIG = Config(arms=('vanilla', 'protoalign', *CONTROLS, *PRIORS), n_seeds=5, sweep=(.1, 1.))
TRUE = dict(protoalign=.2, cka=.05, rsa=.04, shuffled=.01)


def verdicts(out): return judge_run(out).table.set_index('outcome')['verdict']


def test_thresholds_are_those_of_the_proposal():
    assert (page.ALPHA, page.MIN_DELTA_R2, page.MAX_TASK_LOSS, page.MIN_LABELLING) == (.01, .05, .01, .80)
    assert page.CONTROLS == ('shuffled', 'dnn_only', 'random')


def test_all_planted_is_all_met(tmp_path):
    found = verdicts(make_run(tmp_path, CONFIG, TRUE))
    assert found[['Transfer', 'Interpretability']].tolist() == [UNTESTABLE]*2 and set(found.drop(['Transfer', 'Interpretability'])) == {MET}
    assert pd.read_csv(tmp_path/'outcomes.csv')['verdict'].tolist() == found.tolist()


@pytest.mark.parametrize('control', CONTROLS)
def test_a_control_as_good_is_not_met(tmp_path, control):
    found = verdicts(make_run(tmp_path, CONFIG, {**TRUE, control: .2}))
    assert found.iloc[:4].tolist() == [NOT_MET]*4


def test_what_is_missing_is_said(tmp_path):
    came = judge_run(make_run(tmp_path, replace(CONFIG, arms=('vanilla', 'protoalign', 'shuffled')), TRUE))
    row = came.table.iloc[0]
    assert row['verdict'] == UNTESTABLE and 'not run: rsa, cka, protonce, dnn_only, random' in row['came_out']


def test_without_artefacts_nothing_is_met_but_failures_stay(tmp_path):
    assert verdicts(make_run(tmp_path/'a', CONFIG, TRUE, artefacts=False)).iloc[:4].tolist() == [UNTESTABLE]*4
    assert verdicts(make_run(tmp_path/'b', CONFIG, {}, artefacts=False)).iloc[:4].tolist() == [NOT_MET]*4


def test_what_holds_over_seeds_alone_is_not_met(tmp_path):
    "The same gain in every seed, carried by a few stimuli."
    came = judge_run(make_run(tmp_path, CONFIG, TRUE, spread=3.))
    assert (came.evidence['p_bonferroni'] < .01).all() and came.table['verdict'].iloc[:4].tolist() == [NOT_MET]*4


def test_unfinished_runs(tmp_path):
    missing = [f'random-seed{s}-lam0.5' for s in range(5)] + ['protoalign-seed4-lam0.5']
    came = judge_run(make_run(tmp_path, CONFIG, TRUE, missing))
    assert set(came.missing) == set(missing) and came.evidence['n'].max() == 4 and came.table['verdict'].iloc[0] == UNTESTABLE
    only = make_run(tmp_path/'one', CONFIG, TRUE, [f'{a}-seed{s}{end}' for a, end in [('vanilla', '')] + [(a, '-lam0.5') for a in CONFIG.arms[2:]] for s in range(5)])
    assert set(judge_run(only).table['verdict']) == {UNTESTABLE}, 'without vanilla nothing is steered from zero either'
    with pytest.raises(ValueError, match='holds no protoalign run'): read_run(tmp_path/'nowhere')


def test_steering_and_study_beside_the_run(tmp_path):
    make_run(tmp_path, replace(CONFIG, sweep=()), TRUE)
    assert verdicts(tmp_path)['Steering'] == UNTESTABLE
    rng = np.random.default_rng(0)
    steering = pd.DataFrame([dict(prototype=k, seed=s, weight=w, value=.1*w*(k or 1) + .001*rng.normal()) for k in (1, 2) for s in range(4) for w in (-1., 0., 1.)])
    steering.to_csv(tmp_path/'steering.csv', index=False)
    answers = [dict(rater=r, item=f'{a} {i}', answer='x' if i < n else 'y', truth='x', arm=a) for a, n in dict(protoalign=19, shuffled=5, dnn_only=8, random=3).items() for r in range(3) for i in range(20)]
    pd.DataFrame(answers).to_csv(tmp_path/'study.csv', index=False)
    assert verdicts(tmp_path)[['Steering', 'Interpretability']].tolist() == [MET, MET]
    steering.assign(value=steering.value.where(steering.prototype == 1, -steering.value)).to_csv(tmp_path/'steering.csv', index=False)
    assert verdicts(tmp_path)['Steering'] == NOT_MET, 'one prototype that goes the other way is enough'


# Artefacts

@pytest.mark.parametrize('rotated', [False, True])
def test_the_mean_over_stimuli_is_the_score(rotated):
    "On digits: raw pixels against a simulated subject."
    d = load('digits')
    x, y = d.stimuli[:300].reshape(300, -1).astype(np.float32), d.responses['simulated-01'].values[:300]
    scores = stimulus_scores(x[:240], y[:240], x[240:], y[240:], rotated)
    whole = score_layer(x[:240], y[:240], {'t': (x[240:], y[240:])}, rotated=rotated)['t']
    assert set(scores) == set(whole)
    for metric, value in whole.items(): assert scores[metric].mean() == pytest.approx(value, abs=1e-9)


def test_without_each_stimulus_one_by_one():
    d = load('digits')
    x, y = d.stimuli[:132].reshape(132, -1).astype(float), d.responses['simulated-01'].values[:132]
    scores, n = stimulus_scores(x[:120], y[:120], x[120:], y[120:], n_groups=5), 12
    score = lambda rows: pd.Series(score_layer(x[:120], y[:120], {'t': (x[rows], y[rows])}, n_groups=5)['t'])
    whole, left = score(np.arange(120, 132)), pd.DataFrame([score(np.delete(np.arange(120, 132), i)) for i in range(n)])
    for metric in scores: assert np.allclose(scores[metric], whole[metric] + (n - 1)*(left[metric].mean() - left[metric]), atol=1e-8), metric


def test_artefacts_refuse_what_does_not_fit(tmp_path):
    scores = pd.DataFrame({'a': np.arange(8.)})
    with pytest.raises(ValueError, match='of 8 test stimuli'): save_artefact(tmp_path/'a.npz', scores, range(8), activations=np.ones((7, 2)))
    with pytest.raises(ValueError, match='task images'): save_artefact(tmp_path/'a.npz', scores, range(8), right=[True], right_ids=['1', '2'])
    assert not list(tmp_path.iterdir()), 'nothing half written is left'
    path = save_artefact(tmp_path/'a.npz', scores, range(8))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match='damaged'): load_artefact(path)
    np.save(tmp_path/'p.npy', np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match='no artefact'): load_artefact(tmp_path/'p.npy')
    with pytest.raises(FileNotFoundError): load_artefact(tmp_path/'none.npz')


def made(values, names, groups=None):
    names = np.array(names)
    return Artefact(pd.DataFrame({'m': values}, index=names), names if groups is None else np.asarray(groups), pd.Series(dtype=bool), {})


def test_folds_with_other_test_stimuli():
    "Each seed tests its own stimuli: differences of all of them count, each once."
    rng, kept, d = np.random.default_rng(0), {}, []
    for seed in range(3):
        names, base, gain = [f'{seed}-{i}' for i in range(10)], rng.normal(size=10), rng.normal(1, .1, 10)
        kept['vanilla', seed], kept['protoalign', seed] = made(base, names), made(base + gain, names)
        d += list(gain)
    found = compare_over_stimuli(stimulus_table(kept)).iloc[0]
    assert (found['n_stimuli'], found['n_seeds']) == (30, 3) and found['difference'] == pytest.approx(np.mean(d)) and np.isnan(found['p_crossed'])
    assert found['se'] == pytest.approx(np.std(d, ddof=1)/30**.5, rel=.1)


def test_groups_are_drawn_as_wholes():
    "Ten copies of each of twelve differences say no more than the twelve."
    rng = np.random.default_rng(0)
    gain = rng.normal(size=12)
    once = {('protoalign', 0): made(gain, range(12)), ('vanilla', 0): made(0*gain, range(12))}
    copied = {k: made(np.repeat(a.scores['m'].to_numpy(), 10), range(120), np.repeat(np.arange(12), 10)) for k, a in once.items()}
    a, b = (compare_over_stimuli(stimulus_table(o)).iloc[0] for o in (once, copied))
    assert a['se'] == pytest.approx(b['se'], rel=1e-9) and (b['n_groups'], b['n_stimuli']) == (12, 120)


def test_the_module_needs_no_torch():
    import protoalign.artefacts
    assert 'torch' not in inspect.getsource(protoalign.artefacts)
