"The whole path: planted truth is found on held-out stimuli, and a killed run goes on where it stopped."
import os, signal, subprocess, sys, time
from dataclasses import replace

import pandas as pd
import pytest

from conftest import ROOT
from protoalign.experiment import run
from protoalign.presets import PRESETS
from protoalign.library import PrototypeLibrary
from protoalign.report import make_report

SHORT = replace(PRESETS['digits'], n_seeds=2, sweep=(), pretrain_epochs=5, settings=replace(PRESETS['digits'].settings, epochs=6, every=2))


def test_planted_axes_are_learned_from_the_brain_alone(tmp_path):
    "Simulated subjects answer to axes that the classes do not contain; only the arm with their true rows learns them."
    results = run(SHORT, tmp_path)
    at = results[(results.split == 'test') & (results.layer == 'layer2')].pivot_table(index=['metric', 'seed'], columns='arm', values='value')
    for metric in ('cka_debiased', 'rsa_spearman', 'proto_agreement'):
        assert (at.loc[metric, 'protoalign'] > at.loc[metric, 'vanilla']).all(), at
        assert (at.loc[metric, 'protoalign'] > at.loc[metric, 'shuffled']).all(), at
    lib = PrototypeLibrary.load(tmp_path/'libraries'/'protoalign-seed0-lam0.5.safetensors')
    assert len(lib) == 20 and lib.provenance['layer'] == 'layer2'
    refreshes = pd.read_csv(tmp_path/'libraries'/'protoalign-seed0-lam0.5.refreshes.csv')
    assert refreshes.epoch.tolist() == [0, 2, 4] and (refreshes.kept[1:] > .5).all()
    assert make_report(tmp_path).read_text().count('<img') == 6


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_killed_and_run_again(tmp_path):
    words = 'run --seeds 1 --epochs 2 --pretrain-epochs 2 --sweep= --jobs 1 --arms vanilla,protoalign'.split()
    start = [sys.executable, '-c', 'import sys; from protoalign.cli import main; sys.exit(main())', *words]
    env = dict(os.environ, OMP_NUM_THREADS='1')
    subprocess.run([*start, '--out', str(tmp_path/'unbroken')], check=True, cwd=ROOT, env=env, capture_output=True)
    broken = subprocess.Popen([*start, '--out', str(tmp_path/'broken')], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path/'broken').glob('cells/vanilla*.csv')) and broken.poll() is None and time.monotonic() < deadline: time.sleep(.02)
    broken.send_signal(signal.SIGKILL)
    broken.wait()
    first = (tmp_path/'broken'/'cells'/'vanilla-seed0.csv').stat().st_mtime_ns
    subprocess.run([*start, '--out', str(tmp_path/'broken')], check=True, cwd=ROOT, env=env, capture_output=True)
    assert (tmp_path/'broken'/'cells'/'vanilla-seed0.csv').stat().st_mtime_ns == first, 'a finished cell was run again'
    a, b = (pd.read_csv(tmp_path/name/'results.csv') for name in ('unbroken', 'broken'))
    pd.testing.assert_frame_equal(a, b, check_exact=True)


def test_jobs_do_not_change_numbers(tmp_path):
    "Cells in two processes give what they give one after the other, at equal thread count."
    import torch
    tiny = replace(SHORT, pretrain_epochs=1, settings=replace(SHORT.settings, epochs=1), arms=('vanilla', 'protoalign'))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, two = run(tiny, tmp_path/'one', n_jobs=1), run(tiny, tmp_path/'two', n_jobs=2)
    finally: torch.set_num_threads(threads)
    pd.testing.assert_frame_equal(one, two, rtol=1e-5)


def test_any_layer_is_scored_and_twice_is_once(tmp_path):
    "A trained layer outside the backbone's usual ones is scored too; repeated arms and λ are one cell."
    tiny = replace(SHORT, n_seeds=1, pretrain_epochs=0, sweep=(0., .1, .1), arms=('vanilla', 'protoalign', 'vanilla'),
                   settings=replace(SHORT.settings, layer='layer2.0', epochs=1))
    results = run(tiny, tmp_path)
    assert set(results.layer) == {'', 'layer1', 'layer2', 'layer2.0', 'layer3'}
    assert results.groupby(['arm', 'lam'], dropna=False).ngroups == 4
    page = make_report(tmp_path).read_text()
    assert 'No figure' not in page and 'one seed' in page.lower()
