"Where the tests find the repository and, if they are there, the real recordings."
import os

if 'PYTEST_XDIST_WORKER' in os.environ: # workers share the cores: one thread each, set before NumPy and torch are loaded
    for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ.setdefault(name, '1')
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ROOT.parent/'shared'/'data'
if 'PROTOALIGN_DATA' not in os.environ and BESIDE.is_dir(): os.environ['PROTOALIGN_DATA'] = str(BESIDE)


def has_data(*folders): return all((Path(os.environ.get('PROTOALIGN_DATA', 'nowhere'))/f).is_dir() for f in folders)


def needs_data(*folders):
    "Skip, saying so, where the user's folders are not at hand."
    return pytest.mark.skipif(not has_data(*folders), reason=f'needs {", ".join(folders)}: set PROTOALIGN_DATA to the folder above them')
