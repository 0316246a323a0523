"""PCA and K-means at full size beside scikit-learn and faiss, in one run. Writes nbs/results/clustering.csv.

    python tests/benchmarks/clustering.py [--parts kmeans,fit,pca] [--quick] [--out nbs/results/clustering.csv]

All cores are used (set OMP_NUM_THREADS for fewer); the number of threads and the load of the machine at the start stand in the table.
faiss is a peer only where `import faiss` works (pip install faiss-cpu, or PYTHONPATH to a folder that holds it).
"""
import argparse, json, subprocess, sys, time
from functools import partial

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
import torch # noqa: F401 loaded before the clock starts, as the peers are: 'auto' asks it for a GPU

from record import keep, machine, peak_gb, table_path

from protoalign.clusters import inertia, kmeans_labels
from protoalign.joint import JointPrototypes, balance_scale
from protoalign.reduce import fit_pca

K = 50


def faiss_or_none():
    try: import faiss
    except ImportError: print('faiss is not installed: its rows are left out'); return None
    return faiss


def timed(f):
    "Result, wall seconds and processor seconds (all threads)."
    wall, cpu = time.perf_counter(), time.process_time()
    out = f()
    return out, dict(seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)


def crowd(n, d, seed, n_concepts=200):
    "Simulated patterns: overlapping concepts in directions of falling variance, and noise that falls likewise; float32."
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    concept, falls = shared.integers(n_concepts, size=n), np.arange(1, 301)**-.5
    middles, turn = own.normal(size=(n_concepts, 300))*falls, own.standard_normal((300, d), dtype=np.float32)
    x = np.empty((n, d), dtype=np.float32)
    for i in range(0, n, 5000):
        c = concept[i:i + 5000]
        scores = middles[c] + own.normal(size=(len(c), 300))*falls
        x[i:i + 5000] = scores.astype(np.float32) @ turn + 2*own.standard_normal((len(c), d), dtype=np.float32) + 5
    return x


def faiss_labels(faiss, x, n_init, niter):
    km = faiss.Kmeans(x.shape[1], K, niter=niter, nredo=n_init, seed=1, max_points_per_centroid=len(x))
    km.train(x)
    return km.index.search(x, 1)[1].ravel()


def kmeans_ways(faiss):
    "{what: (settings, function from vectors to labels)}."
    ways = {}
    for n in (1, 10):
        ways[f'scikit-learn KMeans, n_init {n}'] = 'tol 1e-4, max_iter 300', lambda x, n=n: KMeans(K, n_init=n, random_state=0).fit(x).labels_
        for niter in (25, 100) if faiss else ():
            ways[f'faiss Kmeans, nredo {n}, niter {niter}'] = 'no tolerance, all points', partial(faiss_labels, faiss, n_init=n, niter=niter)
        ways[f'protoalign, n_init {n}'] = "'sampled', tol 1e-4, max_iter 300", lambda x, n=n: kmeans_labels(x, K, n_init=n, algorithm='sampled')
    ways['protoalign minibatch, n_init 10'] = "'minibatch', 4,096 a batch", lambda x: kmeans_labels(x, K, algorithm='minibatch')
    return ways


def joint_vectors(x, y, fit):
    "Balanced sides next to each other, float32, from two PCAs."
    scores = [fit(o) for o in (x, y)]
    return np.hstack([s*balance_scale(s)*.5**.5 for s in scores]).astype(np.float32)


def kmeans_part(n, faiss):
    "K-means alone, cold and warm, on the same vectors."
    u = joint_vectors(crowd(n, 1024, 1), crowd(n, 2000, 2), lambda o: fit_pca(o).transform(o))
    size, found = f'{len(u):,} x {u.shape[1]}, K {K}', []
    for what, (settings, f) in kmeans_ways(faiss).items():
        labels, spent = timed(lambda: f(u))
        found.append(dict(part='kmeans', what=what, settings=settings, size=size, inertia=inertia(u, labels), **spent))
        print(found[-1], flush=True)
        if what == 'protoalign, n_init 10': cold = labels
    turned = u @ (np.linalg.qr(np.random.default_rng(3).normal(size=(u.shape[1],)*2))[0]).astype(np.float32)
    turned += .02*u.std()*np.random.default_rng(4).standard_normal(u.shape, dtype=np.float32)
    labels, spent = timed(lambda: kmeans_labels(turned, K, init=cold))
    found.append(dict(part='kmeans', what='protoalign, warm start', settings='space turned, noise of 2 % added', size=size, inertia=inertia(u, labels), kept=float((labels == cold).mean()), **spent))
    return found


def fit_part(n, faiss):
    "From raw matrices to labels."
    x, y = crowd(n, 1024, 1), crowd(n, 2000, 2)
    size, found = f'{n:,} x 1,024 and {n:,} x 2,000, float32, 128 + 128 components, K {K}', []
    def reduce(o): return PCA(128, random_state=0).fit_transform(o)
    u, pca = timed(lambda: joint_vectors(x, y, reduce))
    peers = {'scikit-learn PCA and KMeans': ('n_init 10, tol 1e-4', lambda: KMeans(K, n_init=10, random_state=0).fit(u).labels_)}
    if faiss: peers['scikit-learn PCA, faiss Kmeans'] = 'nredo 10, niter 100', lambda: faiss_labels(faiss, u, 10, 100)
    for what, (settings, f) in peers.items():
        labels, spent = timed(f)
        found.append(dict(part='fit', what=what, settings=settings, size=size, inertia=inertia(u, labels), **{k: v + pca[k] for k, v in spent.items()}))
    joint = JointPrototypes(K, warm_start=True)
    cold, spent = timed(lambda: joint.fit(x, y).labels_)
    found.append(dict(part='fit', what='protoalign JointPrototypes', settings='n_init 10, tol 1e-4; with the report on both sides', size=size, inertia=inertia(u, cold), **spent))
    moved = x + np.float32(.02)*x.std()*np.random.default_rng(5).standard_normal(x.shape, dtype=np.float32)
    warm, spent = timed(lambda: joint.fit(moved, y).labels_)
    found.append(dict(part='fit', what='protoalign JointPrototypes, warm start', settings='noise of 2 % added to the activations', size=size, inertia=inertia(u, warm), kept=float((warm == cold).mean()), **spent))
    return found


def raw_responses(n, d, spectrum):
    "Simulated responses: variance falling as 1/rank ('falling'), or 60 strong directions on white noise ('noise floor'); float32."
    rng = np.random.default_rng(0)
    m, sd = (min(n, d, 1500), np.arange(1, min(n, d, 1500) + 1)**-.5) if spectrum == 'falling' else (60, np.geomspace(1, .1, 60))
    x = (rng.standard_normal((n, m), dtype=np.float32)*sd.astype(np.float32)) @ rng.standard_normal((m, d), dtype=np.float32)
    return x + (.02 if spectrum == 'falling' else 1)*rng.standard_normal((n, d), dtype=np.float32)


def one_pca(n, d, spectrum, dtype, solver):
    "One PCA in a process of its own, for its peak of memory."
    x = raw_responses(n, d, spectrum).astype(dtype, copy=False)
    before = peak_gb()
    fit = (lambda: fit_pca(x, 128, solver='krylov')) if solver == 'protoalign' else lambda: PCA(128, svd_solver='randomized', random_state=0).fit(x)
    pca, spent = timed(fit)
    return dict(**spent, kept=float(pca.explained_variance_ratio_.sum()), last=float(pca.singular_values_[-1]), gb_before=before, peak_gb=peak_gb())


def pca_part(n, d):
    found = []
    for spectrum in ('falling', 'noise floor'):
        for dtype in ('float32', 'float64'):
            for solver in ('scikit-learn randomized', 'protoalign'):
                call = [sys.executable, __file__, '--one', json.dumps([n, d, spectrum, dtype, solver])]
                told = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
                found.append(dict(part='pca', what=solver, settings=f'128 components, {spectrum}', size=f'{n:,} x {d:,} {dtype}', **told))
                print(found[-1], flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--parts', default='kmeans,fit,pca')
    parser.add_argument('--quick', action='store_true', help='a tenth of the size, to try the script')
    parser.add_argument('--out', help='file to write; in nbs/results by default, a temporary one with --quick')
    parser.add_argument('--one', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: return print(json.dumps(one_pca(*json.loads(args.one))))
    n, shape, faiss, about = (21_000, (800, 3000)) + (faiss_or_none(), machine()) if args.quick else (73_000, (5000, 20_000)) + (faiss_or_none(), machine())
    parts = dict(kmeans=lambda: kmeans_part(n, faiss), fit=lambda: fit_part(n, faiss), pca=lambda: pca_part(*shape))
    for part in args.parts.split(','):
        table = pd.DataFrame([{**row, **about} for row in parts[part]()])
        print(table.drop(columns=['machine', 'size']).to_string(), flush=True)
        keep(table, table_path('clustering', args.out, args.quick), ['part'])


if __name__ == '__main__': main()
