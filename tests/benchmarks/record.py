"What the benchmarks share: the machine they ran on, the memory they took, and where their tables are kept."
import os, platform, tempfile
from pathlib import Path

import pandas as pd
from threadpoolctl import threadpool_info

RESULTS = Path(__file__).resolve().parents[2]/'nbs'/'results'


def machine():
    "Processor, threads and load, as columns of a table."
    cpu = next((line.split(':')[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name')), platform.processor()) if os.path.exists('/proc/cpuinfo') else platform.processor()
    return dict(machine=f'{cpu}, {os.cpu_count()} cores', threads=max(o['num_threads'] for o in threadpool_info()), load=round(os.getloadavg()[0], 1))


def peak_gb():
    "Largest memory of this process so far (Linux), in GB."
    status = Path('/proc/self/status')
    return int(status.read_text().split('VmHWM:')[1].split()[0])/2**20 if status.exists() else float('nan')


def table_path(name, out=None, quick=False):
    "Where a table goes: where the user says, else `nbs/results`; a small run never takes the place of a committed table."
    return Path(out) if out else (Path(tempfile.gettempdir()) if quick else RESULTS)/f'{name}.csv'


def keep(table, path, by, digits=6):
    "Put rows in the place of those of the same `by`, a list of columns, that the file holds."
    old, key = pd.read_csv(path) if path.exists() else table[:0], lambda rows: pd.MultiIndex.from_frame(rows[by].astype(str))
    pd.concat([o for o in (old[~key(old).isin(key(table))], table) if len(o)]).to_csv(path, index=False, float_format=f'%.{digits}g')
