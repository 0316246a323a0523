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


def surface(values, ids, sessions, folder):
    "Both hemispheres of a made cortex; 20 vertices of each are the region."
    from nilearn.surface import InMemoryMesh, PolyMesh, SurfaceImage
    from protoalign.fmri import image_responses
    rng = np.random.default_rng(2)
    mesh = PolyMesh(*(InMemoryMesh(rng.normal(size=(30, 3)), np.stack([rng.permutation(30)[:3] for _ in range(20)])) for _ in range(2)))
    inside = {side: np.zeros(30, np.int8) for side in ('left', 'right')}
    data = {side: np.zeros((30, len(values)), np.float32) for side in inside}
    for side, part in zip(inside, np.split(values, 2, axis=1)):
        inside[side][5:25] = 1
        data[side][5:25] = part.T
    return image_responses(SurfaceImage(mesh, data), SurfaceImage(mesh, inside), ids, sessions=sessions)


def epochs(values, ids, sessions, folder):
    "An EEG of 40 sensors: the response of a trial is the voltage from 100 to 200 ms."
    mne = pytest.importorskip('mne')
    from protoalign.meeg import read_epochs_responses
    volts = np.zeros((len(values), N_VOXELS, 40))
    volts[:, :, 20:30] = 1e-6*values[:, :, None]
    info = mne.create_info([f'EEG {i:03d}' for i in range(N_VOXELS)], 100., 'eeg')
    known = {o: i + 1 for i, o in enumerate(dict.fromkeys(ids))}
    events = np.c_[100*np.arange(len(ids)), np.zeros(len(ids), int), [known[o] for o in ids]]
    made = mne.EpochsArray(volts, info, events, tmin=-.1, event_id=known, metadata=pd.DataFrame(dict(stimulus=ids, day=sessions)), verbose='error')
    made.save(folder/'x-epo.fif', verbose='error')
    return read_epochs_responses(folder/'x-epo.fif', 'stimulus', windows=[(.1, .2)], sessions='day')


@pytest.mark.parametrize('read', [npy, npz, mat, mat73, hdf5, csv, assembly, nifti, surface, epochs], ids=lambda f: f.__name__)
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


def test_five_lines_of_nsd(tmp_path):
    "The same with files of NSD's layout: the network sees the pictures, the voxels answer to their colours; the shared pictures are the test set."
    pytest.importorskip('h5py')
    from protoalign.nsd import nsd_images, nsd_responses, nsd_trials
    from protoalign.nsd_simulated import make_nsd_files
    planted = make_nsd_files(tmp_path, n_sessions=3, n_trials=120, n_images=400)
    shown = nsd_trials(tmp_path, 1).drop_duplicates('id').set_index('id')
    recording = nsd_responses(tmp_path, 1, 'streams')
    train_ids = [o for o in recording.ids if not shown.shared1000[o]]
    kept = select_reliable(zscore_sessions(recording, train_ids), train_ids, minimum=.3)
    responses, pictures = mean_repeats(kept), nsd_images(tmp_path, recording.ids, size=2).reshape(len(recording), -1).astype(float)
    train = np.isin(responses.ids, train_ids)
    score = encoding_score(pictures[train], responses.values[train], pictures[~train], responses.values[~train])
    ceiling = planted[tuple(kept.features[list('ijk')].to_numpy().T)]**2
    assert (~train).sum() > 20 and score.r.mean() > .6 and score.r2.mean() < (ceiling/(ceiling + 1/3)).mean() + .05


def test_five_lines_of_sounds(tmp_path):
    "Clips in a folder, and a network that hears: the pitch of simulated tones is what the simulated voxels answer to."
    soundfile = pytest.importorskip('soundfile')
    import torch
    from protoalign.data import content_groups
    from protoalign.sound_sets import read_sounds
    rng = np.random.default_rng(0)
    pitch, names = rng.uniform(300, 1500, 80), [f'{i:02d}.wav' for i in range(80)]
    for f, name in zip(pitch, names): soundfile.write(tmp_path/name, .5*np.sin(2*np.pi*f*np.arange(2000)/8000 + rng.uniform(0, 6)), 8000)
    np.save(tmp_path/'x.npy', (np.log(pitch)[:, None]*[1, -1, 2, -1, 1] + .05*rng.normal(size=(80, 5)))[:, None] + .05*rng.normal(size=(80, 3, 5)))
    torch.manual_seed(0)
    ear = torch.nn.Sequential(torch.nn.Conv1d(1, 64, 64, 4), torch.nn.ReLU())

    recording = read_responses(tmp_path/'x.npy', names)
    waves, _ = read_sounds(tmp_path, names)
    split = split_stimuli(content_groups(waves))
    responses = mean_repeats(zscore_sessions(recording, [names[i] for i in split.train])).values
    activations = extract(ear, '1', waves[:, None])['1']
    assert encoding_score(activations[split.train], responses[split.train], activations[split.test], responses[split.test]).r.mean() > .9
