"""False positives and coverage of every test over 2,000 worlds of each kind. Writes nbs/results/calibration.csv.

    OMP_NUM_THREADS=1 python tests/benchmarks/calibration.py [n_worlds] [file for the table]

About three minutes on one core. The worlds are those of `protoalign.calibration`, numbered from 0; the page reruns the first hundred.
"""
import sys, time
from pathlib import Path

import pandas as pd

from protoalign.calibration import CHECKS, calibrate

OUT = Path(__file__).resolve().parents[2]/'nbs'/'results'/'calibration.csv'


def main(n_worlds=2000, out=OUT):
    start = time.perf_counter()
    table = calibrate(n_worlds)
    table.round(4).to_csv(out, index=False)
    print(table.round(4).to_string())
    print(f'{len(CHECKS)} kinds of worlds, {n_worlds} each: {time.perf_counter() - start:.0f} s; outside of the limit though ours: {(~table.within & (table.role == "ours")).sum()}')


if __name__ == '__main__': main(*(t(a) for t, a in zip((int, Path), sys.argv[1:])))
