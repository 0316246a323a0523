"""Which setting helps, looked for on validation stimuli of one session. Writes nbs/results/explore-v4.csv.

    python tests/benchmarks/explore_v4.py [--out runs/explore-v4] [--jobs 2] [--seeds 100] [--arms protoalign,cka,vanilla,untuned]

Session 201025, the task images and epochs of the preset `vision-v4`, a development seed that no report uses, and twelve trials of protoalign and nine of the CKA regulariser.
Controls are trained with the setting of protoalign: they are the same method less one thing.
A trial's data have no test stimuli (`seed_data.without_test`). What is found here counts only once it is confirmed on the sessions 210225 and 190923.
An interrupted search goes on where it stopped.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed

from record import RESULTS

from protoalign.cell import run_cell
from protoalign.config import Cell
from protoalign.presets import PRESETS

_BASE = replace(PRESETS['vision-v4'], sweep=())
BASE = replace(_BASE, settings=replace(_BASE.settings, precision='bfloat16'))
SINGLE = {'as the preset': {}, 'K 50': dict(K=50), 'λ 2': dict(lam=2.), 'balance .8': dict(brain_weight=.8), 'every prototype counts': dict(min_direction=0.), 'a refresh each epoch': dict(every=1),
          'frozen projection, a refresh each epoch': dict(every=1, projection='frozen'), 'stimuli every 4th batch': dict(stimulus_each=4), 'layer3': dict(layer='layer3')}
CKA = {**{f'λ {lam:g}': dict(lam=lam) for lam in (.25, .5, 1., 2., 4.)}, **{f'λ {lam:g}, stimuli every 4th batch': dict(lam=lam, stimulus_each=4) for lam in (.5, 2.)},
       **{f'λ {lam:g}, layer3': dict(lam=lam, layer='layer3') for lam in (.5, 2.)}}
TOGETHER = {name: {k: v for part in name.split(' + ') for k, v in SINGLE[part].items()} for name in # what had helped alone
            ('layer3 + a refresh each epoch + λ 2', 'layer3 + a refresh each epoch + λ 2 + balance .8', 'layer3 + a refresh each epoch + balance .8')}
TRIALS = dict(protoalign={**SINGLE, **TOGETHER}, cka=CKA, vanilla={'as the preset': {}}, untuned={'as the preset': {}})


def trial(out, arm, name, change, seed):
    "Validation rows of one training, at the layer that it trained."
    config = replace(BASE, settings=replace(BASE.settings, **change))
    folder = Path(out)/name.replace(' ', '_').replace(',', '').replace('+', 'and')
    rows = pd.read_csv(run_cell(config, Cell(arm, seed, role='trial', trial=0), folder, threads=1))
    assert set(rows['split']) == {'val'}
    kept = rows if arm in ('vanilla', 'untuned') else rows[rows['layer'].isin([config.settings.layer]) | rows['layer'].isna()]
    return kept.assign(change=name)[['arm', 'change', 'seed', 'layer', 'metric', 'n', 'value']]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', default='runs/explore-v4')
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--seeds', default='100')
    parser.add_argument('--arms', default=','.join(TRIALS))
    args = parser.parse_args()
    wanted = [(arm, name, change, int(seed)) for seed in args.seeds.split(',') for arm in args.arms.split(',')
              for name, change in TRIALS[arm].items()]
    found = Parallel(args.jobs, return_as='generator')(delayed(trial)(args.out, *o) for o in wanted)
    rows = []
    for i, part in enumerate(found):
        rows.append(part)
        print(f'{i + 1} of {len(wanted)}: {", ".join(map(str, (wanted[i][0], wanted[i][1], wanted[i][3])))}', flush=True)
    pd.concat(rows).to_csv(RESULTS/'explore-v4.csv', index=False, float_format='%.6g')


if __name__ == '__main__': main()
