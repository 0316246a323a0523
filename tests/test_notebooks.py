"Every notebook runs from a clean start; cells on real data run where the data are."
import json, subprocess, sys
from pathlib import Path

import pytest

from conftest import ROOT, needs_data

NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not p.name.startswith(('.', '_')) and '.ipynb_checkpoints' not in p.parts)
ON_REAL_DATA = [p for p in NOTEBOOKS if '#| realdata' in p.read_text(encoding='utf-8')]
REAL_DATA = 'macaque_v4', 'objects92', 'cifar10h', 'cifar_resnet_weights', 'esc10', 'natsound165', 'osie_gaze', 'digits69_fmri'


def run_notebook(path, *flags):
    command = [str(Path(sys.executable).parent/'nbdev-test'), str(path), '--n-workers', '0', *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def name(path): return path.relative_to(ROOT/'nbs').as_posix()


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_notebook(path): run_notebook(path)


@needs_data(*REAL_DATA)
@pytest.mark.parametrize('path', ON_REAL_DATA, ids=name)
def test_notebook_on_real_data(path): run_notebook(path, '--flags', 'realdata')


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_outputs_are_fit_to_keep(path):
    "Saved outputs: no errors, no warnings, no paths of somebody's machine, no state of progress bars."
    page = json.loads(path.read_text(encoding='utf-8'))
    assert 'widgets' not in page['metadata']
    for cell in page['cells']:
        for out in cell.get('outputs', []):
            text = ''.join(out.get('text', [])) + ''.join(out.get('data', {}).get('text/plain', []))
            assert out['output_type'] != 'error', text
            assert 'Warning' not in text and '/root/' not in text and '/tmp/' not in text and '/home/' not in text, text
