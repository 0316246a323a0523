"""How often something is called shared where nothing is: 200 worlds of each kind, written to nbs/results/sharedness_null.csv

    OMP_NUM_THREADS=1 python tests/benchmarks/sharedness_null.py [n_worlds] [file]"""
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from protoalign.choose_k import cross_modal_agreement
from protoalign.joint import JointPrototypes
from protoalign.sharedness import sharedness

N_TRAIN, N_NEW, K, KS = 200, 100, 6, (4, 8, 16)
OUT = Path(__file__).resolve().parents[2]/'nbs'/'results'/'sharedness_null.csv'


def sides(rng, concepts=0, group_size=1):
    "Two sides without any relation; each with concepts of its own, or a random answer of its own to each content group."
    n, found = N_TRAIN + N_NEW, []
    for d in (20, 25):
        x = rng.normal(size=(n, d))
        if concepts: x += rng.normal(size=(concepts, d))[rng.integers(0, concepts, n//group_size)].repeat(group_size, axis=0)
        found.append(x)
    return *found, np.arange(n)//group_size


WORLDS = {'noise': ({}, False), 'structure of their own': (dict(concepts=6), False),
          'in groups, tested by stimulus': (dict(concepts=6, group_size=4), False), 'in groups, tested by group': (dict(concepts=6, group_size=4), True)}


def one_world(kind, seed):
    "Shares of one world that are called something."
    options, by_group = WORLDS[kind]
    x, y, groups = sides(np.random.default_rng(seed), **options)
    train, new = slice(0, N_TRAIN), slice(N_TRAIN, None)
    groups = groups[new] if by_group else None
    fit = lambda k: JointPrototypes(k, n_init=3, random_state=seed).fit(x[train], y[train])
    table = sharedness(fit(K), x[new], y[new], n_permutations=500, groups=groups, random_state=seed)
    chosen = min(cross_modal_agreement(fit(k), x[new], y[new], 500, groups, seed)['p'] for k in KS)*len(KS)
    return dict(world=kind, p=(table.p.dropna() <= .05).mean(), world_p=(table.p_corrected <= .05).any(),
                carried=np.mean([(table[c] <= .05).any() for c in ('p_network', 'p_brain')]), chosen=chosen <= .05)


def main(n_worlds=200, out=OUT):
    rows = pd.DataFrame([one_world(kind, seed) for kind in WORLDS for seed in range(n_worlds)]).astype({'world_p': float, 'chosen': float})
    g = rows.groupby('world', sort=False)
    mean, se = g.mean(), g.sem()
    table = pd.DataFrame(dict(n_worlds=g.size(), n_prototypes=K, share_p=mean.p, se_p=se.p, share_world=mean.world_p, se_world=se.world_p,
                              share_carried=mean.carried, se_carried=se.carried, share_chosen=mean.chosen, se_chosen=se.chosen)).round(4)
    table.to_csv(out)
    print(table.to_string())


if __name__ == '__main__': main(*(t(a) for t, a in zip((int, Path), sys.argv[1:])))
