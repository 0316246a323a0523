"""RDMs and their rank correlation at full size beside SciPy, mne-rsa and rsatoolbox, in one run. Writes nbs/results/rsa_speed.csv.

    python tests/benchmarks/rsa_speed.py [--parts rdm,spearman,large] [--quick] [--repeats 3] [--out nbs/results/rsa_speed.csv]

All cores are used (set OMP_NUM_THREADS for fewer); the number of threads, OpenBLAS's kernel and the load of the
machine at the start stand in the table. An OPENBLAS_CORETYPE in the environment can force a slow kernel: unset it, and OPENBLAS_L2_SIZE with it.
Every way is run in a process of its own on the same data, and gives its result (a sample of it, for RDMs) to be compared with SciPy's
before its times count. `ratio` is how many times protoalign is faster: the median over pairs of repetitions, `ratio_low` and `ratio_high` their range.
"""
import argparse, json, subprocess, sys, time

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_info

from record import keep, machine, peak_gb, table_path


def patterns(n, d, dtype, seed=0):
    "Simulated activations: 20 concepts in noise, two systems for seeds 0 and 1."
    shared, own = np.random.default_rng(99), np.random.default_rng(seed)
    x = own.standard_normal((n, d), dtype=np.float32)
    x += own.standard_normal((20, d), dtype=np.float32)[shared.integers(20, size=n)]
    return x.astype(dtype, copy=False)


def protoalign_rdm(x):
    from protoalign.rsa import rdm
    return lambda: rdm(x)


def scipy_rdm(x):
    from scipy.spatial.distance import pdist
    return lambda: pdist(x, 'correlation')


def mne_rsa_rdm(x):
    from mne_rsa import compute_rdm
    return lambda: compute_rdm(x, metric='correlation')


def rsatoolbox_rdm(x):
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm
    return lambda: calc_rdm(Dataset(x), method='correlation').dissimilarities[0]


def product(x): return lambda: x @ x.T


def protoalign_spearman(a, b):
    from protoalign.rsa import rsa
    return lambda: rsa(a, b)


def scipy_spearman(a, b):
    from scipy.stats import spearmanr
    return lambda: spearmanr(a, b).statistic


def rsatoolbox_spearman(a, b):
    from rsatoolbox.rdm import RDMs, compare
    a, b = (RDMs(o[None]) for o in (a, b))
    return lambda: compare(a, b, method='spearman').item()


RDM = {'scipy pdist': scipy_rdm, 'protoalign rdm': protoalign_rdm, 'mne-rsa compute_rdm': mne_rsa_rdm, 'rsatoolbox calc_rdm': rsatoolbox_rdm, 'one x @ x.T': product}
SPEARMAN = {'scipy spearmanr': scipy_spearman, 'protoalign rsa': protoalign_spearman, 'rsatoolbox compare': rsatoolbox_spearman}


def sampled(d):
    "A hundred thousand cells of an RDM, spread evenly."
    return np.asarray(d).ravel()[np.linspace(0, np.size(d) - 1, 100_000).astype(int)].tolist() if np.size(d) > 1 else [float(d)]


def one(part, what, n, d, dtype, repeats):
    "One way in this process: its seconds, its memory, its answer."
    if part == 'large': return large(n, d)
    if part == 'rdm': f = RDM[what](patterns(n, d, dtype))
    else:
        from protoalign.rsa import rdm
        f = SPEARMAN[what](*(rdm(patterns(n, d, np.float32, seed)).astype(dtype, copy=False) for seed in (0, 1)))
    before, seconds = peak_gb(), []
    for _ in range(repeats):
        start = time.perf_counter()
        answer = f()
        seconds.append(time.perf_counter() - start)
    return dict(seconds=seconds, gb_before=before, peak_gb=peak_gb(), answer=[] if what == 'one x @ x.T' else sampled(answer))


def large(n, d):
    "Two RDMs of many stimuli, and their Spearman correlation; blocks keep them within memory. Checked on a part of the cells."
    from scipy.spatial.distance import cdist
    from protoalign.rsa import rdm, rsa
    x, y = (patterns(n, d, np.float32, seed) for seed in (0, 1))
    start = time.perf_counter()
    a, b = rdm(x), rdm(y)
    middle = time.perf_counter()
    score = rsa(a, b)
    end = time.perf_counter()
    row = n//2
    at = row*n - row*(row + 1)//2
    if np.abs(a[at:at + n - 1 - row] - cdist(x[row:row + 1], x[row + 1:], 'correlation')[0]).max() > 1e-5: sys.exit('the RDM is not that of SciPy')
    return dict(seconds=[middle - start], compare_seconds=end - middle, gb_before=0., peak_gb=peak_gb(), answer=[score])


def told(*setting):
    done = subprocess.run([sys.executable, __file__, '--one', json.dumps(setting)], capture_output=True, text=True)
    if done.returncode: sys.exit(f'{setting} failed:\n{done.stderr[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])


def compared(part, ways, n, d, repeats):
    "Rows for each way and kind of number; the first way's answer is the oracle."
    rows = []
    for dtype in ('float32', 'float64'):
        found = {what: told(part, what, n, d, dtype, repeats if 'protoalign' in what or '@' in what else max(2, repeats//2)) for what in ways}
        truth = np.array(next(iter(found.values()))['answer'])
        ours = np.array(next(o for what, o in found.items() if 'protoalign' in what)['seconds'])
        for what, o in found.items():
            answer, seconds = o.pop('answer'), np.array(o.pop('seconds'))
            off = np.abs(np.array(answer) - truth).max() if answer else np.nan
            if off > (1e-5 if part == 'rdm' and dtype == 'float32' else 1e-8): sys.exit(f'{what} differs from {next(iter(ways))} by {off}')
            ratios = np.divide.outer(seconds, ours)
            size = f'{n:,} x {d:,}' if part == 'rdm' else f'{n*(n - 1)//2:,} cells'
            rows.append(dict(part=part, what=what, size=f'{size} {dtype}', seconds=np.median(seconds), fastest=seconds.min(), slowest=seconds.max(),
                             ratio=np.median(ratios), ratio_low=ratios.min(), ratio_high=ratios.max(), off=off, **o))
            print(rows[-1], flush=True)
    return rows


def large_part(n, d):
    o = told('large', '', n, d, 'float32', 1)
    return [dict(part='large', what=what, size=f'{n:,} stimuli, {n*(n - 1)//2:,} cells float32', seconds=seconds, peak_gb=o['peak_gb'])
            for what, seconds in (('two RDMs', o['seconds'][0]), ('their Spearman correlation', o['compare_seconds']))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--parts', default='rdm,spearman,large')
    parser.add_argument('--quick', action='store_true', help='small sizes, to try the script')
    parser.add_argument('--repeats', type=int, default=5, help='of protoalign; half as many, at least 2, of the peers')
    parser.add_argument('--out', help='file to write; in nbs/results by default, a temporary one with --quick')
    parser.add_argument('--one', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: return print(json.dumps(one(*json.loads(args.one))))
    n, d, many, about = (1000, 512, 3000, machine()) if args.quick else (5000, 2048, 20_000, machine())
    about['kernel'] = next((o['architecture'] for o in threadpool_info() if 'architecture' in o), '')
    parts = dict(rdm=lambda: compared('rdm', RDM, n, d, args.repeats), spearman=lambda: compared('spearman', SPEARMAN, n, d, args.repeats), large=lambda: large_part(many, 512))
    for part in args.parts.split(','):
        table = pd.DataFrame([{**row, **about} for row in parts[part]()])
        print(table.drop(columns=['machine', 'size']).to_string(), flush=True)
        keep(table, table_path('rsa_speed', args.out, args.quick), ['part'])


if __name__ == '__main__': main()
