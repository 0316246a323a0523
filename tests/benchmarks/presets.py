"""The presets of the proposal with all arms and five seeds, and what came out. Writes nbs/results/preset-NAME.csv (test stimuli, trained layer), preset-NAME-stimuli.csv, preset-NAME-outcomes.csv, preset-NAME-left-out.csv and, where something was chosen, preset-NAME-trials.csv.

    python tests/benchmarks/presets.py [NAMES] [--out runs] [--jobs 2] [--tables]

An interrupted run goes on where it stopped; `--tables` writes the tables of what is there and trains nothing.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
from record import RESULTS

from protoalign.arms import ARMS
from protoalign.artefacts import compare_over_stimuli
from protoalign.directory import read_results
from protoalign.experiment import run
from protoalign.figures import left_out
from protoalign.outcomes import judge_run, read_run
from protoalign.presets import PRESETS

_V4 = PRESETS['vision-v4']
RUNS = {'digits': replace(PRESETS['digits'], arms=ARMS), 'digits-grid': PRESETS['digits-grid'], 'digits69': PRESETS['digits69'],
        'vision-v4': replace(_V4, settings=replace(_V4.settings, precision='bfloat16')), 'vision-it': PRESETS['vision-it']}


def _trials(config, out):
    "What decided, on validation stimuli."
    table = read_results(out/'trials.csv')
    return table[(table['metric'] == config.tune_metric) & (table['layer'] == config.settings.layer)][['arm', 'trial', 'seed', 'K', 'tau', 'lam', 'split', 'metric', 'n', 'value', 'chosen']]


def _left_out(config, out):
    "Prototypes that the loss left out, by arm."
    return pd.DataFrame([(arm, *counted) for arm, counted in left_out(out, config).items()], columns=['arm', 'left_out', 'prototypes'])


def write_tables(name, out):
    "What is worth keeping of a run."
    done, kept = read_run(out), dict(index=False, float_format='%.6g')
    rows = done.results.query('split == "test" and role != "trial"')
    rows[rows['layer'].isin(['', done.config.settings.layer])].to_csv(RESULTS/f'preset-{name}.csv', **kept)
    if done.stimuli is not None: compare_over_stimuli(done.stimuli).to_csv(RESULTS/f'preset-{name}-stimuli.csv', **kept)
    _left_out(done.config, out).to_csv(RESULTS/f'preset-{name}-left-out.csv', index=False)
    if done.config.tune: _trials(done.config, out).to_csv(RESULTS/f'preset-{name}-trials.csv', **kept)
    judge_run(out).table.to_csv(RESULTS/f'preset-{name}-outcomes.csv', index=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', default=list(RUNS), metavar='NAMES', help=', '.join(RUNS))
    parser.add_argument('--out', default='runs')
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--tables', action='store_true')
    args = parser.parse_args()
    for name in args.names:
        out = Path(args.out)/name
        if not args.tables: run(RUNS[name], out, n_jobs=args.jobs)
        write_tables(name, out)


if __name__ == '__main__': main()
