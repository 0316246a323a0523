"Directories of runs whose numbers were made up, so that reports and verdicts can be tested without training."
import json

import numpy as np
import pandas as pd

from protoalign.arms import PROTOTYPE_ARMS
from protoalign.artefacts import save_artefact
from protoalign.cell import COLUMNS
from protoalign.config import cells
from protoalign.directory import open_run
from protoalign.score import METRICS

LAYERS = 'layer1', 'layer2', 'layer3'


def value_of(cell, metric, gain, rng):
    dose = np.sqrt((.5 if cell.lam is None else cell.lam)/.5) if cell.arm == 'protoalign' else 1
    return .9 + .001*rng.normal() if metric == 'task_accuracy' else .2 + dose*gain.get(cell.arm, 0) + .002*rng.normal()


def make_run(out, config, gain=None, missing=(), artefacts=True, spread=.03):
    "Every cell but the missing ones: arms gain over 0.2, tasks are at 0.9, scores scatter a little over seeds and stimuli."
    open_run(config, out)
    for i, cell in enumerate(c for c in cells(config) if c.name not in missing):
        rng, rows = np.random.default_rng([cell.seed, i]), []
        common = dict.fromkeys(COLUMNS) | dict(dataset=config.dataset, target='simulated-01', task=config.dataset, arm=cell.arm, seed=cell.seed, split_seed=cell.seed, lam=cell.lam)
        if cell.arm in PROTOTYPE_ARMS: common |= dict(K=config.settings.K, tau=config.settings.tau)
        at = {m: value_of(cell, m, gain or {}, rng) for m in METRICS}
        for metric, value in at.items():
            for layer in [''] if metric == 'task_accuracy' else LAYERS:
                rows += [{**common, 'layer': layer, 'split': split, 'metric': metric, 'n': 40, 'value': value} for split in ('val', 'test')]
        pd.DataFrame(rows, columns=COLUMNS).to_csv(out/'cells'/f'{cell.name}.csv', index=False)
        scatter = rng.normal(size=(40, len(METRICS)))
        scores = pd.DataFrame(np.array(list(at.values())) + spread*(scatter - scatter.mean(0)), columns=list(at)).drop(columns='task_accuracy')
        if artefacts: save_artefact(out/'artefacts'/f'{cell.name}.npz', scores, range(40))
    (out/'environment.json').write_text(json.dumps([dict(command='protoalign run <made up> & "quoted"', python='3')]*2))
    return out
