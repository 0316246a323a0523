"NSD's files: what is where, counted from what, and every fault by the name of its file. All files are simulated."
import gzip
import os
import shutil
import subprocess
import sys
import warnings

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from conftest import ROOT
from protoalign import nsd
from protoalign.data import mean_repeats
from protoalign.datasets import load
from protoalign.nsd_simulated import make_nsd_files
from protoalign.nsd import BETAS, IMAGES, SPACE, STIM_INFO, nsd_images, nsd_mask, nsd_responses, nsd_stimuli, nsd_trials
from protoalign.quality import noise_ceilings, zscore_sessions

h5py = pytest.importorskip('h5py')
SHAPE, N = (9, 10, 8), 30
FOLDER, TSV = f'nsddata_betas/ppdata/subj01/{SPACE}/{BETAS}', 'nsddata/ppdata/subj01/behav/responses.tsv'


def code(trial): return (trial[:, None, None, None]*720 + np.arange(720).reshape(SHAPE) - 2**15).astype(np.int16)
def decode(r): return np.divmod(np.rint(np.nan_to_num(r.values.astype(float)*300)).astype(int) + 2**15, 720)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "Three sessions in which each voxel of each trial holds a number of its own, from the lowest 16-bit integer on."
    root = tmp_path_factory.mktemp('nsd')
    make_nsd_files(root, kinds=('hdf5', 'nii.gz'), values=code, n_images=400)
    return root


@pytest.fixture
def tree(whole, tmp_path):
    "A copy that a test may spoil, HDF5 only."
    shutil.copytree(whole, tmp_path/'nsd', ignore=shutil.ignore_patterns('betas*.nii.gz'))
    return tmp_path/'nsd'


def gz_only(root):
    for p in root.rglob('betas*.hdf5'): p.unlink()


def shown(root):
    "Trial numbers of each image, by plain pandas from responses.tsv, its ids counted from 1."
    tsv = pd.read_csv(root/TSV, sep='\t')
    return {f'nsd-{k - 1:05d}': list(t.index) for k, t in tsv.groupby('73KID')}


def test_every_response_is_where_it_belongs(whole):
    r = nsd_responses(whole, 'subj01', 'nsdgeneral')
    number, voxel = decode(r)
    known, mask = shown(whole), nib.load(whole/f'nsddata/ppdata/subj01/{SPACE}/roi/nsdgeneral.nii.gz').get_fdata() == 1
    assert list(r.ids) == sorted(known) and number[..., 0].tolist() == [known[o] for o in r.ids]
    assert (number == number[..., :1]).all() and (voxel == np.flatnonzero(mask)).all()
    assert (r.features[['i', 'j', 'k']].to_numpy() == np.argwhere(mask)).all() and np.allclose(r.features[['x', 'y', 'z']], 1.8*np.argwhere(mask))
    assert (r.sessions == number[..., 0]//N + 1).all() and r.values.dtype == np.float32
    assert r.units == 'percent signal change' and r.subject == 'subj01'


def test_hdf5_is_trials_z_y_x(whole):
    "The file itself, by h5py alone: transposed against the NIfTI file, with one chunk for each voxel."
    with h5py.File(whole/FOLDER/'betas_session02.hdf5') as f:
        x = f['betas'][()]
        assert f['betas'].chunks == (N, 1, 1, 1)
    y = np.asanyarray(nib.load(whole/FOLDER/'betas_session02.nii.gz').dataobj)
    assert x.shape == (N, *SHAPE[::-1]) and y.shape == (*SHAPE, N) and (x == y.T).all() and y.dtype == np.int16


def test_both_kinds_give_the_same(whole, tmp_path):
    shutil.copytree(whole, tmp_path/'nsd')
    gz_only(tmp_path/'nsd')
    a, b = (nsd_responses(o, 1, 'streams', ['early', 'ventral']) for o in (whole, tmp_path/'nsd'))
    np.testing.assert_array_equal(a.values, b.values)
    assert a.ids == b.ids and (a.sessions == b.sessions).all() and a.features.equals(b.features)


@pytest.mark.parametrize('chunks', [(1, 8, 10, 9), (7, 3, 4, 2), (30, 8, 10, 9), (1, 1, 10, 9), None])
def test_any_chunks(tree, whole, chunks):
    for p in (tree/FOLDER).glob('*.hdf5'):
        with h5py.File(p) as f: x = f['betas'][()]
        with h5py.File(p, 'w') as f: f.create_dataset('betas', data=x, chunks=chunks, compression='gzip' if chunks else None)
    ids = list(shown(whole))[3:9]
    np.testing.assert_array_equal(nsd_responses(tree, 1, ids=ids).values, nsd_responses(whole, 1, ids=ids).values)


def test_each_chunk_is_read_once(tree, monkeypatch):
    asked, get = [], h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, '__getitem__', lambda self, key: asked.append(key) or get(self, key))
    nsd_responses(tree, 1, 'prf-visualrois', 'V1v', sessions=[1])
    mask = np.asanyarray(nsd_mask(tree, 1, 'prf-visualrois', 'V1v').dataobj)
    assert len(asked) == len(np.unique(np.argwhere(mask)[:, 1:], axis=0)) and all(key[0] == slice(0, N) for key in asked)


def test_gzip_is_streamed_once(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path/'nsd')
    gz_only(tmp_path/'nsd')
    opened, sizes, plain = [], [], gzip.GzipFile.read
    monkeypatch.setattr(nsd.gzip, 'open', lambda p, f=gzip.open: opened.append(p.name) or f(p))
    monkeypatch.setattr(gzip.GzipFile, 'read', lambda self, n=-1: sizes.append(n) or plain(self, n))
    monkeypatch.setattr(gzip.GzipFile, 'seek', lambda *a: pytest.fail('the stream was wound back'))
    nsd._nifti_betas(tmp_path/'nsd'/FOLDER/'betas_session01.nii.gz', np.argwhere(np.ones(SHAPE)), np.array([20, 3]))
    assert opened == ['betas_session01.nii.gz'] and max(sizes) <= 1440 and sizes.count(1440) == 21


def test_missing_session_in_the_middle(tree):
    (tree/FOLDER/'betas_session02.hdf5').unlink()
    with pytest.warns(UserWarning, match=r'1 of 3 sessions are not in .* left out: \[2\]'): r = nsd_responses(tree, 1)
    known, number = shown(tree), decode(r)[0]
    for row, name in enumerate(r.ids):
        for k, t in enumerate(known[name]):
            if t//N == 1: assert np.isnan(r.values[row, k]).all() and r.sessions[row, k] == 0
            else: assert (number[row, k] == t).all() and r.sessions[row, k] == t//N + 1
    assert set(r.ids) == {o for o, ts in known.items() if any(t//N != 1 for t in ts)}
    with pytest.raises(FileNotFoundError, match='betas_session02.hdf5 is not there, nor betas_session02.nii.gz.*s3://natural-scenes-dataset/nsddata_betas'): nsd_responses(tree, 1, sessions=[1, 2])
    for p in (tree/FOLDER).glob('betas*'): p.unlink()
    with pytest.raises(FileNotFoundError, match='betas_session01.hdf5 is not there'): nsd_trials(tree, 1)
    assert len(nsd_trials(tree, 1, betas=None)) == 3*N


def test_subset_of_ids_opens_only_its_sessions(tree, monkeypatch):
    known = shown(tree)
    name = next(o for o, ts in known.items() if {t//N for t in ts} <= {0, 2})
    (tree/FOLDER/'betas_session02.hdf5').write_bytes(b'not to be opened')
    order = [name, next(o for o, ts in known.items() if o != name and {t//N for t in ts} <= {0, 2})]
    read, plain = [], nsd._hdf5_betas
    monkeypatch.setattr(nsd, '_hdf5_betas', lambda path, index, trials: read.append((path.name, len(trials))) or plain(path, index, trials))
    r = nsd_responses(tree, 1, ids=order)
    assert r.ids == tuple(order) and decode(r)[0][..., 0].tolist() == [known[o] for o in order]
    assert {o for o, _ in read} <= {'betas_session01.hdf5', 'betas_session03.hdf5'} and sum(n for _, n in read) == 6
    assert nsd_responses(tree, 1, ids=order[::-1]).ids == tuple(order[::-1])


@pytest.mark.parametrize('ids, match', [(['nsd-00399x'], 'are no NSD stimuli'), ([1, 1], 'more than once'), ([399, 0, 1, 2, 3], 'were not shown'), ([], 'were not shown'), (['12'], 'look like nsd-00013')])
def test_wrong_ids(whole, ids, match):
    with pytest.raises(ValueError, match=match): nsd_responses(whole, 1, ids=ids)


def test_shuffled_rows_of_responses_tsv(tree, whole):
    pd.read_csv(tree/TSV, sep='\t').sample(frac=1, random_state=0).to_csv(tree/TSV, sep='\t', index=False)
    assert nsd_trials(tree, 1).equals(nsd_trials(whole, 1))


@pytest.mark.parametrize('spoil, match', [
    (lambda t: pd.concat([t, t.iloc[[4]]]), r'responses.tsv: 1 trials occur more than once, the first: session, run, trial \[1, 2, 2\]'),
    (lambda t: t.assign(**{'73KID': t['73KID'] - 1}), 'does not list that trial|lie outside 1 to 400'),
    (lambda t: t.assign(**{'73KID': t['73KID'] + 1}), 'does not list that trial|lie outside 1 to 400'),
    (lambda t: t.assign(**{'73KID': 0}), 'lie outside 1 to 400, the first: 0'),
    (lambda t: t.drop(columns='73KID'), r"responses.tsv lacks the columns \['73KID'\]"),
    (lambda t: t.iloc[::2], 'does not list that trial'),
])
def test_faults_of_the_trial_table(tree, spoil, match):
    spoil(pd.read_csv(tree/TSV, sep='\t')).to_csv(tree/TSV, sep='\t', index=False)
    with pytest.raises(ValueError, match=match): nsd_trials(tree, 1)


def test_ids_count_from_zero(whole):
    trials, tsv, info = nsd_trials(whole, 1), pd.read_csv(whole/TSV, sep='\t'), pd.read_csv(whole/STIM_INFO)
    assert (trials.nsd_id == tsv['73KID'] - 1).all() and (trials.coco_id == info.cocoId[trials.nsd_id].to_numpy()).all()
    for k in range(3):
        at = trials[trials.repeat == k]
        assert (info[f'subject1_rep{k}'][at.nsd_id].to_numpy() == (at.session - 1)*N + at.trial + 1).all()
    table = nsd_stimuli(whole)
    assert table.id[13] == 'nsd-00013' and table.nsd_id.tolist() == list(range(400)) and table.coco_id.is_unique and table.shared1000.sum() == 6


def test_two_subjects_share_ids(tree):
    make_nsd_files(tree, 2, n_images=400)
    a, b = nsd_trials(tree, 'subj01'), nsd_trials(tree, '2')
    assert set(a.id) & set(b.id) == set(a.id[a.shared1000]) == set(b.id[b.shared1000])


@pytest.mark.parametrize('label, values', [('V1d', [2]), (7, [7]), (['V1v', 'V1d'], [1, 2]), ([1, 'hV4'], [1, 7]), (None, range(1, 8))])
def test_labels(whole, label, values):
    atlas = np.asanyarray(nib.load(whole/f'nsddata/ppdata/subj01/{SPACE}/roi/prf-visualrois.nii.gz').dataobj)
    assert (np.asanyarray(nsd_mask(whole, 1, 'prf-visualrois', label).dataobj) == np.isin(atlas, list(values))).all() and (atlas == -1).any()


def test_hemispheres(whole):
    both, left, right = (np.asanyarray(nsd_mask(whole, 1, f'{o}nsdgeneral').dataobj) for o in ('', 'lh.', 'rh.'))
    assert (both == left + right).all() and left.any() and right.any()
    assert nsd_responses(whole, 1, 'lh.prf-visualrois', 'V1v').features.label.tolist() == ['V1v']*int(np.asanyarray(nsd_mask(whole, 1, 'lh.prf-visualrois', 'V1v').dataobj).sum())


@pytest.mark.parametrize('roi, label, error, match', [
    ('floc-faces', 'FFA', ValueError, "floc-faces of subj01 has no label 'FFA'; its labels: Unknown, OFA, FFA-1"),
    ('floc-faces', 9, ValueError, r'has the label 9; labels with voxels: \[1, 2, 3, 4, 5\]'),
    ('V1', None, FileNotFoundError, 'V1.nii.gz is not there; sets of regions that are: floc-faces'),
])
def test_wrong_regions(whole, roi, label, error, match):
    with pytest.raises(error, match=match): nsd_mask(whole, 1, roi, label)


@pytest.mark.parametrize('sessions', [[], [4], [0], np.array([1, 9])])
def test_unknown_sessions(whole, sessions):
    with pytest.raises(ValueError, match='responses.tsv has no sessions .* it has 1 to 3'): nsd_trials(whole, 1, sessions)


def test_subject_names():
    assert nsd.subject_name(1) == nsd.subject_name('1') == nsd.subject_name('subj01') == 'subj01'
    for wrong in ('sub-01', 9, 0, 'subj1'):
        with pytest.raises(ValueError, match='known: subj01'): nsd.subject_name(wrong)


def cut(path, share): path.write_bytes(path.read_bytes()[:int(path.stat().st_size*share)])


@pytest.mark.parametrize('share', [0, .01, .5, .9])
def test_truncated_hdf5(tree, share):
    cut(tree/FOLDER/'betas_session02.hdf5', share)
    with pytest.raises(ValueError, match=r'betas_session02\.hdf5 cannot be read \(\d+ bytes\)'): nsd_responses(tree, 1)


@pytest.mark.parametrize('share', [0, .01, .5, .99, .9999])
def test_truncated_gzip(whole, tmp_path, share):
    shutil.copytree(whole, tmp_path/'nsd')
    gz_only(tmp_path/'nsd')
    cut(tmp_path/'nsd'/FOLDER/'betas_session02.nii.gz', share)
    with pytest.raises(ValueError, match=r'betas_session02\.nii\.gz cannot be read \(\d+ bytes\)'): nsd_responses(tmp_path/'nsd', 1)


def test_gzip_with_a_wrong_byte_and_a_whole_gzip_that_is_short(whole, tmp_path):
    shutil.copytree(whole, tmp_path/'nsd')
    gz_only(tmp_path/'nsd')
    path = tmp_path/'nsd'/FOLDER/'betas_session02.nii.gz'
    plain, packed = gzip.decompress(path.read_bytes()), bytearray(path.read_bytes())
    packed[-8] ^= 1
    for content in (bytes(packed), gzip.compress(plain[:-100]), gzip.compress(plain + b'more')):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'betas_session02\.nii\.gz cannot be read'): nsd_responses(tmp_path/'nsd', 1)


@pytest.mark.parametrize('x, match', [
    (np.zeros((*SHAPE, N), np.int16), r'shape \(30, 8, 10, 9\).*the mask has shape \(9, 10, 8\), and responses.tsv 30 trials'),
    (np.zeros((N, *SHAPE), np.int16), r'shape \(8, 10, 9, 30\)'),
    (np.zeros((N - 1, *SHAPE[::-1]), np.int16), r'shape \(9, 10, 8, 29\)'),
    (np.zeros((N, *SHAPE[::-1]), np.float32), 'float32; NSD has 16-bit integers'),
    (np.zeros((N, *SHAPE[::-1]), np.uint16), 'uint16; NSD has 16-bit integers'),
])
def test_wrong_shape_or_type(tree, x, match):
    with h5py.File(tree/FOLDER/'betas_session03.hdf5', 'w') as f: f.create_dataset('betas', data=x)
    with pytest.raises(ValueError, match=f'betas_session03.hdf5 holds.*{match}'): nsd_responses(tree, 1)


def test_wrong_variable_and_scaled_header(tree):
    with h5py.File(tree/FOLDER/'betas_session03.hdf5', 'w') as f: f['other'] = [1]
    with pytest.raises(ValueError, match='betas_session03.hdf5 cannot be read'): nsd_responses(tree, 1)
    (tree/FOLDER/'betas_session03.hdf5').unlink()
    image = nib.Nifti1Image(np.zeros((*SHAPE, N), np.int16), np.eye(4))
    image.header.set_slope_inter(2, 0)
    nib.save(image, tree/FOLDER/'betas_session03.nii.gz')
    with pytest.raises(ValueError, match='scaled by its header'): nsd_responses(tree, 1)


def test_extreme_integers(tree, whole):
    extremes = np.array([-2**15, 2**15 - 1, -1, 0, 1], np.int16)
    x = np.resize(extremes, (N, *SHAPE[::-1]))
    with h5py.File(tree/FOLDER/'betas_session01.hdf5', 'w') as f: f['betas'] = x
    nib.save(nib.Nifti1Image(x.T, np.eye(4)), tree/FOLDER/'betas_session01.nii.gz')
    a = nsd_responses(tree, 1, sessions=[1])
    (tree/FOLDER/'betas_session01.hdf5').unlink()
    b = nsd_responses(tree, 1, sessions=[1])
    np.testing.assert_array_equal(a.values, b.values)
    assert set(np.unique(a.values[~np.isnan(a.values)])) == set((extremes.astype(float)/300).astype(np.float32))


def test_average_and_zscore_on_the_way(tmp_path):
    make_nsd_files(tmp_path, 1, n_images=400)
    r = nsd_responses(tmp_path, 1)
    train = r.ids[::2]
    np.testing.assert_allclose(nsd_responses(tmp_path, 1, average=True).values, mean_repeats(r).values, atol=1e-5)
    np.testing.assert_allclose(nsd_responses(tmp_path, 1, zscore_train=train).values, zscore_sessions(r, train).values, atol=1e-5)
    np.testing.assert_allclose(nsd_responses(tmp_path, 1, average=True, zscore_train=train).values, mean_repeats(zscore_sessions(r, train)).values, atol=1e-5)


def test_zscore_by_stimuli_that_are_not_wanted(tmp_path):
    make_nsd_files(tmp_path, 1, n_images=400)
    r = nsd_responses(tmp_path, 1)
    train, few = r.ids[::2], r.ids[1:8:2]
    whole = nsd_responses(tmp_path, 1, zscore_train=train)
    np.testing.assert_array_equal(nsd_responses(tmp_path, 1, ids=few, zscore_train=train).values, whole.values[1:8:2])
    with pytest.raises(ValueError, match=r'session \d has [01] responses to training stimuli'): nsd_responses(tmp_path, 1, ids=few, zscore_train=few[:1])


def test_test_stimuli_do_not_touch_the_statistics(tmp_path):
    make_nsd_files(tmp_path, 1, n_images=400)
    before = nsd_responses(tmp_path, 1, sessions=[1])
    train, test = before.ids[::2], set(before.ids[1::2])
    a = nsd_responses(tmp_path, 1, sessions=[1], zscore_train=train)
    trials = nsd_trials(tmp_path, 1)
    with h5py.File(tmp_path/FOLDER/'betas_session01.hdf5', 'a') as f:
        for t in trials[(trials.session == 1) & trials.id.isin(test)].trial: f['betas'][t] = 30_000
    b = nsd_responses(tmp_path, 1, sessions=[1], zscore_train=train)
    np.testing.assert_array_equal(a.values[::2], b.values[::2])
    assert not np.allclose(a.values[1::2], b.values[1::2], equal_nan=True)


def test_voxels_that_lack_a_session(tmp_path):
    make_nsd_files(tmp_path/'nsd', 1, n_images=400)
    mask = np.argwhere(np.asanyarray(nsd_mask(tmp_path/'nsd', 1).dataobj))
    with h5py.File(tmp_path/'nsd'/FOLDER/'betas_session02.hdf5', 'a') as f: f['betas'][:, mask[5, 2], mask[5, 1], mask[5, 0]] = 0
    r = nsd_responses(tmp_path/'nsd', 1, average=True, zscore_train=[o for o in shown(tmp_path/'nsd')])
    assert r.features.empty_sessions.tolist() == [int(i == 5) for i in range(len(mask))] and np.isfinite(r.values).all()
    with pytest.warns(UserWarning, match='1 voxels have no data in some session'): d = load('nsd', data_dir=tmp_path, size=8)
    assert d.responses['subj01-nsdgeneral'].n_features == len(mask) - 1


def test_planted_signal_comes_back(tmp_path):
    planted = make_nsd_files(tmp_path, 1, n_sessions=4, n_trials=150, n_images=400, seed=3)
    r = nsd_responses(tmp_path, 1, 'streams')
    truth = planted[tuple(r.features[['i', 'j', 'k']].to_numpy().T)]
    found = noise_ceilings(zscore_sessions(r)).ncsnr
    assert np.abs(found.groupby(truth).median() - np.unique(truth)).max() < .12 and np.corrcoef(found, truth)[0, 1] > .75
    np.testing.assert_allclose(nib.load(tmp_path/FOLDER/'ncsnr.nii.gz').get_fdata(), planted, atol=1e-6)


def test_images_in_any_order(whole):
    numbers = nsd_trials(whole, 1).nsd_id.unique()[[7, 2, 5]]
    with h5py.File(whole/IMAGES) as f: plain = np.stack([f['imgBrick'][int(n)] for n in numbers])
    assert plain.shape == (3, 425, 425, 3) and plain.any((1, 2, 3)).all()
    np.testing.assert_array_equal(nsd_images(whole, numbers), plain)
    np.testing.assert_array_equal(nsd_images(whole, [f'nsd-{n:05d}' for n in numbers]), plain)
    assert np.abs(nsd_images(whole, numbers, size=17) - plain.reshape(3, 17, 25, 17, 25, 3).mean((2, 4))).max() <= 1


@pytest.mark.parametrize('ids, size, match', [([1, 2, 1], None, 'more than once'), ([400], None, 'holds 400 pictures, counted from 0'), ([-1], None, 'lie beyond'), ([1], 426, 'not to 426'), ([1], 0, 'not to 0')])
def test_wrong_images(whole, ids, size, match):
    with pytest.raises(ValueError, match=match): nsd_images(whole, ids, size)


def test_damaged_images(tree):
    (tree/IMAGES).write_bytes(b'no pictures')
    with pytest.raises(ValueError, match='nsd_stimuli.hdf5 cannot be read'): nsd_images(tree, [1])
    (tree/IMAGES).unlink()
    with pytest.raises(FileNotFoundError, match='nsd_stimuli.hdf5 is not there.*data access agreement.*s3://natural-scenes-dataset/nsddata_stimuli'): nsd_images(tree, [1])


def test_loader(tmp_path, monkeypatch):
    monkeypatch.delenv('PROTOALIGN_DATA', raising=False)
    with pytest.raises(FileNotFoundError, match='lacks nsddata.*naturalscenesdataset.org'): load('nsd')
    with pytest.raises(FileNotFoundError, match='lacks .*nsd_stim_info_merged.csv'): load('nsd', data_dir=tmp_path)
    make_nsd_files(tmp_path/'nsd', 1, n_images=400)
    make_nsd_files(tmp_path/'nsd', 2, n_images=400)
    a, b = (load('nsd', data_dir=tmp_path, subject=s, size=16, images='shared') for s in (1, 'subj02'))
    assert a.ids == b.ids and (a.stimuli == b.stimuli).all() and a.groups == list(a.ids) and a.stimuli.shape == (6, 16, 16, 3)
    whole, own = (load('nsd', data_dir=tmp_path, size=16, images=o, average=False, zscore=False) for o in ('all', 'own'))
    assert set(whole.ids) == set(own.ids) | set(a.ids) and whole.responses['subj01-nsdgeneral'].values.shape[:2] == (30, 3)
    with pytest.raises(ValueError, match="'all', 'shared'"): load('nsd', data_dir=tmp_path, images='test')


def test_missing_sessions_are_said_once(tree):
    (tree/FOLDER/'betas_session02.hdf5').unlink()
    tree.rename(tree.with_name('data'))
    (tree.parent/'held').mkdir()
    tree.with_name('data').rename(tree.parent/'held'/'nsd')
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        load('nsd', data_dir=tree.parent/'held', size=8)
    assert sum('left out: [2]' in str(w.message) for w in said) == 1


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='reads the peak memory from /proc, which Linux has')
def test_memory_stays_within_one_block(tmp_path):
    "Two sessions of 115 MB each: beyond the result, the process grows by far less than one of them."
    make_nsd_files(tmp_path, 1, n_sessions=2, n_trials=300, shape=(60, 60, 56), n_images=400, values=lambda t: np.ones((300, 60, 60, 56), np.int16))
    run = f'''
from protoalign.nsd import nsd_mask, nsd_responses, nsd_trials
def peak(): return next(int(line.split()[1])/1024 for line in open('/proc/self/status') if line.startswith('VmHWM'))
import h5py
nsd_mask({str(tmp_path)!r}, 1), nsd_trials({str(tmp_path)!r}, 1)
before = peak()
r = nsd_responses({str(tmp_path)!r}, 1, 'lh.floc-faces', 'OFA')
print(peak() - before, r.values.nbytes/2**20)'''
    done = subprocess.run([sys.executable, '-c', run], capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(ROOT)), check=True)
    grown, result = map(float, done.stdout.split())
    assert result > 10 and grown < result + 80, (grown, result)


def test_benchmark_table():
    table = pd.read_csv(ROOT/'nbs'/'results'/'nsd_memory.csv')
    assert {'kind', 'voxels', 'trials', 'seconds', 'peak_mb', 'mb_per_s'} <= set(table) and (table.trials >= 10_000).all() and (table.voxels == 15_000).all()
    assert len(table[table.trials == 10_500]) >= 3 and (table.peak_mb[table.trials == 10_500] < 2000).all()
