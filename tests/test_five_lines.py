"From files of every kind to a leak-free, quality-checked pair of matrices in the same five lines."
import numpy as np
import pandas as pd
import pytest

from protoalign.activations import extract
from protoalign.data import check_split, mean_repeats, select, split_stimuli
from protoalign.datasets import load
from protoalign.encoding import encoding_score
from protoalign.files import read_responses
from protoalign.networks import backbone
from protoalign.quality import quality, select_reliable, zscore_sessions

N, N_VOXELS = 150, 40
DIGITS = load('digits')
IDS, GROUPS = list(DIGITS.ids[:N]), DIGITS.groups[:N]


@pytest.fixture(scope='module')
def images(): return backbone('digits-resnet8').prepare(DIGITS.stimuli[:N], white=DIGITS.white)


@pytest.fixture(scope='module')
def model():
    import torch
    torch.manual_seed(0)
    return backbone('digits-resnet8').make()


@pytest.fixture(scope='module')
def trials(model, images):
    "450 simulated trials of 40 voxels that answer as a stage of the network does; gain and offset change between two sessions, the last ten voxels are noise."
    rng = np.random.default_rng(0)
    stage = extract(model, 'layer2', images, grid=2)['layer2']
    signal = (stage - stage.mean(0)) @ rng.normal(size=(stage.shape[1], N_VOXELS))
    signal *= np.where(np.arange(N_VOXELS) < 30, 1, 0)/signal.std(0)
    shown, session = rng.permutation(np.repeat(np.arange(N), 3)), np.arange(3*N)//(3*N//2)
    gain, offset = rng.uniform(.5, 2, (2, N_VOXELS)), rng.normal(scale=3, size=(2, N_VOXELS))
    values = ((signal[shown] + .7*rng.normal(size=(3*N, N_VOXELS)))*gain[session] + offset[session]).astype(np.float32)
    return values, [IDS[i] for i in shown], [f'day {s}' for s in session]


def npy(values, ids, sessions, folder):
    np.save(folder/'x.npy', values)
    return read_responses(folder/'x.npy', ids, sessions=sessions)


def npz(values, ids, sessions, folder):
    np.savez(folder/'x.npz', betas=values, other=np.zeros(3))
    return read_responses(folder/'x.npz', ids, variable='betas', sessions=sessions)


def mat(values, ids, sessions, folder):
    from scipy.io import savemat
    savemat(folder/'x.mat', {'betas': values})
    return read_responses(folder/'x.mat', ids, sessions=sessions)


def mat73(values, ids, sessions, folder):
    "As MATLAB writes it: HDF5 behind a text header, axes reversed."
    h5py = pytest.importorskip('h5py')
    with h5py.File(folder/'x.mat', 'w', userblock_size=512) as f: f['betas'] = values.T
    with open(folder/'x.mat', 'r+b') as f: f.write(b'MATLAB 7.3 MAT-file'.ljust(128))
    return read_responses(folder/'x.mat', ids, sessions=sessions)


def hdf5(values, ids, sessions, folder):
    h5py = pytest.importorskip('h5py')
    with h5py.File(folder/'x.h5', 'w') as f: f['session/betas'] = values
    return read_responses(folder/'x.h5', ids, sessions=sessions)


def csv(values, ids, sessions, folder):
    pd.DataFrame(values, columns=[f'unit {i}' for i in range(N_VOXELS)]).assign(day=sessions).set_index(pd.Index(ids, name='stimulus')).to_csv(folder/'x.csv')
    return read_responses(folder/'x.csv', session='day')


def assembly(values, ids, sessions, folder):
    xr = pytest.importorskip('xarray')
    coords = {'stimulus_id': ('presentation', ids), 'session': ('presentation', sessions), 'neuroid_id': ('neuroid', [f'n{i}' for i in range(N_VOXELS)]),
              'region': ('neuroid', ['IT']*N_VOXELS), 'animal': ('neuroid', ['simulated']*N_VOXELS)}
    xr.DataArray(values, dims=('presentation', 'neuroid'), coords=coords, name='dicarlo').to_netcdf(folder/'x.nc', engine='h5netcdf')
    return read_responses(folder/'x.nc')


def nifti(values, ids, sessions, folder):
    import nibabel as nib
    from protoalign.fmri import image_responses
    mask = np.zeros((5, 4, 4), np.int8)
    mask.flat[np.random.default_rng(1).permutation(80)[:N_VOXELS]] = 1
    volumes = np.zeros((*mask.shape, len(values)), np.float32)
    volumes[mask > 0] = values.T
    for name, x in (('betas', volumes), ('mask', mask)): nib.save(nib.Nifti1Image(x, np.diag([2, 2, 2, 1])), folder/f'{name}.nii.gz')
    return image_responses(folder/'betas.nii.gz', folder/'mask.nii.gz', ids, sessions=sessions)


@pytest.mark.parametrize('read', [npy, npz, mat, mat73, hdf5, csv, assembly, nifti], ids=lambda f: f.__name__)
def test_five_lines(read, trials, images, model, tmp_path):
    recording = read(*trials, tmp_path)
    split = check_split(GROUPS, split_stimuli(GROUPS))
    train_ids = [IDS[i] for i in split.train]
    kept = select_reliable(zscore_sessions(recording, train_ids), train_ids, minimum=.3)
    responses, activations = select(mean_repeats(kept), IDS).values, extract(model, 'layer2', images, grid=2)['layer2']

    assert recording.values.shape == (N, 3, N_VOXELS) and kept.n_features == 30, 'the ten voxels of noise are left out, and no other'
    score = encoding_score(activations[split.train], responses[split.train], activations[split.test], responses[split.test])
    ceiling = quality(select(kept, train_ids)).noise_ceiling
    assert score.r.mean() > .6 and score.r2.mean() < ceiling.mean() + .05
    back = dict(zip(recording.ids, recording.values))
    for x, i in zip(trials[0][:20], trials[1][:20]): assert np.isclose(back[i], x, rtol=1e-5).all(1).any(), 'each trial is a repeat of its stimulus'
