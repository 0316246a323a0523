"""Ridge regression with a penalty for each voxel beside himalaya and scikit-learn, in one run. Writes nbs/results/ridge_speed.csv.

    python tests/benchmarks/ridge_speed.py [--parts folds,loo] [--dtypes float32,float64] [--repeats 3] [--quick] [--out nbs/results/ridge_speed.csv]

Work: 5,000 stimuli, 512 features, 20,000 voxels, 10 penalties. Every way runs in a process of its own, for its peak of memory; the ways take turns, so that
each ratio is between neighbours in time. Before anything is timed each way's answer is compared with ours: penalties, and weights where penalties are equal.
All cores are used (set OMP_NUM_THREADS for fewer); threads and the load of the machine at the start stand in the table.
"""
import argparse, json, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np
import pandas as pd

from record import keep, machine, peak_gb, table_path

PENALTIES = np.logspace(-1, 6, 10)
SIZES = {False: (5000, 512, 20_000), True: (1000, 128, 2000)}


def world(n, d, n_voxels, dtype):
    "Simulated features of falling variance, standardised, and voxels that they explain from nothing to a half."
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]*np.arange(1, d + 1)[:, None]**-.5
    x = rng.normal(size=(n, d)) @ turn
    x = ((x - x.mean(0))/x.std(0)).astype(dtype)
    y = rng.standard_normal((n, n_voxels), dtype=np.float32).astype(dtype)
    for i in range(0, n_voxels, 1000):
        share = np.linspace(0, 1, n_voxels)[i:i + 1000]
        signal = x @ rng.normal(size=(d, len(share))).astype(dtype)
        y[:, i:i + 1000] += (signal/signal.std(0)*share).astype(dtype)
    return x, y


def ours(x, y, cv):
    from protoalign.ridge import ridge_cv
    fit = ridge_cv(x, y, PENALTIES, cv)
    return fit.alpha, fit.coef


def himalaya(x, y, batch):
    from himalaya.ridge import RidgeCV
    fit = RidgeCV(PENALTIES.astype(x.dtype), fit_intercept=True, cv=5, solver_params=dict(n_targets_batch=batch)).fit(x, y)
    return fit.best_alphas_, fit.coef_


def scikit_learn(x, y):
    from sklearn.linear_model import RidgeCV
    fit = RidgeCV(PENALTIES, alpha_per_target=True).fit(x, y)
    return fit.alpha_, fit.coef_.T


WAYS = {
    'folds': {'protoalign': ('5 folds', lambda x, y: ours(x, y, 5)),
              'himalaya RidgeCV': ('5 folds, numpy backend, all voxels at once (its default)', lambda x, y: himalaya(x, y, None)),
              'himalaya RidgeCV, batches': ('5 folds, numpy backend, n_targets_batch 1000', lambda x, y: himalaya(x, y, 1000))},
    'loo': {'protoalign': ("cv='loo'", lambda x, y: ours(x, y, 'loo')),
            'scikit-learn RidgeCV': ('leave-one-out, alpha_per_target', scikit_learn)}}


def once(part, what, size, dtype, answer=None):
    "One fit in this process; the answer is kept if a file is named."
    x, y = world(*size, dtype)
    fit, before = WAYS[part][what][1], peak_gb()
    fit(x[:60, :8], y[:60, :4])
    wall, cpu = time.perf_counter(), time.process_time()
    alpha, coef = fit(x, y)
    spent = dict(seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)
    if answer: np.savez(answer, alpha=alpha, coef=coef)
    return dict(**spent, gb_before=before, peak_gb=peak_gb())


def in_own_process(*work):
    done = subprocess.run([sys.executable, '-W', 'ignore', __file__, '--one', json.dumps(work)], capture_output=True, text=True)
    if done.returncode: raise RuntimeError(f'{work[:2]} failed ({done.returncode}; -9 is out of memory): {done.stderr[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])


def agreement(part, size, dtype, folder):
    "{way: (share of voxels with our penalty, largest difference of their weights, in units of the root mean square weight)}; stops where it is not the same answer."
    files = {what: str(Path(folder)/f'{i}.npz') for i, what in enumerate(WAYS[part])}
    for what, file in files.items(): in_own_process(part, what, size, dtype, file)
    mine, found = np.load(files.pop('protoalign')), {}
    for what, file in files.items():
        theirs = np.load(file)
        same = np.isclose(theirs['alpha'], mine['alpha'], rtol=1e-4)
        apart = np.abs(theirs['coef'] - mine['coef'])[:, same].max()/np.sqrt((mine['coef'].astype(float)**2).mean())
        found[what] = dict(same_penalty=same.mean(), weights_apart=apart)
        print(part, dtype, what, found[what], flush=True)
        assert same.mean() >= .99 and apart < (1e-8 if dtype == 'float64' else 1e-2), f'{what} gives another answer: {found[what]}'
    return found


def rows(part, size, dtype, repeats):
    with tempfile.TemporaryDirectory() as folder: same = agreement(part, size, dtype, folder)
    spent = {what: [] for what in WAYS[part]}
    for _ in range(repeats):
        for what in spent:
            spent[what].append(in_own_process(part, what, size, dtype))
            print(part, dtype, what, spent[what][-1], flush=True)
    for what, found in spent.items():
        table = pd.DataFrame(found)
        ratio = table.seconds/pd.DataFrame(spent['protoalign']).seconds
        yield dict(part=part, what=what, dtype=dtype, settings=WAYS[part][what][0], size='{:,} x {:,}, {:,} voxels'.format(*size), repeats=repeats,
                   seconds=table.seconds.median(), cpu_seconds=table.cpu_seconds.median(), ratio=ratio.median(), ratio_min=ratio.min(), ratio_max=ratio.max(),
                   gb_before=table.gb_before.max(), peak_gb=table.peak_gb.max(), **same.get(what, {}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--parts', default='folds,loo')
    parser.add_argument('--dtypes', default='float32,float64')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--quick', action='store_true', help='a small size, to try the script')
    parser.add_argument('--out', help='file to write; in nbs/results by default, a temporary one with --quick')
    parser.add_argument('--one', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: return print(json.dumps(once(*json.loads(args.one))))
    about = machine()
    for part in args.parts.split(','):
        table = pd.DataFrame([{**row, **about} for dtype in args.dtypes.split(',') for row in rows(part, SIZES[args.quick], dtype, args.repeats)])
        print(table.drop(columns=['machine', 'size']).to_string(), flush=True)
        keep(table, table_path('ridge_speed', args.out, args.quick), ['part', 'dtype'])


if __name__ == '__main__': main()
