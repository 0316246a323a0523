"""Steering at real size: specificity and dose, on simulated brains and on monkey V4; written to nbs/results/steering.csv

    PROTOALIGN_DATA=FOLDER OMP_NUM_THREADS=1 python tests/benchmarks/steering.py [--datasets planted digits macaque-v4] [--seeds 3] [--steered 6] [--epochs N] [--images N] [--out FOLDER]

Every row says how large the run was: epochs, task images, seeds. Prototypes are taken by size, the largest first, never by result. Rows of other data sets that are in the file stay."""
import argparse, tempfile, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from protoalign.datasets import load
from protoalign.check import check
from protoalign.cell import start_model
from protoalign.presets import PRESETS
from protoalign.seed_data import seed_data, target_responses
from protoalign.judge import make_judge
from protoalign.steering import dose_response, specificity, steerable

OUT = Path(__file__).resolve().parents[2]/'nbs'/'results'
KINDS = { # K, share of the brain in the clustering
    'planted': (12, 1.), # the gratings, one prototype each
    'digits': (10, .5),
    'macaque-v4': (20, .5),
}
DOSES = -4., -1., -.3, 0., .3, 1., 4.


def config_of(dataset, epochs, images):
    k, share = KINDS[dataset]
    c = PRESETS[dataset]
    s = replace(c.settings, K=k, brain_weight=share, every=1, epochs=epochs or (3 if c.task else 6), lr=.001 if c.task else .003)
    return replace(c, settings=s, task_images=images or c.task_images)


def steering_data(config, shuffled=False):
    "Start, Learner maker and judge; the split, the start and the library are those of seed 0 for all seeds of the training."
    data, dataset, y = seed_data(config, 0), load(config.dataset, **config.options), target_responses(config).values
    if config.task is None and config.task_images: raise SystemExit('--images is for data sets with a task of their own')
    split, stimuli = dataset.split(0), data.stimuli
    if shuffled: y = y[np.random.default_rng(0).permutation(len(y))]
    stimuli = replace(stimuli, responses=y[split.train])
    with tempfile.TemporaryDirectory() as folder: start = start_model(config, data, 0, Path(folder)/'start.safetensors')
    library = steerable(start, data.task, stimuli, config.settings).proto_loss.library
    judge = make_judge(library, stimuli.x, data.parts['test'][0], y[split.test], np.array(dataset.ids)[split.test], groups=list(np.array(dataset.groups)[split.test]))
    return lambda seed: steerable(start, data.task, stimuli, config.settings, seed, library), judge, library, len(data.task.y_train), dataset.simulated


def steered_numbers(library, n, how='contrast'):
    "The largest prototypes; for the prototype loss, of those that have a direction."
    order = np.argsort(-library.counts, kind='stable')
    return [int(k) for k in order if how == 'contrast' or library.weights[k] > 0][:n]


def specificity_rows(make, judge, library, n_steered, s, seeds, ways):
    for how, weight, others in ways:
        which = steered_numbers(library, n_steered, how)
        if not which: continue
        found = specificity(make, judge, which, s.epochs, s.lr, weight, seeds, others, how)
        prices = found.trainings[found.trainings.steered != ''].price
        sums = found.summary
        yield dict(what='specificity', how=how, weight=weight, others_weight=others, n_steered=len(which), target=sums.diagonal, others=sums.off_diagonal, difference=sums.difference,
                   low=sums.low, high=sums.high, p=sums.p, se_seeds=sums.se_seeds, accuracy=found.trainings.accuracy[found.trainings.steered == ''].mean(), price=prices.mean())
        for name, rows in found.trainings[found.trainings.steered != ''].groupby('steered', sort=False):
            yield dict(what='one prototype', how=how, weight=weight, others_weight=others, prototype=name, n_steered=1, **rows[['target', 'others', 'accuracy', 'price']].mean())


def dose_rows(make, judge, library, n_doses, s, seeds):
    for k in steered_numbers(library, n_doses):
        about, found = dict(how='contrast', prototype=library.names[k], n_steered=1), dose_response(make, judge, k, DOSES, s.epochs, s.lr, seeds)
        for weight, rows in found.table.groupby('weight'): yield dict(about, what='dose', weight=weight, **rows[['target', 'others', 'accuracy']].mean())
        for what, row in found.trend.iterrows(): yield dict(about, what=f'trend of {what}', rho=row.rho, p=row.p, difference=row.span)


def rows_of(dataset, seeds, n_steered, epochs, images, n_doses=2):
    config = config_of(dataset, epochs, images)
    for shuffled in (False, True):
        make, judge, library, n_images, simulated = steering_data(config, shuffled)
        about = dict(dataset=dataset, simulated=simulated, brain='rows shuffled' if shuffled else 'as recorded', network=config.backbone, layer=config.settings.layer, K=config.settings.K,
                     task_images=n_images, n_train=len(judge.ids), n_new=len(judge.ids_new), epochs=config.settings.epochs, seeds=len(seeds), lam=config.settings.lam,
                     no_direction=int((library.weights == 0).sum()))
        ways = [('contrast', 1., 0.)] if shuffled else [('contrast', 1., 0.), ('contrast', -1., 0.), ('softmax', 4., 0.), ('softmax', 4., 1.)]
        for row in specificity_rows(make, judge, library, n_steered, config.settings, seeds, ways): yield {**about, **row}
        if not shuffled: yield from ({**about, **row} for row in dose_rows(make, judge, library, n_doses, config.settings, seeds))


def main(datasets, n_seeds, n_steered, epochs, images, out):
    path = out/'steering.csv'
    for dataset in datasets:
        try: check(config_of(dataset, epochs, images))
        except FileNotFoundError as e:
            print(f'skipped {dataset}: {e}')
            continue
        start, rows = time.time(), []
        for row in rows_of(dataset, tuple(range(n_seeds)), n_steered, epochs, images):
            rows.append(row)
            print(f'{time.time() - start:.0f} s', row, flush=True)
        old = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=['dataset'])
        kept = old[old.dataset != dataset]
        pd.concat([*([kept] if len(kept) else []), pd.DataFrame(rows)], ignore_index=True).round(4).to_csv(path, index=False)
        print(pd.DataFrame(rows).round(3).to_string())


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--datasets', nargs='+', default=list(KINDS), choices=list(KINDS))
    for name, value in (('seeds', 3), ('steered', 6), ('epochs', None), ('images', None)): parser.add_argument(f'--{name}', type=int, default=value)
    parser.add_argument('--out', type=Path, default=OUT)
    a = parser.parse_args()
    main(a.datasets, a.seeds, a.steered, a.epochs, a.images, a.out)
