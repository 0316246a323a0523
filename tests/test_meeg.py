"EEG and MEG: every number is MNE's, every row is the right stimulus, whatever was dropped."
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from protoalign.data import join_repeats, mean_repeats, select_features
from protoalign.files import load_responses, write_responses
from protoalign.quality import quality, zscore_sessions

mne = pytest.importorskip('mne')
from protoalign import meeg
from protoalign.meeg import (epochs_responses, evoked_responses, noise_whitener, read_epochs_responses, sensor_map, sensor_table, time_course,
                             time_windows, whiten_sensors)

SHOWN = np.random.default_rng(0).permutation(np.repeat(np.arange(12), 5))
NAMES = {f'object/{i:02d}': i + 1 for i in range(12)}
ABOUT = pd.DataFrame({'image': [f'object/{i:02d}' for i in SHOWN], 'day': np.repeat(['mon', 'tue', 'wed'], 20)})
MOVED = mne.transforms.Transform('meg', 'head', mne.transforms.rotation(0, 0, .3) @ mne.transforms.translation(.01, -.02, .03))


def eeg_info(n=16):
    names = mne.channels.make_standard_montage('biosemi16').ch_names[:n]
    return mne.create_info(names, 200., 'eeg').set_montage('biosemi16')


def meg_info():
    "Eight places of a simulated helmet, each with a magnetometer and two gradiometers, next to two electrodes."
    kinds = ['mag', 'grad', 'grad']*8 + ['eeg']*2
    info = mne.create_info([f'MEG{i:02d}' for i in range(24)] + ['EEG1', 'EEG2'], 200., kinds)
    angle = np.linspace(0, 2*np.pi, 8, endpoint=False)
    for i, c in enumerate(info['chs'][:24]): c['loc'][:3] = .1*np.cos(angle[i//3]), .1*np.sin(angle[i//3]), .05
    with info._unlock(): info['dev_head_t'] = MOVED
    return info


def epochs_of(info, scale=1e-6, seed=0, **options):
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(12, len(info['ch_names']), 1))[SHOWN]
    data = scale*(signal + rng.normal(size=(60, len(info['ch_names']), 60)))
    events = np.c_[np.arange(60)*100, np.zeros(60, int), SHOWN + 1]
    return mne.EpochsArray(data, info, events, tmin=-.1, event_id=NAMES, metadata=ABOUT, verbose='error', **options)


def test_every_condition_is_its_average():
    epochs = epochs_of(eeg_info())
    mean = mean_repeats(epochs_responses(epochs, scaled=False))
    for row, name in zip(mean.values, mean.ids):
        average = epochs[name].average().get_data().ravel()
        assert np.abs(row - average).max() < 1e-6*np.abs(average).max()


@pytest.mark.parametrize('how', [None, 'image', {i + 1: f'object/{i:02d}' for i in range(12)}, ABOUT.image, ABOUT.image.tolist()], ids=['names', 'column', 'codes', 'series', 'list'])
def test_dropped_epochs_do_not_shift_the_ids(how):
    epochs = epochs_of(eeg_info()).drop([0, 7, 8, 31], reason='blink')
    found = epochs_responses(epochs, how, windows=.1, sessions='day')
    for name in NAMES:
        there = epochs[name].get_data(units='uV')
        np.testing.assert_allclose(found.values[found.ids.index(name), :len(there)].reshape(len(there), 16, 3), there.reshape(len(there), 16, 3, 20).mean(-1), rtol=1e-4, atol=1e-5)
        assert list(found.sessions[found.ids.index(name), :len(there)]) == epochs[name].metadata.day.tolist()


def test_the_order_of_events_does_not_matter():
    epochs, order = epochs_of(eeg_info()), np.random.default_rng(1).permutation(60)
    a, b = (mean_repeats(epochs_responses(o)) for o in (epochs, epochs[order]))
    np.testing.assert_allclose(b.values[[b.ids.index(o) for o in a.ids]], a.values, atol=1e-5)
    with pytest.raises(ValueError, match='not in the order of their events'): epochs_responses(epochs[order], ABOUT.image)


def test_a_raw_recording_with_rejection(tmp_path):
    "Epochs that are cut and rejected only when they are read."
    rng, info = np.random.default_rng(0), eeg_info()
    data = rng.normal(size=(16, 60*100 + 200))*1e-6
    data[3, 1010:1020] = 1e-3 # in the epoch of the tenth event
    raw = mne.io.RawArray(data, info, verbose='error')
    events = np.c_[np.arange(60)*100 + 100, np.zeros(60, int), SHOWN + 1]
    epochs = mne.Epochs(raw, events, NAMES, -.1, .2, baseline=(None, 0), reject=dict(eeg=1e-4), verbose='error')
    found = epochs_responses(epochs, ABOUT.image, windows=[(0, .2)])
    assert len(epochs.drop_log) == 60 and len(epochs) == 59 and 9 not in epochs.selection
    assert np.isnan(found.values[..., 0]).sum() == 1
    here = epochs[found.ids[0]].load_data().crop(0, .2, include_tmax=False).get_data(units='uV').mean(-1)
    np.testing.assert_allclose(found.values[0][:len(here)], here, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match='58 stimulus ids for 59 epochs, left of 60 events'): epochs_responses(epochs, ABOUT.image[2:])


def test_meg_in_head_coordinates_and_its_units():
    info = meg_info()
    epochs = epochs_of(info, 1e-13)
    table = sensor_table(info, 'meg')
    np.testing.assert_allclose(table[list('xyz')], mne.transforms.apply_trans(MOVED, np.array([c['loc'][:3] for c in info['chs'][:24]])))
    assert sensor_table(info, 'eeg')[list('xyz')].isna().all(axis=None)
    both = epochs_responses(epochs, windows=[(0, .1)])
    assert both.units == 'fT + fT/cm + µV' and both.recorder == 'MEG + EEG' and both.features.unit.tolist() == ['fT', 'fT/cm', 'fT/cm']*8 + ['µV']*2
    theirs = epochs[both.ids[0]].crop(0, .1, include_tmax=False).get_data(units=dict(mag='fT', grad='fT/cm', eeg='uV')).mean(-1)
    np.testing.assert_allclose(both.values[0], theirs, rtol=1e-5)
    no_transform = info.copy()
    with no_transform._unlock(): no_transform['dev_head_t'] = None
    assert sensor_table(no_transform, 'mag')[list('xyz')].isna().all(axis=None)
    assert epochs_responses(epochs, picks='mag', scaled=False).units == 'T'


def test_quality_does_not_depend_on_the_units():
    "Teslas are near 1e-13: no guard of the quality page may bite."
    epochs = epochs_of(meg_info(), 1e-13)
    small, nice = (epochs_responses(epochs, picks='mag', windows=.1, sessions='day', scaled=o) for o in (False, True))
    np.testing.assert_allclose(quality(small).select_dtypes(float), quality(nice).select_dtypes(float), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(zscore_sessions(small).values, zscore_sessions(nice).values, atol=1e-3)


@pytest.mark.parametrize('wrong, match', [
    (dict(windows=[(.15, .3)]), r'windows \[\[0.15, 0.3\]\] s hold no sample, or reach out of the 60 samples from -0.1 to 0.195 s'),
    (dict(windows=[(.1, .05)]), 'hold no sample'), (dict(windows=.5), 'hold no sample'), (dict(picks='meg'), "picks='meg' among 16 of kinds"),
    (dict(picks=['A1', 'nowhere']), 'no good channel'), (dict(ids=['a']*61), '61 stimulus ids for 60 epochs'), (dict(ids='picture'), r"no column 'picture'.*'image', 'day'"),
    (dict(ids={1: 'a'}), 'event codes'), (dict(ids={'object/00': 1}), 'goes from code to id'), (dict(sessions=[1, 2]), '2 sessions for 60 epochs'),
])
def test_what_does_not_fit_is_refused(wrong, match):
    with pytest.raises(ValueError, match=match): epochs_responses(epochs_of(eeg_info()), **wrong)


def test_other_faults():
    info, lost = eeg_info(), ABOUT.copy()
    with pytest.raises(ValueError, match='need MNE Epochs, got EvokedArray'): epochs_responses(mne.EvokedArray(np.zeros((16, 5)), info))
    with pytest.raises(ValueError, match='no epoch is left of 60 events'): epochs_responses(epochs_of(info).drop(range(60)))
    lost.loc[3, 'image'] = None
    epochs = epochs_of(info)
    epochs.metadata = lost
    with pytest.raises(ValueError, match='lacks 1 of 60 stimulus ids'): epochs_responses(epochs, 'image')
    epochs._data[4, 2, 7] = np.nan
    with pytest.raises(ValueError, match=rf"1 sensors hold NaN or infinite values \(first: \['{info['ch_names'][2]}'\]"): epochs_responses(epochs)
    epochs.info['bads'] = [info['ch_names'][2]]
    assert epochs_responses(epochs, windows=.1).features.sensor.nunique() == 15


def test_windows_by_their_samples():
    times = np.arange(-20, 61)/200
    for windows, step in ((None, None), (.05, None), (.05, .025), ([(-.1, 0), (.1, .105)], None)):
        for _, w in time_windows(times, windows, step).iterrows():
            inside = np.flatnonzero((times > w.tmin - 1e-6) & (times < w.tmax - 1e-6))
            assert (inside[0], inside[-1] + 1) == (w['first'], w['last'])
    assert len(time_windows(times, tmin=0, tmax=.1)) == 21
    assert len(time_windows(times, .05, tmin=0)) == 6


def test_averages():
    epochs = epochs_of(eeg_info())
    averages = {name: epochs[name].average() for name in NAMES}
    mean = mean_repeats(epochs_responses(epochs, windows=.1))
    for given in (averages, list(averages.values())):
        found = evoked_responses(given, windows=.1)
        np.testing.assert_allclose(found.values[[found.ids.index(o) for o in mean.ids]], mean.values, rtol=1e-4, atol=1e-5)
    twice = evoked_responses([*averages.values()]*2)
    assert twice.values.shape == (12, 2, 960)
    unnamed = averages['object/03'].copy()
    unnamed.comment = None
    with pytest.raises(ValueError, match='give ids='): evoked_responses([unnamed])
    with pytest.raises(ValueError, match='need at least one'): evoked_responses([])
    with pytest.raises(ValueError, match="first: 'b'.*other channels or times"): evoked_responses({'a': unnamed, 'b': unnamed.copy().pick(['Fp1'])})


def test_a_file_is_read_in_blocks(tmp_path, monkeypatch):
    epochs = epochs_of(eeg_info()).drop([2, 30])
    epochs.save(tmp_path/'sub-1-epo.fif', verbose='error')
    whole = epochs_responses(epochs, 'image', windows=.1)
    monkeypatch.setattr(meeg, '_BLOCK', 16*60*7)
    parts = read_epochs_responses(tmp_path/'sub-1-epo.fif', 'image', windows=.1)
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-4, atol=1e-5)
    assert parts.ids == whole.ids
    np.testing.assert_allclose(read_epochs_responses(tmp_path/'sub-1-epo.fif', ABOUT.image, windows=.1).values, parts.values)


def test_reading_needs_little_memory(tmp_path, monkeypatch):
    info = mne.create_info(64, 200., 'eeg')
    events = np.c_[np.arange(300)*100, np.zeros(300, int), np.ones(300, int)]
    mne.EpochsArray(np.random.default_rng(0).normal(size=(300, 64, 200)).astype(np.float32), info, events, verbose='error').save(tmp_path/'big-epo.fif', verbose='error')
    monkeypatch.setattr(meeg, '_BLOCK', 2**17)
    tracemalloc.start()
    found = read_epochs_responses(tmp_path/'big-epo.fif', [f'{i}' for i in range(300)], picks=['0', '1'], windows=[(.1, .2)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.values.shape == (300, 2) and peak < 300*64*200*4/3, f'{peak/1e6:.0f} MB at the peak, the recording has {300*64*200*4/1e6:.0f} MB'


@pytest.mark.parametrize('make', [lambda b: b'', lambda b: b'hello'*900, lambda b: b[:100], lambda b: b[:4000], lambda b: b[:len(b)//2], lambda b: b[:-20_000]],
                         ids=['empty', 'text', 'head', 'channels', 'half', 'end'])
def test_damaged_files_are_named(make, tmp_path):
    epochs_of(eeg_info()).save(tmp_path/'whole-epo.fif', verbose='error')
    (tmp_path/'bad-epo.fif').write_bytes(make((tmp_path/'whole-epo.fif').read_bytes()))
    with pytest.raises(ValueError, match='bad-epo.fif.*cannot be read'): read_epochs_responses(tmp_path/'bad-epo.fif')


def test_a_recording_that_is_not_epochs(tmp_path):
    mne.io.RawArray(np.zeros((16, 300)), eeg_info(), verbose='error').save(tmp_path/'x_raw.fif', verbose='error')
    with pytest.raises(ValueError, match='x_raw.fif cannot be read as epochs'): read_epochs_responses(tmp_path/'x_raw.fif')
    with pytest.raises(FileNotFoundError, match='none-epo.fif is not there'): read_epochs_responses(tmp_path/'none-epo.fif')


def correlated(n_sensors=16, n_stimuli=400, seed=0):
    "Noise with a planted covariance, no signal."
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n_sensors, n_sensors))
    root = np.linalg.cholesky(a @ a.T/n_sensors + np.eye(n_sensors))
    return np.einsum('srkt,ck->srct', rng.normal(size=(n_stimuli, 3, n_sensors, 2)), root), root @ root.T


def as_responses(x, scale=1.):
    n, r, c, t = x.shape
    table = pd.DataFrame({'sensor': np.repeat([f'E{i}' for i in range(c)], t), 'time': np.tile(np.arange(t)/10, c)})
    return meeg.Responses(scale*x.reshape(n, r, -1), [f's{i}' for i in range(n)], features=table)


def test_a_planted_noise_covariance_is_divided_out():
    x, sigma = correlated()
    for scale in (1., 1e-13):
        w = noise_whitener(as_responses(x, scale))
        assert np.abs(scale**2*w.T @ sigma @ w - np.eye(16)).max() < .15 < np.abs(sigma - np.eye(16)).max()
    white = whiten_sensors(as_responses(x)).values.reshape(-1, 16, 2)
    assert np.abs(np.cov(white[..., 0].T) - np.eye(16)).max() < .15


def test_the_unit_of_a_sensor_does_not_matter():
    x, _ = correlated(n_stimuli=40)
    factor = np.logspace(-13, 3, 16)[:, None]
    np.testing.assert_allclose(whiten_sensors(as_responses(x*factor)).values, whiten_sensors(as_responses(x)).values, atol=1e-3)


def test_the_covariance_is_a_mean_over_time():
    x, _ = correlated()
    white = whiten_sensors(as_responses(x*np.array([1, 3]))).values.reshape(-1, 16, 2)
    assert white[..., 0].var() == pytest.approx(.2, rel=.1) and white[..., 1].var() == pytest.approx(1.8, rel=.1)


def test_signal_does_not_count_as_noise():
    x, _ = correlated()
    signal = 50*np.random.default_rng(1).normal(size=(400, 1, 16, 1))
    np.testing.assert_allclose(noise_whitener(as_responses(x + signal)), noise_whitener(as_responses(x)), atol=1e-4)


def test_only_training_stimuli_tell_what_noise_is():
    x, _ = correlated(n_stimuli=40)
    train = [f's{i}' for i in range(20)]
    y = x.copy()
    y[20:] *= 30
    np.testing.assert_array_equal(noise_whitener(as_responses(x), train), noise_whitener(as_responses(y), train))
    assert not np.allclose(noise_whitener(as_responses(x)), noise_whitener(as_responses(y)))
    with pytest.raises(ValueError, match='have no response'): noise_whitener(as_responses(x), ['s1', 'nobody'])


def test_missing_repeats_are_left_out_of_the_noise():
    x, _ = correlated(n_stimuli=40)
    y = x.copy()
    y[3, 2], y[5, 1:] = np.nan, np.nan
    w = noise_whitener(as_responses(y))
    assert np.isfinite(w).all()
    np.testing.assert_allclose(noise_whitener(as_responses(np.delete(y, 5, axis=0))), w)


def test_an_average_reference_takes_a_dimension_and_whitening_bears_it():
    epochs = epochs_of(eeg_info()).set_eeg_reference('average', verbose='error')
    white = whiten_sensors(epochs_responses(epochs, windows=.1))
    assert np.isfinite(white.values).all() and white.values.std() < 5


def test_whitening_refuses_what_is_no_grid():
    x, _ = correlated(n_stimuli=10)
    ragged = select_features(as_responses(x), np.arange(31))
    with pytest.raises(ValueError, match='31 features are not 16 sensors with the same windows'): whiten_sensors(ragged)
    x[:, :, 4] = 0
    with pytest.raises(ValueError, match=r'1 of 16 sensors have no noise \(first: number 4\)'): whiten_sensors(as_responses(x))
    with pytest.raises(ValueError, match='no feature table'): whiten_sensors(meeg.Responses(np.ones((3, 2, 2)), 'abc'))


def test_a_time_course_goes_window_by_window():
    resp = mean_repeats(epochs_responses(epochs_of(eeg_info()), windows=.05, step=.025))
    course = time_course(resp, lambda x: float(x.mean()))
    for _, row in course.iterrows():
        assert row.score == pytest.approx(float(select_features(resp, f'tmin == {row.tmin}').values.mean()), abs=1e-6)
    assert course.time.is_monotonic_increasing
    with pytest.raises(ValueError, match='no feature table'): time_course(meeg.Responses(np.ones((3, 2)), 'abc'), np.mean)


def test_gradiometers_are_drawn_by_their_root_mean_square():
    import matplotlib
    matplotlib.use('agg')
    resp = epochs_responses(epochs_of(meg_info(), 1e-13), windows=[(0, .1)])
    grads, mags = (select_features(resp, f'type == "{o}"') for o in ('grad', 'mag'))
    power = np.arange(1., 9.)
    a = sensor_map(np.repeat(power, 2)*np.tile([1, -1], 8), grads).images[0].get_array()
    b = sensor_map(power, mags).images[0].get_array()
    np.testing.assert_allclose(a, b)
    for bad, match in ((lambda: sensor_map(np.zeros(26), resp), "one kind of sensor, got .'eeg', 'grad', 'mag'"), (lambda: sensor_map(np.zeros(3), mags), 'one value for each of 8 features'),
                       (lambda: sensor_map(np.zeros(2), select_features(resp, 'type == "eeg"')), 'without a position'), (lambda: sensor_map(power, mags, time=.3), 'is in 0 windows')):
        with pytest.raises(ValueError, match=match): bad()


def test_sessions_join_and_recordings_are_kept(tmp_path):
    days = [epochs_responses(epochs_of(eeg_info(), seed=i), windows=.1, subject='simulated') for i in range(2)]
    both = join_repeats(days)
    assert both.values.shape == (12, 10, 48)
    back = load_responses(write_responses(both, tmp_path/'eeg.npz'))
    pd.testing.assert_frame_equal(back.features.astype(both.features.dtypes), both.features)
    np.testing.assert_array_equal(back.values, both.values)
