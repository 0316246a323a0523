"""CKA beside pytorch-cka and ckatorch, in one run on the same work. Writes nbs/results/cka_speed.csv.

    python tests/benchmarks/cka_speed.py [--work linear,rbf,...] [--repeats 5] [--quick] [--out nbs/results/cka_speed.csv]

All cores are used (set OMP_NUM_THREADS for fewer). Answers are compared before anything is timed; each repetition runs every way once, in
turn, and a ratio is that repetition's peer time over ours. Peaks of memory are of one run in a process of its own.
"""
import argparse, json, subprocess, sys, time

import numpy as np
import pandas as pd
import torch
from cka.cka import cka_from_features
from ckatorch.core import cka_base

from record import keep, machine, peak_gb, table_path

from protoalign.cka import cka_matrix, linear_cka, rbf_cka

OURS = 'protoalign, NumPy'


def views(n, *widths, seed=0, dtype=np.float64, n_shared=50):
    "Simulated systems that share some dimensions, columns centred, so that no peer is at a disadvantage."
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, n_shared), dtype=np.float32)
    out = []
    for d in widths:
        x = shared @ rng.standard_normal((n_shared, d), dtype=np.float32) + 10*rng.standard_normal((n, d), dtype=np.float32)
        x -= x.mean(0)
        out.append(x.astype(dtype, copy=False))
    return out


def pair_ways(n, dx, dy, dtype='float64'):
    "{what: function that returns the debiased linear CKA}."
    x, y = views(n, dx, dy, dtype=np.dtype(dtype))
    t, u = torch.from_numpy(x), torch.from_numpy(y)
    return {OURS: lambda: linear_cka(x, y), 'protoalign, torch': lambda: float(linear_cka(t, u)),
            'pytorch-cka': lambda: float(cka_from_features(t, u)[0, 0]), 'ckatorch': lambda: float(cka_base(t, u, unbiased=True))}


def rbf_ways(n, dx, dy):
    "The same with Gaussian kernels; the peer's median counts the diagonal, which moves the score by less than the tolerance."
    x, y = views(n, dx, dy)
    t, u = torch.from_numpy(x), torch.from_numpy(y)
    return {OURS: lambda: rbf_cka(x, y), 'protoalign, torch': lambda: float(rbf_cka(t, u)), 'ckatorch': lambda: float(cka_base(t, u, kernel='rbf', unbiased=True))}


def matrix_ways(n, d, n_layers, n_regions):
    "Tables of layers and regions, as arrays."
    sides = views(n, *[d]*(n_layers + n_regions))
    xs, ys = ({i: o for i, o in enumerate(part)} for part in (sides[:n_layers], sides[n_layers:]))
    ts, us = ([torch.from_numpy(o) for o in part.values()] for part in (xs, ys))
    return {OURS: lambda: cka_matrix(xs, ys).to_numpy(), 'pytorch-cka': lambda: cka_from_features(ts, us).numpy(),
            'ckatorch, pair by pair': lambda: np.array([[float(cka_base(t, u, unbiased=True)) for u in us] for t in ts])}


def alone_ways(n, dx, dy):
    "Too large for n × n kernels: float32 in, float64 sums, one run."
    x, y = views(n, dx, dy, dtype=np.float32)
    return {OURS: lambda: linear_cka(x, y)}


def works(quick):
    "{name: (what it is, ways to do it, tolerance, only once)}."
    n, wide, d, many, voxels = (1500, 800, 128, 8000, 2500) if quick else (10_000, 1000, 512, 73_000, 20_000)
    return {
        'linear': (f'debiased linear CKA, N = {n:,}, {d} × {d}, float64', lambda: pair_ways(n, d, d), 1e-6, False),
        'linear32': (f'debiased linear CKA, N = {n:,}, {d} × {d}, float32', lambda: pair_ways(n, d, d, 'float32'), 1e-3, False),
        'wide': (f'debiased linear CKA, N = {wide:,}, {4*d} × {voxels:,}, float64', lambda: pair_ways(wide, 4*d, voxels), 1e-6, False),
        'rbf': (f'debiased RBF CKA, N = {n//4:,}, {d} × {d}, float64', lambda: rbf_ways(n//4, d, d), 1e-3, False),
        'matrix': (f'12 layers × 6 regions, N = {n//5:,}, {d} features each', lambda: matrix_ways(n//5, d, 12, 6), 1e-6, False),
        'large': (f'debiased linear CKA, N = {many:,}, {4*d:,} × {4*d:,}, float32 data', lambda: alone_ways(many, 4*d, 4*d), 1, True),
        'large voxels': (f'debiased linear CKA, N = {many:,}, {d} × {10*d:,}, float32 data', lambda: alone_ways(many, d, 10*d), 1, True),
    }


def child(quick, name, what):
    "One run in a process of its own: seconds, memory before and at the peak."
    told = subprocess.run([sys.executable, __file__, '--one', json.dumps([quick, name, what])], check=True, capture_output=True, text=True).stdout
    return json.loads(told.splitlines()[-1])


def one(quick, name, what):
    f = works(quick)[name][1]()[what]
    before, start = peak_gb(), time.perf_counter()
    score = f()
    return dict(seconds=time.perf_counter() - start, gb_before=before, peak_gb=peak_gb(), score=float(np.mean(score)))


def spread(times, what):
    "Median, least and largest of the ratios to ours, repetition by repetition."
    ratios = np.array(times[what])/np.array(times[OURS])
    return dict(seconds=np.median(times[what]), ratio=np.median(ratios), ratio_low=ratios.min(), ratio_high=ratios.max(), repeats=len(ratios))


def measured(quick, name, repeats):
    work, make, tolerance, once = works(quick)[name]
    if once: return [dict(name=name, work=work, what=OURS, **child(quick, name, OURS), ratio=1., repeats=1)]
    ways = make()
    answers = {what: f() for what, f in ways.items()}
    for what, got in answers.items():
        if not np.allclose(got, answers[OURS], atol=tolerance, rtol=0): raise ValueError(f'{work}: {what} gives {got}, {OURS} {answers[OURS]}')
    times = {what: [] for what in ways}
    for _ in range(repeats):
        for what, f in ways.items():
            start = time.perf_counter()
            f()
            times[what].append(time.perf_counter() - start)
    del ways
    return [dict(name=name, work=work, what=what, **spread(times, what), **{k: v for k, v in child(quick, name, what).items() if k != 'seconds'}) for what in times]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work', default=','.join(works(True)))
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--quick', action='store_true', help='small, to try the script')
    parser.add_argument('--out', help='file to write; in nbs/results by default, a temporary one with --quick')
    parser.add_argument('--one', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: return print(json.dumps(one(*json.loads(args.one))))
    torch.set_grad_enabled(False)
    for name in args.work.split(','):
        table = pd.DataFrame([{**row, **machine()} for row in measured(args.quick, name, args.repeats)])
        print(table.drop(columns=['machine']).to_string(), flush=True)
        keep(table, table_path('cka_speed', args.out, args.quick), ['name'])


if __name__ == '__main__': main()
