"""A thousand bootstraps over stimuli of RSA beside rsatoolbox, in one run. Writes nbs/results/bootstrap_speed.csv.

    OMP_NUM_THREADS=1 python tests/benchmarks/bootstrap_speed.py [--quick] [--out nbs/results/bootstrap_speed.csv]

92 stimuli, 8 models, 4 subjects. First the same 20 draws on both sides, every score compared (1e-10); then each way runs alone in a process of its own,
ways in turn, several repetitions. rsatoolbox works by a Python loop over draws, so its time is linear in them: it runs a tenth of the draws and the table
says so. Times are processor seconds of one thread for 1,000 draws (the wall clock stands beside them, and suffers from what else the machine does); a ratio is the peer's time over ours, its median and its smallest and largest over all pairs of repetitions.
"""
import argparse, json, subprocess, sys, time
from contextlib import redirect_stderr
from io import StringIO
from itertools import product

import numpy as np
import pandas as pd
from rsatoolbox.inference import eval_bootstrap_pattern
from rsatoolbox.model import ModelFixed
from rsatoolbox.rdm import RDMs

from record import keep, machine, peak_gb, table_path

from protoalign.bootstrap import bootstrap_rsa, resampled_rsa
from protoalign.rsa import rdm

N, MODELS, SUBJECTS = 92, 8, 4
PEER = {'spearman': 'spearman', 'pearson': 'corr'}
WAYS = 'protoalign', 'rsatoolbox, scores alone', 'rsatoolbox, its default with noise ceilings'


def world():
    "Condensed RDMs of 8 models and 4 subjects (simulated); one model is a category with heavy ties."
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(N, 10))
    seen = lambda noise: rdm(signal @ rng.normal(size=(10, 60)) + noise*rng.normal(size=(N, 60)))
    x, y = np.stack([seen(1 + k) for k in range(MODELS)]), np.stack([seen(4) for _ in range(SUBJECTS)])
    x[-1] = rdm((signal[:, :1] > 0).astype(float), 'euclidean')
    return x, y


def peer(x, y, method, n_draws, ceilings=False):
    with redirect_stderr(StringIO()):
        return eval_bootstrap_pattern([ModelFixed(str(k), d) for k, d in enumerate(x)], RDMs(y), method=PEER[method], N=n_draws, boot_noise_ceil=ceilings)


def check(method, n_draws=20):
    "The same draws on both sides, then the largest difference of any score."
    x, y = world()
    state = np.random.RandomState(1)
    counts = np.array([np.bincount(state.randint(0, N, size=N), minlength=N) for _ in range(n_draws)])
    np.random.seed(1)
    off = np.abs(peer(x, y, method, n_draws).evaluations - resampled_rsa(x, y, counts, method).mean(2)).max()
    assert off < 1e-10, f'{method}: scores differ by {off}'
    return off


def one(way, method, n_draws):
    "Processor and wall seconds for n_draws, and memory."
    x, y = world()
    models, before = list(x), 1024*peak_gb()
    run = {WAYS[0]: lambda n: bootstrap_rsa(models, list(y), n_draws=n, method=method), WAYS[1]: lambda n: peer(x, y, method, n), WAYS[2]: lambda n: peer(x, y, method, n, True)}[way]
    run(2)
    wall, cpu = time.perf_counter(), time.process_time()
    run(n_draws)
    return dict(seconds=time.process_time() - cpu, wall=time.perf_counter() - wall, before_mb=before, peak_mb=1024*peak_gb())


def alone(way, method, n_draws):
    told = subprocess.run([sys.executable, __file__, '--one', json.dumps([way, method, n_draws])], check=True, capture_output=True, text=True)
    return json.loads(told.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='a tenth of the draws, two repetitions, to try the script')
    parser.add_argument('--out', help='file to write; in nbs/results by default, a temporary one with --quick')
    parser.add_argument('--one', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: return print(json.dumps(one(*json.loads(args.one))))
    draws, repetitions = (100, 2) if args.quick else (1000, 5)
    rows = []
    for method in PEER:
        off, times = check(method), {way: [] for way in WAYS}
        for _, way in product(range(repetitions), WAYS):
            k = draws if way == WAYS[0] else draws//10
            told = alone(way, method, k)
            times[way].append({**told, **{t: told[t]*1000/k for t in ('seconds', 'wall')}})
        ours = np.array([t['seconds'] for t in times[WAYS[0]]])
        for way, told in times.items():
            seconds = np.array([t['seconds'] for t in told])
            ratios = seconds[:, None]/ours
            rows.append(dict(what=way, method=method, size=f'{N} stimuli, {MODELS} models, {SUBJECTS} subjects', n_draws=1000, draws_run=draws if way == WAYS[0] else draws//10,
                             repetitions=repetitions, seconds=np.median(seconds), seconds_low=seconds.min(), seconds_high=seconds.max(), wall_seconds=np.median([t['wall'] for t in told]), ratio=np.median(ratios), ratio_low=ratios.min(),
                             ratio_high=ratios.max(), peak_mb=max(t['peak_mb'] for t in told), before_mb=max(t['before_mb'] for t in told), largest_difference=off, **machine()))
            print(rows[-1], flush=True)
    keep(pd.DataFrame(rows), table_path('bootstrap_speed', args.out, args.quick), ['method'])


if __name__ == '__main__': main()
