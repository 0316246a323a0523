"""The setting that `explore_v4.py` found, once, on sessions that were never looked at. Writes nbs/results/confirm-v4-SESSION.csv and confirm-v4-stimuli.csv.

    python tests/benchmarks/confirm_v4.py [--out runs/confirm] [--jobs 2] [--tables]

An interrupted run goes on where it stopped; `--tables` writes the tables of what is there and trains nothing.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from record import RESULTS

from protoalign.artefacts import compare_over_stimuli
from protoalign.experiment import run
from protoalign.outcomes import read_run
from protoalign.presets import PRESETS

_PRESET = PRESETS['vision-v4']
CONFIRM = {s: replace(_PRESET, options={'session': s}, arms=('vanilla', 'protoalign', 'shuffled', 'cka'), sweep=(), settings=replace(_PRESET.settings, layer='layer3', precision='bfloat16'))
           for s in ('210225', '190923')}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', default='runs/confirm')
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--tables', action='store_true')
    args, over = parser.parse_args(), []
    for session, config in CONFIRM.items():
        out = Path(args.out)/session
        if not args.tables: run(config, out, n_jobs=args.jobs)
        done = read_run(out)
        done.results[done.results['split'] == 'test'].to_csv(RESULTS/f'confirm-v4-{session}.csv', index=False, float_format='%.6g')
        over.append(compare_over_stimuli(done.stimuli).assign(session=session))
    pd.concat(over).to_csv(RESULTS/'confirm-v4-stimuli.csv', index=False, float_format='%.6g')


if __name__ == '__main__': main()
