"""How often something is called shared where nothing is: 200 worlds of each kind, written to nbs/results/sharedness_null.csv;
and two choices of the method against what they replaced, written to nbs/results/sharedness_choices.csv

    OMP_NUM_THREADS=1 python tests/benchmarks/sharedness_null.py [n_worlds] [folder for the results]
    OMP_NUM_THREADS=1 python tests/benchmarks/sharedness_null.py choices [n_worlds] [folder for the results]"""
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from scipy.spatial.distance import cdist

from protoalign.choose_k import cross_modal_agreement, reduced_sides, stimulus_permutations
from protoalign.joint import JointPrototypes
from protoalign.sharedness import margins, mixed_world, pairs_right, permutation_p, sharedness

N_TRAIN, N_NEW, K, KS = 200, 100, 6, (4, 8, 16)
OUT = Path(__file__).resolve().parents[2]/'nbs'/'results'


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


def null_of_one_pairing(seed):
    "Is anything of a world of noise called shared: where both directions lose one pairing, and where each has a pairing of its own."
    x, y, _ = sides(np.random.default_rng(seed))
    model = JointPrototypes(K, n_init=3, random_state=seed).fit(x[:N_TRAIN], y[:N_TRAIN])
    z, r = (cdist(a, p, 'sqeuclidean') for a, p, _ in reduced_sides(model, x[N_TRAIN:], y[N_TRAIN:]).values())
    members, evidence = np.stack([o.argmin(1)[:, None] == np.arange(K) for o in (z, r)]), np.stack([margins(r), margins(z)])
    orders = stimulus_permutations(N_NEW, 500, None, seed)
    families = {'one pairing': orders.argsort(1), 'two pairings': orders}
    return {name: (permutation_p(pairs_right(members, evidence, np.stack([orders, other])))[1] <= .05).any() for name, other in families.items()}


def one_sided_flags(seed):
    "Flags of the prototypes that one side alone carries, in a mixed world, without and with the least part of a carrier."
    x, y, sees_network, sees_brain = mixed_world(noise=1., seed=seed)
    train, new = slice(0, 400), slice(400, 600)
    model = JointPrototypes(6, n_init=5, random_state=seed).fit(x[train], y[train])
    kinds = (sees_network == sees_brain)[train], (sees_network > 2)[train], (sees_brain == 5)[train]
    one_sided = np.array([np.argmax([kind[model.labels_ == k].mean() for kind in kinds]) > 0 for k in range(6)])
    return [dict(least_part=part, one_sided=one_sided.sum(), **{f: (one_sided & (table.flag == f)).sum() for f in ('crossed', 'shared')})
            for part, table in ((part, sharedness(model, x[new], y[new], min_part=part, random_state=seed)) for part in (0., .25))]


def choices(n_worlds=200, out=OUT):
    false = pd.DataFrame([null_of_one_pairing(seed) for seed in range(n_worlds)])
    rows = [dict(choice='null of the score', way=name, n_worlds=n_worlds, counted='worlds of noise with anything called shared', count=false[name].sum(), of=n_worlds) for name in false]
    flags = pd.DataFrame([row for seed in range(n_worlds//2) for row in one_sided_flags(seed)])
    for part, g in flags.groupby('least_part'):
        rows += [dict(choice='least part of a carrier', way=f'{part}', n_worlds=n_worlds//2, counted=f'one-sided prototypes called {f}', count=g[f].sum(), of=g.one_sided.sum()) for f in ('crossed', 'shared')]
    table = pd.DataFrame(rows)
    table.to_csv(out/'sharedness_choices.csv', index=False)
    print(table.to_string())


def main(n_worlds=200, out=OUT):
    rows = pd.DataFrame([one_world(kind, seed) for kind in WORLDS for seed in range(n_worlds)]).astype({'world_p': float, 'chosen': float})
    g = rows.groupby('world', sort=False)
    mean, se = g.mean(), g.sem()
    table = pd.DataFrame(dict(n_worlds=g.size(), n_prototypes=K, share_p=mean.p, se_p=se.p, share_world=mean.world_p, se_world=se.world_p,
                              share_carried=mean.carried, se_carried=se.carried, share_chosen=mean.chosen, se_chosen=se.chosen)).round(4)
    table.to_csv(out/'sharedness_null.csv')
    print(table.to_string())


if __name__ == '__main__':
    words = sys.argv[1:]
    what, words = (choices, words[1:]) if words[:1] == ['choices'] else (main, words)
    what(*(t(a) for t, a in zip((int, Path), words)))
