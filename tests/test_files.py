"Files of a user: every kind comes in, every fault is said by name, nothing is unpickled."
import pickle
import numpy as np
import pandas as pd
import pytest

from protoalign.data import Responses
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
