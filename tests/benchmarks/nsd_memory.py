"""Memory and time of `nsd_responses` at the size of the Natural Scenes Dataset, on made files.

    python tests/benchmarks/nsd_memory.py [--folder DIR] [--out nbs/results/nsd_memory.csv]

Makes two sessions of subj01's size (81 × 104 × 83 voxels, 750 trials) of each kind of file, links them as 40 sessions, reads a region of
15,000 voxels from 14 or all of them, in a fresh process each time, checks what was read, writes a table, and removes what it made. Needs about 4 GB of disk."""
import argparse, os, resource, shutil, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np

SHAPE, N_TRIALS, N_VOXELS, POOL = (81, 104, 83), 750, 15_000, 1_000_003
PART, ALL = 14, 40 # sessions: 10,500 trials, and a whole subject
BETAS = 'nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR'


def pool():
    "Random 16-bit integers, from which each volume takes a stretch that begins elsewhere."
    return np.resize(np.random.default_rng(0).normal(0, 300, POOL).astype(np.int16), int(np.prod(SHAPE)) + POOL)


def starts(session): return (np.arange(N_TRIALS) + N_TRIALS*(session % 2))*7919 % POOL


def write_hdf5(path, session, chunks):
    import h5py
    numbers, (x, y, z) = pool(), SHAPE
    with h5py.File(path, 'w') as f:
        betas = f.create_dataset('betas', (N_TRIALS, z, y, x), np.int16, chunks=chunks)
        if chunks[0] == 1:
            for t, a in enumerate(starts(session)): betas[t] = numbers[a:a + x*y*z].reshape(z, y, x)
        else:
            for k in range(z): betas[:, k] = np.stack([numbers[a + k*x*y:a + (k + 1)*x*y] for a in starts(session)]).reshape(N_TRIALS, y, x)


def write_nifti(path, session):
    import gzip
    import nibabel as nib
    numbers, size = pool(), int(np.prod(SHAPE))
    header = nib.Nifti1Image(np.zeros((1, 1, 1, 1), np.int16), np.diag([1.8, 1.8, 1.8, 1])).header
    header.set_data_shape((*SHAPE, N_TRIALS))
    header['vox_offset'] = 352
    with gzip.open(path, 'wb', compresslevel=1) as f:
        f.write(header.binaryblock + bytes(4))
        for a in starts(session): f.write(numbers[a:a + size].tobytes())


def make_tree(root):
    "Tables of a design of 40 sessions with 10,000 images three times each, a mask of 15,000 voxels, and the two sessions of each kind."
    import nibabel as nib
    from protoalign import nsd
    design, shared = nsd._made_design('subj01', 40, N_TRIALS, 1000, 73_000, 0)
    nsd._made_tables(root, 'subj01', design, shared, 73_000, 0)
    index = np.indices(SHAPE).reshape(3, -1).T
    distance = (((index - [40, 25, 40])/[30, 16, 20])**2).sum(1)
    mask = np.full(len(index), -1, np.int16)
    mask[np.argsort(distance, kind='stable')[:N_VOXELS]] = 1
    nib.save(nib.Nifti1Image(mask.reshape(SHAPE), np.diag([1.8, 1.8, 1.8, 1])), nsd._made_path(root, 'nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz'))


def lay(root, kind, write):
    "Two files of one kind, linked as all sessions."
    folder = Path(root)/BETAS
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for session in range(2): write(folder/f'betas_session{session + 1:02d}.{kind}', session)
    for session in range(2, ALL): os.link(folder/f'betas_session{session % 2 + 1:02d}.{kind}', folder/f'betas_session{session + 1:02d}.{kind}')
    return sum(p.stat().st_size for p in folder.iterdir())/2**20/ALL


def read(root, average, n_sessions):
    "One reading, in this process: seconds, trials, voxels; the check comes after the clock and the memory."
    import warnings
    start = time.time()
    from protoalign.nsd import nsd_responses
    with warnings.catch_warnings(action='ignore'): r = nsd_responses(root, 1, sessions=list(range(1, n_sessions + 1)), average=average, progress=False)
    seconds, peak = time.time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    if not average: check(root, r)
    print(seconds, peak, n_sessions*N_TRIALS, r.n_features, 'x'.join(map(str, r.values.shape)))


def check(root, r):
    "Some thousand responses against the numbers that were written."
    from protoalign.nsd import nsd_trials
    numbers, trials, row = pool(), nsd_trials(root, 1, betas=None), {o: i for i, o in enumerate(r.ids)}
    flat = np.ravel_multi_index(r.features[['i', 'j', 'k']].to_numpy().T, SHAPE, order='F')
    for t in trials[trials.session <= r.sessions.max()].sample(500, random_state=0).itertuples():
        voxels = np.random.default_rng(t.Index).integers(0, len(flat), 20)
        got = r.values[row[t.id], t.repeat, voxels]
        np.testing.assert_allclose(got, numbers[starts(t.session - 1)[t.trial] + flat[voxels]]/300, rtol=1e-6)
        assert r.sessions[row[t.id], t.repeat] == t.session


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--folder', help='where to make the files; a temporary folder if left out')
    p.add_argument('--out', default=str(Path(__file__).resolve().parents[2]/'nbs'/'results'/'nsd_memory.csv'))
    p.add_argument('--read', nargs=3, metavar=('ROOT', 'AVERAGE', 'SESSIONS'), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.read: return read(a.read[0], a.read[1] == '1', int(a.read[2]))
    import pandas as pd
    layouts = {'hdf5, chunks by voxel': ('hdf5', lambda path, s: write_hdf5(path, s, (N_TRIALS, 1, 1, 1))),
               'hdf5, chunks by trial': ('hdf5', lambda path, s: write_hdf5(path, s, (1, *SHAPE[::-1]))), 'nii.gz': ('nii.gz', write_nifti)}
    rows, root = [], Path(tempfile.mkdtemp(prefix='nsd_memory', dir=a.folder))
    try:
        make_tree(root)
        for name, (kind, write) in layouts.items():
            megabytes = lay(root, kind, write)
            for sessions, average in ((PART, 0), (PART, 1), (ALL, 0), (ALL, 1)) if name == 'hdf5, chunks by voxel' else ((PART, 0),):
                done = subprocess.run([sys.executable, __file__, '--read', str(root), str(average), str(sessions)], capture_output=True, text=True, check=True)
                seconds, peak, trials, voxels, shape = done.stdout.split()
                rows.append(dict(kind=name, average=bool(average), voxels=int(voxels), trials=int(trials), shape=shape, seconds=round(float(seconds), 1), peak_mb=round(float(peak)),
                                 file_mb=round(megabytes*sessions), mb_per_s=round(int(trials)*int(voxels)*2/2**20/float(seconds))))
                print(rows[-1], flush=True)
    finally: shutil.rmtree(root, ignore_errors=True)
    pd.DataFrame(rows).to_csv(a.out, index=False)


if __name__ == '__main__': main()
