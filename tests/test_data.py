"Recordings: nothing leaks, nothing is lost on the way from trials to matrices."
import numpy as np
import pytest
from dataclasses import replace

from conftest import needs_data
from protoalign.data import Responses, Split, check_split, content_groups, gather_repeats, join_features, join_repeats, mean_repeats, near_duplicate_groups, select, split_stimuli
from protoalign.quality import quality, select_reliable, zscore_sessions

RNG = np.random.default_rng(0)
IDS = [f's{i}' for i in range(50)]
TRIALS = Responses(RNG.normal(size=(50, 3, 8)), IDS, 'simulated', sessions=np.tile([0, 1, 2], (50, 1)))


@pytest.mark.parametrize('seed', range(5))
def test_duplicates_planted_across_the_split_are_refused(seed):
    images = RNG.integers(0, 256, (60, 12, 12), dtype=np.uint8)
    shown = np.concatenate([images, images[RNG.permutation(60)[:20]]])
    by_content = content_groups(shown)
    split = split_stimuli(by_content, seed)
    assert check_split(by_content, split) is split
    leaking = split_stimuli([f'file {i}' for i in range(80)], seed)
    with pytest.raises(ValueError, match='by content if not by name'): check_split(by_content, leaking)


def test_stratified_split_keeps_groups_and_shares():
    labels = np.repeat([0, 1, 2], [40, 40, 20])
    groups = [f'{label}-{i//2}' for i, label in enumerate(labels)]
    split = check_split(groups, split_stimuli(groups, labels=labels))
    assert sorted(np.concatenate(split)) == list(range(100))
    for rows, share in ((split.test, .2), (split.val, .16), (split.train, .64)):
        assert np.allclose(np.bincount(labels[rows], minlength=3)/[40, 40, 20], share, atol=.06)


def test_trials_come_back_in_any_order():
    stimulus, repeat = (o.ravel() for o in np.mgrid[:50, :3])
    order = RNG.permutation(150)
    back = gather_repeats(TRIALS.values[stimulus, repeat][order], [IDS[s] for s in stimulus[order]], repeat[order])
    again = select(back, IDS)
    where = again.sessions.argsort(1)
    assert (np.take_along_axis(again.values, where[..., None], 1) == TRIALS.values).all()


def test_joined_sessions_hold_every_trial_once():
    joined = join_repeats([select(TRIALS, IDS[:30]), select(TRIALS, IDS[20:])])
    assert np.isfinite(joined.values[..., 0]).sum() == 3*60
    assert np.allclose(select(mean_repeats(joined), IDS).values, mean_repeats(TRIALS).values, atol=1e-6)
    assert len(join_features([mean_repeats(TRIALS), mean_repeats(select(TRIALS, IDS[10:]))])) == 40


def test_held_out_stimuli_have_no_say():
    "Neither scaling nor the choice of features moves when test responses do."
    train, spoilt = IDS[:35], TRIALS.values.copy()
    spoilt[35:] = 1e3*RNG.normal(size=spoilt[35:].shape)
    spoilt = replace(TRIALS, values=spoilt)
    a, b = (zscore_sessions(o, train).values[:35] for o in (TRIALS, spoilt))
    assert (a == b).all()
    kept = [select_reliable(o, train, -.2).n_features for o in (TRIALS, spoilt)]
    assert kept[0] == kept[1]


def test_quality_ignores_the_order_of_repeats_and_units():
    found = quality(TRIALS, n_splits=300)
    other = quality(replace(TRIALS, values=5*TRIALS.values[:, ::-1] + 3), n_splits=300)
    assert np.allclose(found[['ncsnr', 'noise_ceiling', 'explainable_variance']], other[['ncsnr', 'noise_ceiling', 'explainable_variance']], atol=1e-4)
    assert np.allclose(found.split_half, other.split_half, atol=.02)


@pytest.mark.parametrize('wrong, match', [
    (lambda: replace(TRIALS, sessions=[1, 2]), r'sessions have shape \(2,\), expected \(50, 3\)'),
    (lambda: gather_repeats(TRIALS.values[:, 0], IDS[:-1]), r'shape \(50, 8\) and 49 ids'),
    (lambda: split_stimuli(IDS, labels=[0]*49), '49 labels for 50 stimuli'),
    (lambda: quality(mean_repeats(TRIALS)), 'at least 3 stimuli with 2 repeats'),
    (lambda: zscore_sessions(replace(TRIALS, values=np.where(np.arange(8) == 2, 1., TRIALS.values))), r'1 of 8 features are constant in session 0 \(first: \[2\]\)'),
    (lambda: join_features([TRIALS, TRIALS]), 'average the repeats first'),
])
def test_refused(wrong, match):
    with pytest.raises(ValueError, match=match): wrong()


@needs_data('macaque_v4')
def test_photographs_that_recur_are_found_by_content():
    "Names say nothing: 600 photographs of 210322 recur in 210325."
    from protoalign.datasets import load
    days = [load('macaque-v4', session=s) for s in ('210322', '210325')]
    groups = days[0].groups + days[1].groups
    n = len(days[0].ids)
    assert len(set(days[0].ids) & set(days[1].ids)) == 0 and len(set(days[0].groups) & set(days[1].groups)) == 600
    with pytest.raises(ValueError, match='600 stimuli are in train and in test'): check_split(groups, Split(np.arange(n), [], np.arange(n, len(groups))))
    near = near_duplicate_groups(days[1].stimuli[:200])
    assert len(set(near)) <= len(set(days[1].groups[:200]))
