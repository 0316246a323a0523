"Files of a user: every kind comes in, every fault is said by name, nothing is unpickled."
import pickle

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from protoalign.data import Responses
from protoalign.fmri import image_responses
from protoalign.files import load_responses, read_array, read_responses, write_responses

KNOWN = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
IDS = [f's{i}' for i in range(20)]


@pytest.mark.parametrize('fault, match', [
    (lambda p: np.save(p, KNOWN) or p.write_bytes(p.read_bytes()[:100]), r'x\.npy cannot be read \(100 bytes\)'),
    (lambda p: p.write_bytes(b''), r'x\.npy cannot be read \(0 bytes\)'),
    (lambda p: p.write_bytes(pickle.dumps(KNOWN)), r'x\.npy cannot be read'),
    (lambda p: np.save(p, np.array([KNOWN, 'a'], dtype=object), allow_pickle=True), 'it holds Python objects'),
    (lambda p: np.save(p, KNOWN.astype(complex)), 'complex128 with shape .20, 5. is no recording'),
    (lambda p: np.save(p, KNOWN[:, 0]), r'shape \(20,\) is no recording'),
    (lambda p: np.save(p, KNOWN[:-1]), r'has 19 rows \(shape \(19, 5\)\) and needs one stimulus id for each in ids=, got 20'),
    (lambda p: np.save(p, np.where(KNOWN == KNOWN[3, 2], np.inf, KNOWN)), '1 of 100 values are infinite'),
    (lambda p: np.save(p, np.where(KNOWN == KNOWN[3, 2], np.nan, KNOWN)), '1 of 100 values are missing'),
])
def test_faults_of_arrays(fault, match, tmp_path):
    fault(tmp_path/'x.npy')
    with pytest.raises(ValueError, match=match): read_responses(tmp_path/'x.npy', IDS)


def _write(path):
    "The known matrix in a file of the kind that the name says."
    kind = path.name.split('.', 1)[1]
    if kind == 'npy': np.save(path, KNOWN)
    elif kind == 'npz': np.savez(path, x=KNOWN)
    elif kind == 'mat': savemat(path, {'x': KNOWN})
    elif kind == 'h5':
        with pytest.importorskip('h5py').File(path, 'w') as f: f['x'] = KNOWN
    elif kind == 'csv': pd.DataFrame(KNOWN, index=IDS).to_csv(path)
    elif kind == 'nc':
        xr = pytest.importorskip('xarray')
        xr.DataArray(KNOWN, dims=('presentation', 'neuroid'), coords={'stimulus_id': ('presentation', IDS)}, name='x').to_netcdf(path, engine='h5netcdf')
    elif kind.startswith('nii'): nib.save(nib.Nifti1Image(np.tile(KNOWN.T[:, :, None, None], (1, 1, 2, 20)), np.eye(4)), path)


def _read(path):
    if '.nii' in path.name: return image_responses(path, nib.Nifti1Image(np.ones((5, 20, 2), np.int8), np.eye(4)), IDS)
    return read_responses(path, None if path.suffix in ('.csv', '.nc') else IDS)


@pytest.mark.parametrize('kind', ['npy', 'npz', 'mat', 'h5', 'nc', 'nii', 'nii.gz'])
@pytest.mark.parametrize('share', [0., .3, .95])
def test_truncated(kind, share, tmp_path):
    "The first part of a file of any kind is refused by name; the whole one is read."
    whole = tmp_path/f'whole.{kind}'
    _write(whole)
    assert len(_read(whole)) == 20
    cut = tmp_path/f'cut.{kind}'
    cut.write_bytes(whole.read_bytes()[:int(share*whole.stat().st_size)])
    with pytest.raises(ValueError, match=rf'cut\.{kind}'): _read(cut)


@pytest.mark.parametrize('text, match', [
    ('id,a,b\ns1,1,2\ns2,three,4\n', r"x\.csv: columns \['a'\] hold no numbers \(2 rows, 3 columns\)"),
    ('id,a,b\ns1,1,2\ns2,,4\n', r'x\.csv: 1 of 4 values are missing \(shape \(2, 2\)\)'),
    ('id,a,b\ns1,1,2\n,3,4\n', r'x\.csv: 1 rows have no stimulus id'),
    ('id,a,b\ns1,1,inf\ns2,3,4\n', r'x\.csv: 1 of 4 values are infinite'),
    ('id\ns1\n', r'x\.csv: columns \[\] hold no numbers'),
    ('', r'x\.csv cannot be read \(0 bytes\)'),
], ids=['mixed types', 'missing', 'no id', 'infinite', 'no features', 'empty'])
def test_faults_of_tables(text, match, tmp_path):
    (tmp_path/'x.csv').write_text(text)
    with pytest.raises(ValueError, match=match): read_responses(tmp_path/'x.csv')


def test_ids_that_recur_are_repeats_in_a_table(tmp_path):
    (tmp_path/'x.csv').write_text('id,a\nb,1\na,2\nb,3\n')
    read = read_responses(tmp_path/'x.csv')
    assert read.ids == ('b', 'a') and read.values.shape == (2, 2, 1) and read.values[0, :, 0].tolist() == [1, 3] and np.isnan(read.values[1, 1, 0])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='x.npy is not there'): read_array(tmp_path/'x.npy')


def test_unsorted_ids_keep_their_rows(tmp_path):
    order = np.random.default_rng(1).permutation(20)
    np.save(tmp_path/'x.npy', KNOWN[order])
    read = read_responses(tmp_path/'x.npy', [IDS[i] for i in order])
    assert all((read.values[read.ids.index(o)] == KNOWN[i]).all() for i, o in enumerate(IDS))


def test_a_memory_map_stays_one(tmp_path):
    np.save(tmp_path/'x.npy', KNOWN)
    assert isinstance(read_responses(tmp_path/'x.npy', IDS).values.base, np.memmap)


@pytest.mark.parametrize('sessions', [None, np.tile(['mon', 'tue'], (20, 1))])
def test_round_trip(sessions, tmp_path):
    values = np.stack([KNOWN, np.where(KNOWN > 2, np.nan, KNOWN)], axis=1)
    whole = Responses(values, IDS, 'monkey', 'IT', 'spikes', 'Hz', True, pd.DataFrame({'x': np.arange(5.), 'name': list('abcde')}), sessions)
    back = load_responses(write_responses(whole, tmp_path/'r.npz'))
    np.testing.assert_array_equal(back.values, whole.values)
    assert (back.ids, back.subject, back.region, back.recorder, back.units, back.rotated) == (whole.ids, 'monkey', 'IT', 'spikes', 'Hz', True)
    assert back.features.x.tolist() == [0, 1, 2, 3, 4] and back.features.name.tolist() == list('abcde')
    assert (sessions is None and back.sessions is None) or (back.sessions == sessions).all()


@pytest.mark.parametrize('text, ids', [
    ('stimulus;a;b\n0010;1;2\n0011;3;4\n', ('0010', '0011')),
    ('﻿stimulus,a,b\n"x, y",1,2\nz,3,4\n', ('x, y', 'z')),
    ('day,stimulus,a\nmon,0010,1\ntue,0011,2\n', ('0010', '0011')),
], ids=['semicolons', 'byte order mark and quotes', 'session first'])
def test_plausible_tables(text, ids, tmp_path):
    (tmp_path/'x.csv').write_text(text)
    assert read_responses(tmp_path/'x.csv', session='day' if 'day' in text else None).ids == ids


@pytest.mark.parametrize('text, match', [('a,b\nimg1,1,2\nimg2,3,4\n', 'header has 2 columns, the first row 3'), ('img1,1,2\nimg2,3,4\n', 'has no header')], ids=['as R writes it', 'no header'])
def test_tables_that_would_be_misread(text, match, tmp_path):
    (tmp_path/'x.csv').write_text(text)
    with pytest.raises(ValueError, match=match): read_responses(tmp_path/'x.csv')


def test_a_table_with_sessions_is_saved_and_read_back(tmp_path):
    (tmp_path/'x.csv').write_text('stimulus,day,a\ns1,mon,1\ns2,mon,2\ns1,tue,3\n')
    held = read_responses(tmp_path/'x.csv', session='day')
    back = load_responses(write_responses(held, tmp_path/'x.npz'))
    assert (back.sessions == held.sessions).all() and back.ids == held.ids
    with pytest.raises(ValueError, match='saved as .npz'): write_responses(held, tmp_path/'x.dat')


def test_wrapped_ids_are_unwrapped():
    wrapped = [b'a', np.array(['b']), np.array([[np.array(['c'])]], dtype=object), 4]
    assert Responses(KNOWN[:4], wrapped).ids == ('a', 'b', 'c', '4')
    for wrong in (None, float('nan'), ['a', 'b']):
        with pytest.raises(ValueError, match='a stimulus id is'): Responses(KNOWN[:2], ['a', wrong])


def test_shapes_are_told_without_reading(tmp_path, monkeypatch):
    h5py = pytest.importorskip('h5py')
    with h5py.File(tmp_path/'x.h5', 'w') as f: f['a'], f['b'] = KNOWN, KNOWN.T
    monkeypatch.setattr(h5py.Dataset, '__getitem__', lambda *args: pytest.fail('an array was read'))
    with pytest.raises(ValueError, match=r'a \(20, 5\), b \(5, 20\)'): read_array(tmp_path/'x.h5')
