"An experiment survives what happens to experiments: kills, company, full disks, and the wish to look at the test set."
import json, os, subprocess, sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import few_digits # registers the data set
from conftest import ROOT, needs_data
from protoalign.arms import Settings
from protoalign.cell import cell_path, run_cell
from protoalign.cli import main
from protoalign.config import Cell, Config, cells, make_config, to_json
from protoalign.datasets import LOADERS, dataset_loader, load
from protoalign.directory import gather, open_run, read_errors, read_results
from protoalign.experiment import CellsFailed, ready_cells, run
from protoalign.networks import BACKBONES
from protoalign.presets import PRESETS, quick
from protoalign.seed_data import seed_split

FEW_DIGITS = Path(few_digits.__file__)
TINY = Config(dataset='few-digits', n_seeds=2, pretrain_epochs=1, sweep=(.1,), tune={'K': [5, 10], 'lam': [.1, .5]}, arms=('vanilla', 'protoalign', 'cka'),
              settings=Settings('layer2', grid=2, epochs=2, every=1, K=5, batch_size=32))


def tree(out):
    "Everything that carries a number, file by file."
    out = Path(out)
    kept = [*(p for p in (out/'results.csv', out/'trials.csv', out/'chosen.json') if p.exists()), *(p for d in ('cells', 'trials', 'libraries', 'artefacts', 'starts') for p in (out/d).iterdir())]
    return {str(p.relative_to(out)): p.read_bytes() for p in kept}


def same(a, b):
    a, b = tree(a), tree(b)
    assert a.keys() == b.keys()
    assert [k for k in a if a[k] != b[k]] == []


def started(job, out, *more, config=TINY):
    "A run in a process of its own, one thread."
    path = out.with_suffix('.json')
    path.write_text(to_json(config))
    return subprocess.Popen([sys.executable, str(FEW_DIGITS), job, str(path), str(out), *more], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'))


def ended(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'unbroken'
    (out.parent/'seconds').write_text(str(ended(started('run', out))['seconds']))
    return out


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork and SIGKILL')
def test_killed_at_ten_random_moments(unbroken, tmp_path):
    "kill -9 ten times, wherever it happens; what comes out is the unbroken run's, byte for byte, and nothing half-written stays."
    seed, seconds = str(int.from_bytes(os.urandom(2), 'big')), float((unbroken.parent/'seconds').read_text())
    killed = ended(started('kill', tmp_path/'broken', seed, str(.7*seconds)))
    print(f'seed {seed}; seconds, files and half-written files at each kill: {killed}')
    assert len(killed) == 10
    for out in tmp_path.glob('broken*/'):
        same(unbroken, out)
        assert list(out.rglob('*.partial')) == []


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork and SIGKILL')
def test_killed_with_a_file_half_written(tmp_path):
    "The rarer moments: the first process dies with its first file half-written, the second with its second, and so on."
    config = replace(TINY, n_seeds=1, arms=('protoalign',), sweep=(), n_trials=1, settings=replace(TINY.settings, epochs=1))
    kills = ended(started('writes', tmp_path/'broken', config=config))
    ended(started('run', tmp_path/'whole', config=config))
    assert kills >= 4
    same(tmp_path/'whole', tmp_path/'broken')
    assert list((tmp_path/'broken').rglob('*.partial')) == []


def test_two_processes_share_a_directory(unbroken, tmp_path):
    "Started in the same moment on an empty directory: each cell is trained once, by one of them, and both see the whole result."
    said = [ended(p) for p in [started('run', tmp_path/'shared') for _ in range(2)]]
    assert said[0]['rows'] == said[1]['rows']
    same(unbroken, tmp_path/'shared')
    trained = [cell for o in said for cell in o['trained']]
    assert len(trained) == len(set(trained)) == 8 + 8 and all(o['trained'] for o in said), said
    assert len(json.loads((tmp_path/'shared'/'environment.json').read_text())) in (1, 2)


def test_nothing_of_the_test_stimuli_is_in_a_trial(unbroken):
    trials, results = read_results(unbroken/'trials.csv'), read_results(unbroken/'results.csv')
    assert set(trials.split) == {'val'} and set(results.split) == {'val', 'test'}
    assert set(trials.seed) == {0}, 'the first seed carries the trials'
    assert trials.groupby('arm').trial.nunique().eq(4).all()
    at = trials[(trials.metric == 'cka_debiased') & (trials.layer == 'layer2')]
    for arm, rows in at.groupby('arm'):
        best = rows.loc[rows.value.idxmax()]
        mine = results[(results.arm == arm) & (results.role == 'main')]
        assert rows.chosen.sum() == 1 and best.chosen and mine.chosen.all()
        assert set(mine.lam) == {best.lam} and (arm == 'cka' or set(mine.K) == {best.K})
    sweep = results[results.role == 'sweep']
    assert set(sweep.lam) == {.1} and not sweep.chosen.any() and set(sweep.K) == set(results[(results.arm == 'protoalign') & (results.role == 'main')].K)


def test_test_stimuli_cannot_move_the_choice(tmp_path):
    "Other responses to the test stimuli leave every trial as it was, byte for byte."
    ten = load('few-digits')
    rows = seed_split(TINY, ten, 0).test
    def upset(r):
        values = r.values.copy()
        values[rows] = np.random.default_rng(5).normal(size=values[rows].shape)
        return replace(r, values=values)
    dataset_loader('upset-digits')(lambda data_dir=None: replace(ten, responses={k: upset(r) for k, r in ten.responses.items()}))
    one = replace(TINY, n_seeds=1, arms=('protoalign',), n_trials=2, sweep=(), settings=replace(TINY.settings, epochs=1))
    a, b = run(one, tmp_path/'a'), run(replace(one, dataset='upset-digits'), tmp_path/'b')
    for name in ('000', '001'):
        x, y = (pd.read_csv(tmp_path/d/'trials'/f'protoalign-seed0-trial{name}.csv').drop(columns=['dataset', 'task']) for d in 'ab')
        pd.testing.assert_frame_equal(x, y, check_exact=True)
    assert not np.allclose(a[a.split == 'test'].value, b[b.split == 'test'].value)


def test_optuna_goes_on_as_it_began(tmp_path):
    pytest.importorskip('optuna')
    config = replace(TINY, n_seeds=1, arms=('protoalign',), sweep=(), n_trials=4, search='optuna', settings=replace(TINY.settings, epochs=1))
    run(config, tmp_path/'whole')
    out = open_run(config, tmp_path/'half')
    for _ in range(2):
        cell, = ready_cells(config, config.tune, out)
        run_cell(config, cell, out)
    run(config, out)
    for p in (tmp_path/'whole'/'trials').iterdir(): assert p.read_bytes() == (out/'trials'/p.name).read_bytes()
    assert (tmp_path/'whole'/'results.csv').read_bytes() == (out/'results.csv').read_bytes()


def test_a_full_disk_is_told_and_the_rest_goes_on(tmp_path, monkeypatch):
    "No space for one library: its cell fails, the others finish, the next run makes it good."
    from protoalign.library import PrototypeLibrary
    save, config = PrototypeLibrary.save, replace(TINY, n_seeds=1, tune={}, settings=replace(TINY.settings, epochs=1))
    def full(self, path):
        if 'protoalign-seed0-lam0.1' in str(path): raise OSError(28, 'No space left on device', str(path))
        return save(self, path)
    monkeypatch.setattr(PrototypeLibrary, 'save', full)
    with pytest.raises(CellsFailed, match='1 cells failed .*No space left on device'): run(config, tmp_path)
    assert list(read_errors(tmp_path)) == ['protoalign-seed0-lam0.1']
    assert 'Traceback' in read_errors(tmp_path)['protoalign-seed0-lam0.1']
    assert set(pd.read_csv(tmp_path/'results.csv').arm) == {'vanilla', 'protoalign', 'cka'}
    monkeypatch.setattr(PrototypeLibrary, 'save', save)
    results = run(config, tmp_path)
    assert read_errors(tmp_path) == {} and set(results.role) == {'main', 'sweep'}


def test_a_failed_trial_leaves_its_arm_without_a_choice(tmp_path, monkeypatch):
    import protoalign.cell
    train, config = protoalign.cell.train_arm, replace(TINY, n_seeds=1, sweep=(), settings=replace(TINY.settings, epochs=1))
    def breaks(arm, start, task, stimuli, settings, *rest):
        if arm == 'cka' and settings.lam == .5: raise MemoryError('out of memory')
        return train(arm, start, task, stimuli, settings, *rest)
    monkeypatch.setattr(protoalign.cell, 'train_arm', breaks)
    with pytest.raises(CellsFailed, match='1 cells wait for a choice') as e: run(config, tmp_path)
    assert list(e.value.failed) == ['cka-seed0-trial001'] and e.value.waiting == ['cka-seed0-tuned']
    assert set(read_results(tmp_path/'results.csv').arm) == {'vanilla', 'protoalign'}


def test_a_run_of_before_goes_on(tmp_path):
    "config.json without the fields that came later, and cells without the columns that came later."
    config = replace(TINY, n_seeds=1, tune={}, sweep=(), arms=('vanilla',), settings=replace(TINY.settings, epochs=1))
    run(config, tmp_path)
    held = json.loads((tmp_path/'config.json').read_text())
    for name in ('folds', 'task_options', 'task_size', 'task_held_out', 'tune', 'n_trials', 'tune_metric', 'tune_seeds', 'search'): held.pop(name)
    (tmp_path/'config.json').write_text(json.dumps(held))
    path = cell_path(tmp_path, Cell('vanilla', 0))
    pd.read_csv(path).drop(columns=['role', 'trial', 'chosen', 'fold']).to_csv(path, index=False)
    results = run(config, tmp_path)
    assert set(results.role) == {'main'} and not results.chosen.any()


def test_folds_test_every_stimulus_once():
    data = load('few-digits')
    splits = [seed_split(replace(TINY, folds=5), data, s) for s in range(5)]
    assert sorted(i for s in splits for i in s.test) == list(range(160))
    for s in splits: assert not set(s.test) & (set(s.train) | set(s.val))


def test_every_preset_is_what_its_file_says():
    for name, config in PRESETS.items():
        for c in (config, quick(config)): assert make_config(json.loads(to_json(c))) == c, name
        assert len({c.name for c in cells(config)}) == len(cells(config))


def test_a_new_process_knows_the_networks_of_the_presets():
    "Workers import the library, not the page of the presets."
    names = sorted({c.backbone for c in PRESETS.values()})
    code = f'from protoalign.seed_data import backbone; import sys; print(*(backbone(n).name for n in {names})); assert "protoalign.presets" not in sys.modules'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split() == names


def test_workers_know_what_a_script_has_named(tmp_path, monkeypatch):
    "A network and a data set that only this process can name."
    small = BACKBONES['digits-resnet8']
    monkeypatch.setitem(BACKBONES, 'mine', replace(small, name='mine', make=lambda data_dir=None: small.make(data_dir)))
    monkeypatch.setitem(LOADERS, 'my-digits', lambda data_dir=None: replace(few_digits.few_digits(data_dir), name='my-digits'))
    config = Config(dataset='my-digits', backbone='mine', n_seeds=1, pretrain_epochs=1, arms=('vanilla', 'protoalign'), settings=replace(TINY.settings, epochs=1))
    results = run(config, tmp_path, n_jobs=2)
    assert set(results.arm) == {'vanilla', 'protoalign'} and read_errors(tmp_path) == {}
    assert os.getpid() not in {json.loads(p.read_text())['pid'] for p in (tmp_path/'logs').iterdir()}


def test_dask_gives_the_same(tmp_path):
    "A cluster of two workers on this machine, against one process."
    pytest.importorskip('distributed')
    import torch
    config = Config(n_seeds=1, pretrain_epochs=0, arms=('vanilla', 'protoalign'), settings=Settings('layer2', grid=2, epochs=1))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, two = run(config, tmp_path/'one'), run(config, tmp_path/'two', n_jobs=2, backend='dask')
    finally: torch.set_num_threads(threads)
    pd.testing.assert_frame_equal(one, two, rtol=1e-5)
    pids = {json.loads(p.read_text())['pid'] for p in (tmp_path/'two'/'logs').iterdir()}
    assert os.getpid() not in pids


def test_slurm_script_of_the_tutorial():
    "What dask-jobqueue would hand to SLURM: one thread a worker, the memory asked for."
    jobqueue = pytest.importorskip('dask_jobqueue')
    cluster = jobqueue.SLURMCluster(cores=1, processes=1, memory='4GB', walltime='04:00:00', queue='short', scheduler_options={'dashboard_address': None})
    try: script = cluster.job_script()
    finally: cluster.close()
    for line in ('#SBATCH -p short', '#SBATCH --cpus-per-task=1', '#SBATCH -t 04:00:00', '--nthreads 1'): assert line in script, script


def test_nsd_and_imagenet_on_made_files(tmp_path):
    "The layout of NSD and of ImageNet, SIMULATED content, the preset in its quick size."
    pytest.importorskip('h5py'), pytest.importorskip('efficientnet_lite_pytorch')
    from protoalign.image_folder import make_image_folder
    from protoalign.nsd_simulated import make_nsd_files
    make_nsd_files(tmp_path/'nsd', n_sessions=3, n_trials=60, n_images=400, n_shared=20, shape=(7, 8, 6))
    make_image_folder(tmp_path/'imagenet')
    config = quick(PRESETS['nsd-imagenet'])
    config = replace(config, options={**config.options, 'size': None}, task_options={'size': 64, 'per_class': 10}, task_images=30, stimulus_size=64, n_seeds=1, sweep=(), arms=('vanilla', 'protoalign'),
                     settings=replace(config.settings, epochs=1, K=6, batch_size=16))
    results = run(config, tmp_path/'run', tmp_path)
    assert set(results.arm) == {'vanilla', 'protoalign'} and np.isfinite(results[results.metric == 'cka_debiased'].value).all()


@needs_data('objects92', 'cifar10h')
def test_vision_it_in_the_smallest_size(tmp_path):
    pytest.importorskip('efficientnet_lite_pytorch')
    config = quick(PRESETS['vision-it'])
    config = replace(config, n_seeds=1, arms=('vanilla', 'protoalign'), tune={'K': [5, 20]}, n_trials=None, task_images=60, task_held_out=20, task_size=32, stimulus_size=32, pretrain_epochs=1,
                     settings=replace(config.settings, epochs=1))
    with pytest.warns(UserWarning, match='K = 20 skipped: more than a fifth of the 58 training stimuli'): results = run(config, tmp_path)
    assert set(results.fold) == {0} and set(results[results.arm == 'protoalign'].K) == {5}


@needs_data('digits69_fmri')
def test_digits69_in_the_smallest_size(tmp_path):
    config = replace(quick(PRESETS['digits69']), n_seeds=1, sweep=(), arms=('vanilla', 'protoalign'))
    results = run(replace(config, settings=replace(config.settings, epochs=1)), tmp_path)
    assert results[(results.split == 'test') & (results.metric == 'cka_debiased')].n.eq(10).all()


@needs_data('macaque_v4', 'cifar10h', 'cifar_resnet_weights')
def test_vision_v4_says_what_it_will_take(tmp_path, capsys):
    config = to_json(replace(quick(PRESETS['vision-v4']), n_seeds=1, arms=('vanilla', 'protoalign'), sweep=(), task_images=128))
    (tmp_path/'small.json').write_text(config)
    assert main(['run', str(tmp_path/'small.json'), '--dry-run', '--out', str(tmp_path/'run')]) == 0
    said = capsys.readouterr().out
    assert '2 cells, 0 of them done' in said and 'GB for each' in said and not (tmp_path/'run').exists()
