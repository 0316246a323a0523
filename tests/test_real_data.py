"The real path, as small as it can be, and published facts about the recordings."
import numpy as np
import pandas as pd
import pytest
from dataclasses import replace

from conftest import needs_data


@needs_data('macaque_v4', 'cifar10h', 'cifar_resnet_weights')
def test_macaque_v4_from_end_to_end(tmp_path):
    from protoalign.cli import main
    words = f'run --dataset macaque-v4 --session 201025 --task cifar10h --seeds 1 --epochs 1 --task-images 256 --stimulus-size 32 --arms untuned,protoalign --jobs 1 --out {tmp_path/"run"}'
    assert main(words.split()) == 0
    results = pd.read_csv(tmp_path/'run'/'results.csv').set_index(['arm', 'split', 'metric', 'layer']).sort_index()['value']
    assert results.loc['untuned', 'test', 'encoding_r', 'layer2'] > .4
    assert results.loc['untuned', 'test', 'task_accuracy'].iloc[0] == pytest.approx(.81, abs=.01)
    assert 'GPL-3.0' in (tmp_path/'run'/'report.html').read_text()


@needs_data('macaque_v4')
def test_shared_photographs_fall_on_one_side():
    from protoalign.data import split_stimuli
    from protoalign.datasets import load
    a, b = load('macaque-v4', session='210322'), load('macaque-v4', session='210325')
    side = [{g: i for i, rows in enumerate(split_stimuli(d.groups, seed=s)) for g in np.array(d.groups)[rows]} for s, d in enumerate((a, b))]
    shared = set(a.groups) & set(b.groups)
    assert len(shared) == 600
    assert all((side[0][g] == 2) == (side[1][g] == 2) for g in shared)


@needs_data('macaque_v4')
def test_shuffled_photographs_predict_nothing():
    "The permuted control of the recordings' own page: no encoding without the right order."
    from protoalign.layers import pool
    from protoalign.datasets import load
    from protoalign.encoding import encoding_score
    from protoalign.networks import prepare
    d = load('macaque-v4', session='190923')
    x, y = pool(prepare(d.stimuli, 48), 8).numpy(), next(iter(d.responses.values())).values
    order = np.random.default_rng(0).permutation(len(x))
    right, wrong = (encoding_score(x[i][:900], y[:900], x[i][900:], y[900:]).r.mean() for i in (np.arange(len(x)), order))
    assert right > .2 and abs(wrong) < .1


@needs_data('objects92')
def test_objects92_regions_differ():
    "IT tells animate from inanimate; early visual cortex does not."
    from protoalign.datasets import load
    from protoalign.rsa import rdm, rsa
    found = {}
    for region in ('IT', 'EVC'):
        d = load('objects92', region=region)
        animate = np.array(['human' in d.class_names[i] for i in d.labels], dtype=float)
        found[region] = rsa(next(iter(d.responses.values())).values.astype(float), rdm(animate[:, None], 'sqeuclidean'))
    assert found['IT'] > .2 > found['EVC']


def test_missing_folders_are_said(tmp_path):
    from protoalign.sources import SOURCES, data_folder
    for name, source in ((k, s) for k, s in SOURCES.items() if s.megabytes):
        with pytest.raises(FileNotFoundError) as e: data_folder(name, tmp_path, ('no such file',))
        assert source.where in str(e.value) and source.licence in str(e.value)
