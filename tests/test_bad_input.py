"Bad input gets one clear error that names the shapes and the cure, before any work starts."
import numpy as np
import pytest
from dataclasses import replace

from protoalign.cli import main
from protoalign.data import Responses, planted_world
from protoalign.datasets import dataset_loader, load
from protoalign.experiment import run
from protoalign.presets import PRESETS
from protoalign.joint import JointPrototypes
from protoalign.rsa import rsa
from protoalign.cka import linear_cka

DIGITS = load('digits')
TINY = replace(PRESETS['digits'], n_seeds=1, sweep=(), pretrain_epochs=1)


def with_responses(name, values, ids=DIGITS.ids):
    responses = {'made': Responses(values, ids, 'simulated subject')}
    dataset_loader(name)(lambda data_dir=None: replace(DIGITS, name=name, responses=responses))
    return replace(TINY, dataset=name)


def refused(config, tmp_path, match):
    with pytest.raises(ValueError, match=match): run(config, tmp_path/'run')
    assert not (tmp_path/'run').exists(), 'work started'


VALUES = DIGITS.responses['simulated-01'].values


def test_unknown_stimuli(tmp_path):
    refused(with_responses('fewer', VALUES[:-7], DIGITS.ids[:-7]), tmp_path, '7 of 1797 stimulus ids have no response.*digit-1790')


def test_unequal_numbers_of_stimuli():
    with pytest.raises(ValueError, match=r'values of shape \(1790, 100\) and 1797 ids'): Responses(VALUES[:-7], DIGITS.ids)
    acts, brain, _ = planted_world()
    for f in (rsa, linear_cka, JointPrototypes(3).fit):
        with pytest.raises(ValueError, match=r'\(300, 40\) and \(299, 60\)'): f(acts, brain[:-1])


def test_nan(tmp_path):
    refused(with_responses('holes', np.where(np.arange(100) == 3, np.nan, VALUES)), tmp_path, r'1 of 100 features hold NaN .*\[3\]')


def test_constant(tmp_path):
    refused(with_responses('silent', np.where(np.arange(100) == 5, 1., VALUES)), tmp_path, r'1 of 100 features are constant .*\[5\]')


def test_constant_on_training_stimuli_only(tmp_path):
    from protoalign.data import split_stimuli
    values = VALUES.copy()
    values[split_stimuli(DIGITS.groups).train, 8] = 0
    refused(with_responses('half-silent', values), tmp_path, r'constant over 1138 stimuli .*\[8\]')


@pytest.mark.parametrize('change, match', [
    (dict(dataset='digist'), 'did you mean digits'),
    (dict(target='IT'), "unknown target 'IT'.*simulated-01"),
    (dict(backbone='resnet19'), "unknown backbone 'resnet19'.*resnet20"),
    (dict(arms=('vanilla', 'proto')), "unknown arms \\['proto'\\].*protoalign"),
    (dict(n_seeds=0), 'n_seeds must be at least 1, got 0'),
    (dict(settings=replace(TINY.settings, layer='layer2.9')), 'close names: .*layer2'),
    (dict(settings=replace(TINY.settings, K=1139)), 'K = 1139 prototypes are impossible with 1138 training stimuli'),
    (dict(settings=replace(TINY.settings, K=0)), 'K must be at least 1, got 0'),
    (dict(settings=replace(TINY.settings, tau=0.)), 'tau must be positive'),
    (dict(settings=replace(TINY.settings, tau=np.nan)), 'tau must be positive, got nan'),
    (dict(settings=replace(TINY.settings, every=-1)), 'every must be at least 0'),
    (dict(settings=replace(TINY.settings, brain_weight=2.)), 'brain_weight must be from 0 to 1'),
    (dict(settings=replace(TINY.settings, joint='foo')), "joint is None, 'pca', 'cca' or 'plsc', got 'foo'"),
    (dict(sweep=(.1, -1.)), 'a λ of the sweep must be at least 0, got -1'),
    (dict(pretrain_epochs=-1), 'pretrain_epochs must be at least 0'),
    (dict(options={'session': '5'}), "'digits' has no option session; it has: none"),
    (dict(task='digits'), "'digits' has no training and test part"),
    (dict(stimulus_size=-4), 'stimulus_size must be at least 1'),
    (dict(settings=replace(TINY.settings, lam=-1.)), 'lam must be at least 0'),
    (dict(tune={'temperature': [.1]}), "unknown: \\['temperature'\\]"),
    (dict(tune={'K': []}), "without values: \\['K'\\]"),
    (dict(tune={'K': [300, 400]}), 'No K is left to choose from: add one of at most 227'),
    (dict(tune={'lam': [.1, np.inf]}), 'each lam of tune must be at least 0, got inf'),
    (dict(tune={'K': [10, 20], 'lam': [.5]}, arms=('protoalign', 'rsa')), "arm 'rsa' has 1 combinations of \\['lam'\\], and every arm gets 2 trials"),
    (dict(tune={'lam': [.1, 1.]}, tune_metric='cka'), "unknown tune_metric 'cka'.*cka_debiased"),
    (dict(tune={'lam': [.1, 1.]}, tune_seeds=2), 'tune_seeds must be at most n_seeds = 1, got 2'),
    (dict(tune={'lam': [.1, 1.]}, search='random'), "search is 'grid' or 'optuna', got 'random'"),
    (dict(folds=1), 'folds must be at least 2, got 1'),
], ids=lambda o: next(iter(o)) if isinstance(o, dict) else '')
def test_configuration(change, match, tmp_path): refused(replace(TINY, **change), tmp_path, match)


def test_configuration_file(tmp_path, capsys):
    for text, said in (('epoch: 3', "unknown key 'epoch'; did you mean epochs"), ('epochs: many', "epochs must be int, got 'many'"), ('- digits', 'must hold names and values'),
                       ('a: [', 'neither YAML nor JSON'), ('preset: vision-v5', 'did you mean vision-v4'), ('settings: 3', 'settings must be a block')):
        (tmp_path/'my.yaml').write_text(text)
        assert main(['run', str(tmp_path/'my.yaml'), '--out', str(tmp_path/'run')]) == 2
        assert said in capsys.readouterr().err
    assert main(['run', str(tmp_path/'no.yaml')]) == 2 and 'is not there' in capsys.readouterr().err
    assert not (tmp_path/'run').exists()


def test_a_network_that_cannot_see_the_images(tmp_path):
    colour = replace(DIGITS, name='colour', stimuli=np.repeat(DIGITS.stimuli[..., None], 3, axis=-1))
    dataset_loader('colour')(lambda data_dir=None: colour)
    refused(replace(TINY, dataset='colour'), tmp_path, "'digits-resnet8' cannot be shown the images of 'colour': the network sees 1 channel")


def test_more_classes_than_outputs(tmp_path):
    dataset_loader('many')(lambda data_dir=None: replace(DIGITS, name='many', labels=DIGITS.labels + 3))
    refused(replace(TINY, dataset='many'), tmp_path, "has 10 outputs, 'many' has 13 classes")


def test_files_in_the_way(tmp_path, capsys):
    (tmp_path/'file').write_text('here first')
    assert main(['run', '--seeds', '1', '--out', str(tmp_path/'file')]) == 2
    assert 'is a file: choose a directory' in capsys.readouterr().err
    (tmp_path/'x.npy').write_text('no array')
    assert main(['score', str(tmp_path/'x.npy'), str(tmp_path/'x.npy')]) == 2
    err = capsys.readouterr().err
    assert 'x.npy' in err and 'numpy.save' in err and 'pickle' not in err


def test_responses_on_the_command_line(tmp_path, capsys):
    acts, brain, _ = planted_world(n_stimuli=60)
    np.save(tmp_path/'acts.npy', acts)
    for name, bad, said in (('nan', np.nan, r'holds NaN'), ('flat', 1., 'constant over 60 stimuli')):
        np.save(tmp_path/f'{name}.npy', np.where(np.arange(60) == 3, bad, brain))
        for job in ('score', 'prototypes'):
            assert main([job, str(tmp_path/'acts.npy'), str(tmp_path/f'{name}.npy')]) == 2
            err = capsys.readouterr().err
            assert f'{name}.npy' in err and said in err


def test_directory_of_another_run(tmp_path, capsys):
    words = ['run', '--out', str(tmp_path), '--seeds', '1']
    (tmp_path/'thesis.tex').write_text('years of work')
    assert main(words) == 2
    assert 'holds no protoalign run' in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_missing_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv('PROTOALIGN_DATA', raising=False)
    assert main(['run', '--dataset', 'macaque-v4', '--data-dir', str(tmp_path), '--out', str(tmp_path/'run')]) == 2
    err = capsys.readouterr().err
    for must in ('github.com/cowleygroup/V4_compact_models', 'GPL-3.0', '--data-dir', 'PROTOALIGN_DATA'): assert must in err
    assert not (tmp_path/'run').exists()


def test_hostile_library(tmp_path):
    import pickle
    from protoalign.library import PrototypeLibrary
    for name, content in (('pickle', pickle.dumps({'a': 1})), ('empty', b''), ('huge header', (2**62).to_bytes(8, 'little') + b'{}')):
        path = tmp_path/name
        path.write_bytes(content)
        with pytest.raises(ValueError, match='is not a prototype library'): PrototypeLibrary.load(path)


@pytest.mark.parametrize('change', [dict(ids=5), dict(ids=['a']*12), dict(names=None), dict(provenance=[1])], ids=str)
def test_damaged_library(change, tmp_path):
    import json
    from safetensors import safe_open
    from safetensors.numpy import save_file
    from protoalign.library import PrototypeLibrary, make_library
    acts, brain, _ = planted_world(n_stimuli=12)
    path = make_library(JointPrototypes(3).fit(acts, brain), range(12)).save(tmp_path/'whole')
    with safe_open(path, 'numpy') as f:
        header, arrays = json.loads(f.metadata()['protoalign']), {k: f.get_tensor(k) for k in f.keys()}
    save_file(arrays, tmp_path/'damaged', metadata={'protoalign': json.dumps({**header, **change})})
    with pytest.raises(ValueError): PrototypeLibrary.load(tmp_path/'damaged')
