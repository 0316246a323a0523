"The repository keeps its promises: one source, generated files that are fresh, imports in order, functions that are short."
import ast, json, re, runpy, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

import pytest

import protoalign
from conftest import ROOT

MODULES = sorted(p for p in (ROOT/'protoalign').glob('*.py') if not p.name.startswith('_'))
LIBRARY_NOTEBOOKS = sorted((ROOT/'nbs').glob('[0-9]*_*.ipynb'))
MEASURES = 'style', 'sources', 'data', 'datasets', 'image_sets', 'sound_sets', 'quality', 'fmri', 'bids', 'maps', 'nsd', 'nsd_simulated', 'meeg', 'files', 'noise', 'ranks', 'rsa', 'cka', 'crossnobis', 'ridge', 'rsa_models', 'searchlight', 'shape', 'encoding', 'banded', 'behaviour', 'dimensionality', 'inference', 'bootstrap', 'stats', 'calibration', 'planted', 'controls', 'prototype_alignment', 'registry', 'scores', 'artefacts', 'layer_sweep', 'reduce', 'clusters', 'joint', 'subjects', 'library', 'score', 'choose_k', 'sharedness', 'naming', 'views', 'atlas', 'compare', 'share', 'human_study', 'cli'


def cells(path, kind='code'): return [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]


def test_modules_equal_a_fresh_export(tmp_path):
    for name in ('nbs', 'protoalign'): shutil.copytree(ROOT/name, tmp_path/name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'settings.ini', 'setup.py', 'README.md'): shutil.copy(ROOT/name, tmp_path/name)
    for p in (tmp_path/'protoalign').glob('*.py'):
        if p.name != '__init__.py': p.unlink()
    subprocess.run([str(Path(sys.executable).parent/'nbdev-export')], cwd=tmp_path, check=True)
    assert sorted(p.name for p in (tmp_path/'protoalign').glob('*.py')) == sorted(p.name for p in (ROOT/'protoalign').glob('*.py'))
    for p in (ROOT/'protoalign').glob('*.py'): assert p.read_text() == (tmp_path/'protoalign'/p.name).read_text(), f'{p.name} is stale: run nbdev-export'


def test_version():
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(ROOT/'settings.ini')
    assert config['DEFAULT']['version'] == protoalign.__version__


def test_readme_equals_index():
    fresh = runpy.run_path(str(ROOT/'.ci'/'readme.py'))['readme']()
    assert fresh == (ROOT/'README.md').read_text(encoding='utf-8'), 'README.md is stale: run python .ci/readme.py'


def test_ci_runs_the_command_of_the_readme():
    commands = re.findall(r'```(?:sh|bash)\n(.*?)\n```', (ROOT/'README.md').read_text(encoding='utf-8'), flags=re.S)
    assert len(commands) >= 2 and 'protoalign run' in commands[0] and 'pytest' in commands[1]
    assert (ROOT/'.ci'/'run').read_text().rstrip().endswith(commands[1])


def test_imports_go_down():
    "A notebook imports only what comes before it in the order of reading, which is that of the file names."
    place = {re.sub(r'^\d+_', '', p.stem): i for i, p in enumerate(LIBRARY_NOTEBOOKS)}
    for p in LIBRARY_NOTEBOOKS:
        for source in cells(p):
            if not source.startswith('#| export'): continue
            for other in re.findall(r'^\s*from protoalign\.(\w+) import', source, flags=re.M):
                assert place[other] < place[re.sub(r'^\d+_', '', p.stem)], f'{p.name} imports {other}'


@pytest.mark.parametrize('module', [p.stem for p in MODULES])
def test_imports_in_a_bare_process(module):
    "Each module imports alone; those that need neither torch nor fastai do not load them."
    unwanted = ['torch', 'fastai'] if module in MEASURES else []
    code = f'import sys, protoalign.{module}; print([m for m in {unwanted} if m in sys.modules])'
    done = subprocess.run([sys.executable, '-W', 'error::FutureWarning:protoalign', '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '[]' and not done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize('path', LIBRARY_NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_stay_readable(path):
    code, prose = cells(path), cells(path, 'markdown')
    exported = [c for c in code if c.startswith('#| export')]
    assert len(prose) >= len(exported) - 1, 'a prose cell for each exported one'
    assert sum(c.startswith('#| hide') for c in code) <= 2, 'hide almost nothing'
    assert prose[0].startswith('# ') and '\n> ' in prose[0], 'a title and what the page is about'


@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.stem)
def test_functions_are_short_and_said(path):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
        if isinstance(node, ast.FunctionDef): assert node.end_lineno - node.lineno < 40, f'{path.name}: {node.name} is too long'
        public = not node.name.startswith('_') and node.col_offset == 0
        if public: assert ast.get_docstring(node), f'{path.name}: {node.name} has no docstring'


def test_no_data_is_committed():
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked: pytest.skip('not a git checkout')
    allowed = {'.py', '.ipynb', '.md', '.toml', '.ini', '.csv', '.png', ''}
    assert {Path(p).suffix for p in tracked} <= allowed | {p for p in ('.gitignore', '.gitattributes')}
    assert all((ROOT/p).stat().st_size < 600_000 for p in tracked if (ROOT/p).exists())
