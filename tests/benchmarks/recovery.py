"""How well planted concepts are recovered: noise, number of stimuli, wrong K, one side louder. Writes nbs/results/recovery.csv.

    python tests/benchmarks/recovery.py [--seeds 10] [--out nbs/results/recovery.csv]
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from protoalign.data import planted_world
from protoalign.joint import JointPrototypes

ROOT = Path(__file__).resolve().parents[2]
JOINTS = None, 'pca', 'cca', 'plsc'
SWEEPS = { # what is varied: its values, and the rest of the world
    'noise': ((.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6), {}),
    'n_stimuli': ((50, 100, 200, 400, 800, 1600), dict(noise=3.)),
    'K': ((2, 3, 4, 5, 6, 7, 8, 10, 12, 16), dict(noise=1.)),
    'louder': ((.01, .1, .3, 1, 3, 10, 100), dict(noise=1., brain_noise=6.)),
}


def world(seed, n_stimuli=300, noise=1., brain_noise=0., louder=1., **_):
    "A planted world; the brain may have further noise of its own, and be louder than the network."
    acts, brain, concept = planted_world(n_stimuli, noise=noise, seed=seed)
    more = np.random.default_rng([seed, 1]).normal(size=brain.shape)
    return acts, louder*(brain + brain_noise*more), concept


def recover(method, acts, brain, concept, k, seed):
    "Adjusted Rand index of the labels found and the planted concepts."
    if method == 'joined as recorded': labels = KMeans(k, n_init=10, random_state=seed).fit_predict(np.hstack([acts, brain]))
    else: labels = JointPrototypes(k, joint=None if method == 'None' else method, random_state=seed).fit(acts, brain).labels_
    return adjusted_rand_score(concept, labels)


def rows(sweep, seeds):
    values, rest = SWEEPS[sweep]
    for value in values:
        settings = {**rest, sweep: value}
        for seed in range(seeds):
            made = world(seed, **settings)
            for method in (*map(str, JOINTS), *(('joined as recorded',) if sweep == 'louder' else ())):
                yield dict(sweep=sweep, n_stimuli=len(made[0]), noise=rest.get('noise', 1.) if sweep != 'noise' else value, brain_noise=rest.get('brain_noise', 0.),
                           louder=settings.get('louder', 1), K=settings.get('K', 6), method=method, seed=seed, ari=recover(method, *made, settings.get('K', 6), seed))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=10)
    parser.add_argument('--out', default=ROOT/'nbs'/'results'/'recovery.csv')
    args = parser.parse_args()
    table = pd.DataFrame([row for sweep in SWEEPS for row in rows(sweep, args.seeds)])
    table.to_csv(args.out, index=False, float_format='%.4g')
    for sweep in SWEEPS: print(table[table.sweep == sweep].pivot_table(index=sweep, columns='method', values='ari').round(2), '\n')


if __name__ == '__main__': main()
