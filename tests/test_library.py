"Libraries that travel, are compared, named and looked at: what their pages cannot show."
import base64, functools, hashlib, http.server, json, shutil, subprocess, threading

import numpy as np
import pandas as pd
import pytest

from conftest import needs_data
from protoalign.joint import JointPrototypes
from protoalign.library import FORMAT_VERSION, PrototypeLibrary, data_hash, make_library, weights_hash
from protoalign.share import from_hub, push_to_hub, save_folder


@functools.cache
def world(n=300, k=6, seed=0, **options):
    "Activations and responses of k planted groups, and the fitted estimator."
    rng = np.random.default_rng(seed)
    group = rng.integers(0, k, n)
    x, y = (rng.standard_normal((k, d))[group] + s*rng.standard_normal((n, d)) for d, s in ((12, .4), (9, .4)))
    return x, y, group, JointPrototypes(n_prototypes=k, **options).fit(x, y)


def library(ids=None, **provenance):
    x, y, _, joint = world()
    return make_library(joint, [f's{i}' for i in range(len(x))] if ids is None else ids, **provenance)


# Assigning new stimuli

@pytest.mark.parametrize('options', [dict(), dict(joint='pca', n_components_joint=5), dict(joint='cca', n_components_joint=4), dict(brain_weight=.9),
                                     dict(balance='singular'), dict(back_projection='inverse', joint='pca', n_components_joint=3), dict(n_components_dnn=3, n_components_brain=4)], ids=str)
def test_a_loaded_library_assigns_like_the_estimator(options, tmp_path):
    x, y, _, joint = world(**options)
    lib = PrototypeLibrary.load(make_library(joint, range(len(x))).save(tmp_path/'lib'))
    rng = np.random.default_rng(1)
    new_x, new_y = x + .5*rng.standard_normal(x.shape), y + .5*rng.standard_normal(y.shape)
    for way in ((new_x, new_y), (new_x, None), (None, new_y)): assert (lib.predict(*way) == joint.predict(*way)).all()
    assert (lib.predict(x, y) == lib.assign).mean() > .99
    assert np.allclose(np.linalg.norm(lib.joint_vectors(x, y) - lib.centroids[lib.assign], axis=1), lib.distance, atol=1e-4)


def test_nothing_goes_to_an_empty_prototype():
    lib = partition_library(np.arange(20) % 2, 3)
    assert set(lib.predict(X=lib.p_z[[2, 2, 0, 1]] @ lib.components_z + lib.mean_z)) == {0, 1}


def test_predict_says_what_is_wrong():
    x, y, _, _ = world()
    lib = library()
    with pytest.raises(ValueError, match='give activations X, responses Y, or both'): lib.predict()
    with pytest.raises(ValueError, match='same stimuli'): lib.predict(x, y[:-1])
    with pytest.raises(ValueError, match='NaN'): lib.predict(np.full_like(x, np.nan))
    with pytest.raises(ValueError, match=r'responses Y: got shape \(300, 12\)'): lib.predict(x, x)


# Files

def rewritten(path, out, header=None, arrays=None, drop=()):
    "The library file at `path` with a changed header and changed arrays."
    from safetensors import safe_open
    from safetensors.numpy import save_file
    with safe_open(path, 'numpy') as f: held, tensors = json.loads(f.metadata()['protoalign']), {k: f.get_tensor(k) for k in f.keys()}
    tensors = {k: v for k, v in {**tensors, **(arrays or {})}.items() if k not in drop}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, out, metadata={'protoalign': header if isinstance(header, str) else json.dumps({**held, **(header or {})})})
    return out


def test_files_of_format_1_open(tmp_path):
    "Written as protoalign 0.1 wrote them: nine arrays, no joint map, no sources of names."
    from safetensors.numpy import save_file
    rng, k, n = np.random.default_rng(0), 3, 20
    arrays = dict(p_z=rng.standard_normal((k, 4)), p_r=rng.standard_normal((k, 5)), distance=rng.random(n), weights=np.ones(k), mean_z=np.zeros(8),
                  components_z=np.linalg.qr(rng.standard_normal((8, 4)))[0].T, mean_r=np.zeros(9), components_r=np.linalg.qr(rng.standard_normal((9, 5)))[0].T)
    arrays = {name: np.ascontiguousarray(x, dtype=np.float32) for name, x in arrays.items()} | {'assign': rng.permutation(np.arange(n) % k)}
    header = dict(format='protoalign.PrototypeLibrary', version=1, ids=[f'a{i}' for i in range(n)], names=['x', 'y', 'z'], provenance={'K': 3})
    save_file(arrays, tmp_path/'old', metadata={'protoalign': json.dumps(header)})
    lib = PrototypeLibrary.load(tmp_path/'old')
    assert lib.names == ('x', 'y', 'z') and lib.named_by == ('', '', '') and lib.centroids is lib.joint_map is lib.scales is None
    assert lib.predict(X=lib.p_z @ lib.components_z).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match='format 1'): lib.predict(np.zeros((2, 8)), np.zeros((2, 9)))
    assert lib.renumber([2, 0, 1]).names == ('y', 'z', 'x')
    again = PrototypeLibrary.load(lib.save(tmp_path/'new'))
    assert again.centroids is None and (again.assign == lib.assign).all() and again.describe()['prototypes'] == '3'


DAMAGE = {
    'future version': dict(header=dict(version=FORMAT_VERSION + 1)), 'no version': dict(header=dict(version=None)), 'true as version': dict(header=dict(version=True)),
    'version 1 with arrays of 2': dict(header=dict(version=1)), 'ids are numbers': dict(header=dict(ids=list(range(300)))), 'ids nest': dict(header=dict(ids=[['a']]*300)),
    'named_by is short': dict(header=dict(named_by=['x'])), 'names are a text': dict(header=dict(names='abcdef')), 'other format': dict(header=dict(format='pickle')),
    'deep header': dict(header='['*100_000), 'header is a list': dict(header='[]'), 'header is no JSON': dict(header='{"format":'),
    'centroids too narrow': dict(arrays=dict(centroids=np.zeros((6, 2), np.float32))), 'centroids NaN': dict(arrays=dict(centroids=np.full((6, 21), np.nan, np.float32))),
    'three scales': dict(arrays=dict(scales=np.ones(3, np.float32))), 'map of three axes': dict(arrays=dict(joint_map=np.ones((21, 21, 1), np.float32))),
    'no scales': dict(drop=['scales']), 'no prototypes': dict(drop=['p_z']), 'p_z is a number': dict(arrays=dict(p_z=np.float32(1))), 'p_z is a vector': dict(arrays=dict(p_z=np.ones(6, np.float32))),
    'an array more': dict(arrays=dict(payload=np.zeros(3, np.uint8))), 'huge unsigned assignments': dict(arrays=dict(assign=np.full(300, 2**64 - 1, np.uint64))),
    'bool weights': dict(arrays=dict(weights=np.ones(6, bool))), 'float assignments': dict(arrays=dict(assign=np.zeros(300)))}


@pytest.mark.parametrize('damage', DAMAGE)
def test_damaged_and_hostile_files_are_refused(damage, tmp_path):
    path = library().save(tmp_path/'whole')
    assert PrototypeLibrary.load(rewritten(path, tmp_path/'copy')).names == library().names
    with pytest.raises(ValueError) as said: PrototypeLibrary.load(rewritten(path, tmp_path/'bad', **DAMAGE[damage]))
    assert 'bad' in str(said.value)


def test_every_cut_is_refused(tmp_path):
    whole = library().save(tmp_path/'whole').read_bytes()
    for length in np.linspace(0, len(whole) - 1, 40).astype(int):
        (tmp_path/'cut').write_bytes(whole[:length])
        with pytest.raises(ValueError, match='cut is not a prototype library'): PrototypeLibrary.load(tmp_path/'cut')
    with pytest.raises(FileNotFoundError, match='nowhere'): PrototypeLibrary.load(tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match='library.safetensors'): PrototypeLibrary.load(tmp_path)


def test_the_same_fit_gives_the_same_bytes(tmp_path):
    x, y, _, _ = world()
    files = [make_library(JointPrototypes(6).fit(x, y), range(300), data=(x, y)).save(tmp_path/f'{i}').read_bytes() for i in range(2)]
    assert files[0] == files[1]


def test_folder_has_a_header_and_a_card(tmp_path):
    lib = library(dataset='a | b', licence='CC BY 4.0', citation='Someone 2020')
    save_folder(lib, tmp_path)
    header, card = json.loads((tmp_path/'library.json').read_text()), (tmp_path/'README.md').read_text()
    assert header['ids'] == list(lib.ids) and header['version'] == FORMAT_VERSION
    assert card.startswith('---\n') and 'CC BY 4.0' in card and 'No stimuli are included' in card and 'a \\| b' in card
    with pytest.raises(ValueError, match='JSON cannot'): library(odd=np.zeros(2)).save(tmp_path/'x')
    assert not (tmp_path/'x').exists()


def test_provenance_and_hashes():
    torch = pytest.importorskip('torch')
    x, y, _, _ = world()
    net = torch.nn.Sequential(torch.nn.Linear(12, 4), torch.nn.BatchNorm1d(4))
    lib = library(network=net, data=(x, y), subject='one')
    said = lib.provenance
    assert said['weights_hash'] == weights_hash(net.state_dict()) == weights_hash({k: v.numpy() for k, v in net.state_dict().items()})
    assert said['data_hash'] == data_hash(lib.ids, x, y) != data_hash(lib.ids[::-1], x, y)
    assert set(said['software']) >= {'protoalign', 'numpy', 'scikit-learn', 'torch'} and said['settings']['random_state'] == 0 and said['K'] == 6 and said['subject'] == 'one'
    with torch.no_grad(): net[0].bias[0] += 1e-6
    assert weights_hash(net) != said['weights_hash']
    assert len(weights_hash(net.to(torch.bfloat16))) == 64
    by_hand = hashlib.sha256(b'w <f8 (2,) ' + np.array([1., 2.]).tobytes()).hexdigest()
    assert weights_hash({'w': np.array([1., 2.])}) == by_hand


# The hub

class SmallHub(http.server.BaseHTTPRequestHandler):
    "The few calls that huggingface_hub makes to push a small folder and to pull one file."
    def log_message(self, *args): pass

    def answer(self, code, body=b'', **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for k, v in {'Content-Length': len(body), **headers}.items(): self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def do_POST(self):
        hub, body = self.server, self.rfile.read(int(self.headers.get('Content-Length', 0)))
        hub.calls.append((self.path, self.headers.get('Authorization')))
        if self.path == '/api/repos/create':
            hub.created.append(json.loads(body))
            return self.answer(200, {'url': f'http://{self.headers["Host"]}/{hub.repo}'})
        if self.path == '/api/validate-yaml': return self.answer(200, {'errors': [], 'warnings': []})
        if '/preupload/' in self.path: return self.answer(200, {'files': [dict(path=f['path'], uploadMode='regular', shouldIgnore=False) for f in json.loads(body)['files']]})
        if '/commit/' in self.path:
            for line in map(json.loads, body.splitlines()):
                if line['key'] == 'file': hub.files[line['value']['path']] = base64.b64decode(line['value']['content'])
            return self.answer(200, dict(success=True, commitOid='a'*40, commitUrl=f'http://{self.headers["Host"]}/{hub.repo}/commit/{"a"*40}'))
        self.answer(404)

    def do_GET(self):
        hub = self.server
        hub.calls.append((self.path, self.headers.get('Authorization')))
        name = self.path.rsplit('/', 1)[-1]
        if f'/{hub.repo}/resolve/' in self.path and name in hub.files:
            return self.answer(200, hub.files[name], ETag=f'"{hashlib.sha256(hub.files[name]).hexdigest()}"', X_Repo_Commit='a'*40)
        self.answer(404, X_Error_Code='EntryNotFound' if f'/{hub.repo}/' in self.path else 'RepoNotFound')

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch):
    pytest.importorskip('huggingface_hub', reason='needs huggingface_hub: pip install "protoalign[hub]"')
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path/'no-token'))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), SmallHub)
    server.calls, server.created, server.files, server.repo = [], [], {}, 'somebody/shapes'
    server.address = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_push_and_pull(hub, tmp_path):
    lib = library(licence='CC BY 4.0', citation='Someone 2020', shareable=True)
    where = push_to_hub(lib, 'somebody/shapes', private=True, token='hf_made_up', endpoint=hub.address)
    assert where.endswith('a'*40) and hub.created[0]['name'] == 'shapes' and (hub.created[0].get('visibility') == 'private' or hub.created[0].get('private') is True)
    assert set(hub.files) == {'README.md', 'library.json', 'library.safetensors'} and b'CC BY 4.0' in hub.files['README.md']
    assert {who for _, who in hub.calls} == {'Bearer hf_made_up'}
    back = from_hub('somebody/shapes', revision='main', token=False, endpoint=hub.address, cache_dir=tmp_path/'cache')
    x, y, _, joint = world()
    assert back.provenance == json.loads(json.dumps(lib.provenance)) and (back.predict(x, y) == joint.predict(x, y)).all()


def test_what_arrives_from_a_hub_is_checked(hub, tmp_path):
    hub.files['library.safetensors'] = b'import os; os.remove("everything")'
    with pytest.raises(ValueError, match='is not a prototype library'):
        from_hub('somebody/shapes', token=False, endpoint=hub.address, cache_dir=tmp_path/'cache')
    hub.files.clear()
    with pytest.raises(Exception, match='404|not found|Not Found'):
        from_hub('somebody/shapes', token=False, endpoint=hub.address, cache_dir=tmp_path/'other')


@pytest.mark.parametrize('said, may, refused', [(None, False, True), (None, True, False), (True, False, False), (False, True, True), ('yes', False, True)], ids=str)
def test_sharing_needs_a_word(hub, said, may, refused):
    lib = library(licence='none stated', **({} if said is None else {'shareable': said}))
    if refused:
        with pytest.raises(ValueError, match='none stated'): push_to_hub(lib, 'somebody/shapes', token='hf_made_up', endpoint=hub.address, i_may_share=may)
        assert not hub.calls
    else: assert push_to_hub(lib, 'somebody/shapes', token='hf_made_up', endpoint=hub.address, i_may_share=may)


# Naming

def named_world(n, k, seed, planted):
    "A library of k prototypes over n stimuli, and labels: planted (most members carry their own), or dealt at random."
    from dataclasses import replace
    rng = np.random.default_rng(seed)
    lib = library()
    lib = replace(lib, ids=[f's{i}' for i in range(n)], assign=rng.integers(0, k, n), distance=np.zeros(n))
    own = np.array([f'kind {j}' for j in lib.assign])
    dealt = rng.permutation(own)
    return lib, np.where(rng.random(n) < .6, own, dealt) if planted else dealt


def test_planted_names_are_found():
    from protoalign.naming import name_prototypes
    lib, labels = named_world(120, 6, 0, planted=True)
    named = name_prototypes(lib, labels)
    assert named['name'].tolist() == [f'kind {k}' for k in range(6)] and (named['p'] < .01).all()
    order = np.random.default_rng(1).permutation(120)
    assert name_prototypes(lib, labels[order], ids=np.array(lib.ids)[order]).equals(named)


def test_dealt_labels_name_nothing():
    "At most 5 % of the libraries get any name at all; 200 worlds, so up to 17 is within the luck of the count (p = 0.99)."
    from protoalign.naming import name_prototypes
    worlds = (named_world(60, 6, seed, planted=False) for seed in range(200))
    assert sum((name_prototypes(*w, n_permutations=99, random_state=i)['source'] != '').any() for i, w in enumerate(worlds)) <= 17


def unrelated_in_groups(seed, n_groups=60, size=4):
    "Prototypes and labels of content groups, dealt at random: nothing is related, but stimuli come in fours."
    from dataclasses import replace
    rng, groups = np.random.default_rng(seed), np.arange(n_groups).repeat(size)
    lib = replace(library(), ids=[f's{i}' for i in range(len(groups))], assign=rng.integers(0, 6, n_groups)[groups], distance=np.zeros(len(groups)))
    return lib, rng.integers(0, 6, n_groups)[groups], groups


def test_dealt_groups_name_nothing_if_dealt_as_groups():
    "Stimulus by stimulus nearly every world has a pair that passes; by group about 5 of 100, up to 11 within luck (p = 0.99)."
    from protoalign.naming import name_prototypes
    passed = lambda seed, by_group: (name_prototypes(*(w := unrelated_in_groups(seed))[:2], n_permutations=99, random_state=seed, groups=w[2] if by_group else None)['p'] <= .05).any()
    assert sum(passed(s, False) for s in range(20)) >= 15 and sum(passed(s, True) for s in range(100)) <= 11


def test_planted_names_are_found_by_group():
    "In any order of the rows of labels, which have their groups with them."
    from protoalign.naming import name_prototypes
    lib, other, groups = unrelated_in_groups(0)
    labels, order = np.array([f'kind {k}' for k in lib.assign]), np.random.default_rng(1).permutation(240)
    assert name_prototypes(lib, labels, groups=groups)['name'].tolist() == [f'kind {k}' for k in range(6)]
    dealt = [name_prototypes(lib, other[rows].astype(str), ids=np.array(lib.ids)[rows], groups=groups[rows]) for rows in (np.arange(240), order)]
    assert dealt[0].equals(dealt[1]) and dealt[0]['p_alone'].between(.002, .998).any()
    with pytest.raises(ValueError, match='239 groups for 240 rows'): name_prototypes(lib, labels, groups=groups[1:])


def test_names_by_one_side_alone():
    "The members are those that are given; joint ones by default."
    from protoalign.naming import name_prototypes
    lib, labels = named_world(120, 6, 0, planted=True)
    other = (lib.assign + 1) % 6
    assert name_prototypes(lib, labels, assign=other)['name'].tolist() == [f'kind {(k - 1) % 6}' for k in range(6)]
    assert name_prototypes(lib, labels, assign=lib.assign).equals(name_prototypes(lib, labels))
    for bad in (other[1:], other + 1):
        with pytest.raises(ValueError, match='one of the 6 prototypes for each of the 120'): name_prototypes(lib, labels, assign=bad)


def test_quantities_and_captions():
    from protoalign.naming import caption_words, name_prototypes
    lib, _ = named_world(120, 6, 0, planted=True)
    rng = np.random.default_rng(0)
    amounts = pd.DataFrame({'size': rng.standard_normal(120) + 2*(lib.assign == 0) - 2*(lib.assign == 1), 'noise': rng.standard_normal(120), 'constant': 1.})
    named = name_prototypes(lib, amounts)
    assert named['name'][:2].tolist() == ['high size', 'low size']
    captions = [f'a photograph of a {"brown horse" if k == 2 else "red bus" if k == 3 else "thing"}' for k in lib.assign]
    named = name_prototypes(lib, caption_words(captions))
    assert 'horse' in named['name'][2] or named['name'][2] == 'brown'
    assert named['name'][3] in ('red', 'bus', 'red bus')
    with pytest.raises(ValueError, match='no word is in 5'): caption_words(['one', 'two'])


def test_people_replace_labels():
    from protoalign.naming import name_prototypes, people_names, rename
    lib, labels = named_world(120, 6, 0, planted=True)
    lib = rename(lib, name_prototypes(lib, labels))
    answers = pd.DataFrame([(r, item, a) for item, said in {'kind 0': 'aab', 3: 'ab', 'prototype 4': 'cccc'}.items() for r, a in enumerate(said)], columns=['rater', 'item', 'answer'])
    final = rename(lib, people_names(lib, answers))
    assert final.names == ('a', 'kind 1', 'kind 2', 'kind 3', 'c', 'kind 5')
    assert final.named_by[0] == 'people, 2 of 3' and final.named_by[3].startswith('labels') and final.named_by[4] == 'people, 4 of 4'
    assert final.renumber([1, 0, 2, 3, 4, 5]).named_by[1] == 'people, 2 of 3'
    tie = people_names(lib, answers[answers['item'] == 3], min_share=.3)
    assert tie['name'].tolist() == ['prototype 3'] and tie['source'].tolist() == ['']
    for bad in ({9: 'x'}, ['x']):
        with pytest.raises(ValueError): rename(lib, bad)
    with pytest.raises(ValueError, match='repeat a rater'): people_names(lib, pd.concat([answers, answers]))


@needs_data('natsound165')
def test_sounds_are_named():
    "Speech, music and song: what the electrodes were chosen for."
    from protoalign.datasets import load
    from protoalign.naming import name_prototypes
    d = load('natsound165')
    y = d.responses['electrodes'].values
    lib = make_library(JointPrototypes(8, brain_weight=1.).fit(y, y), d.ids)
    found = set(name_prototypes(lib, np.array(d.class_names)[d.labels])['name'])
    assert {'Music', 'Song'} <= found and 'EngSpeech' in found


# Comparing

def partition_library(labels, k):
    from dataclasses import replace
    n = len(labels)
    lib = replace(library(), p_z=np.eye(k, 12), p_r=np.eye(k, 9), weights=np.ones(k), names=[f'p{i}' for i in range(k)], named_by=(), centroids=None, joint_map=None, scales=None,
                  ids=[f's{i}' for i in range(n)], assign=labels, distance=np.zeros(n))
    return lib


def test_unrelated_libraries_share_nothing():
    "In 100 pairs of random partitions with unequal sizes, any prototype is called shared in about 5; up to 11 is within luck (p = 0.99)."
    from protoalign.compare import compare
    found, weights = 0, np.array([.3, .25, .2, .1, .1, .05])
    for seed in range(100):
        rng = np.random.default_rng(seed)
        a, b = partition_library(rng.choice(6, 90, p=weights), 6), partition_library(rng.integers(0, 4, 90), 4)
        found += compare(a, b, n_permutations=99, random_state=seed).table['verdict'].isin(['shared', 'partly shared']).any()
    assert found <= 11


def test_unrelated_libraries_in_groups_share_nothing_if_dealt_as_groups():
    from dataclasses import replace
    from protoalign.compare import compare
    def found(seed, by_group):
        a, other, groups = unrelated_in_groups(seed)
        b = replace(a, assign=other)
        return compare(a, b, n_permutations=99, random_state=seed, groups=groups if by_group else None).table['verdict'].isin(['shared', 'partly shared']).any()
    assert sum(found(s, False) for s in range(20)) >= 15 and sum(found(s, True) for s in range(100)) <= 11


def test_groups_belong_to_the_stimuli_of_a():
    "Where only some stimuli are common, in another order, the groups go with them; with every stimulus its own group the p of a pair estimates the exact one."
    from dataclasses import replace
    from protoalign.compare import compare
    a, other, groups = unrelated_in_groups(0)
    keep = np.random.default_rng(1).permutation(240)[:200]
    b = replace(a, ids=[a.ids[i] for i in keep], assign=other[keep], distance=np.zeros(200))
    common = np.sort(keep)
    by_ids = compare(a, b, groups=groups).table
    assert by_ids.equals(compare(a, b, (a.assign[common], other[common]), groups=groups[common]).table)
    exact, dealt = (compare(a, b, n_permutations=2000, groups=g).table['p_pair'].dropna() for g in (None, np.arange(240)))
    assert np.abs(exact - dealt).max() < .04
    rng, (first, second) = np.random.default_rng(2), (o[::4] for o in (a.assign, other))
    in_common = lambda o: np.array([[((first == i) & (o == j)).sum() for j in range(6)] for i in range(6)])
    by_hand = np.mean([in_common(rng.permutation(second)) >= in_common(second) for _ in range(2000)], axis=0)
    rows = compare(a, replace(a, assign=other), n_permutations=2000, groups=groups).table.dropna(subset=['p_pair'])
    assert np.abs(rows['p_pair'] - by_hand[rows['a'].astype(int), rows['b'].astype(int)]).max() < .05
    with pytest.raises(ValueError, match='199 groups for'): compare(a, b, groups=groups[:199])


@pytest.mark.parametrize('k_a, k_b', [(8, 8), (8, 5), (5, 8)])
def test_planted_half_is_shared(k_a, k_b):
    from protoalign.compare import compare, plot_comparison
    import matplotlib.pyplot as plt
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 8, 600)
    a, b = (np.where(truth < 4, truth, rng.integers(4, k, 600)) for k in (k_a, k_b))
    c = compare(partition_library(a, k_a), partition_library(b, k_b))
    of_a = c.table[:k_a]
    assert set(of_a.loc[of_a['verdict'] == 'shared', 'a']) == {0, 1, 2, 3} and (of_a['a'][:4] == of_a['b'][:4]).all()
    assert set(c.table['b'].dropna()) == set(range(k_b)), 'every prototype of b is in the table'
    assert c.table.loc[c.table['verdict'] == 'only in b', 'a'].isna().all()
    plt.close(plot_comparison(c))


def test_libraries_without_common_stimuli():
    from protoalign.compare import compare
    from dataclasses import replace
    x, y, _, _ = world()
    a = library(model='same', layer='same')
    b = replace(a, ids=[f'other{i}' for i in range(300)])
    with pytest.raises(ValueError, match='share none'): compare(a, b)
    c = compare(a, b, (a.predict(x), b.predict(x)))
    assert set(c.table['verdict']) == {'shared'} and np.allclose(c.table['r_network'].astype(float), 1) and c.table['r_brain'].isna().all()
    with pytest.raises(ValueError, match='same stimuli'): compare(a, b, (a.predict(x), b.predict(x[:-1])))
    with pytest.raises(ValueError, match='outside'): compare(a, b, (a.predict(x), b.predict(x) + 6))


# The atlas, in a browser

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
PROBE = '''<script>
const report = () => {
  const images = [...document.images], sounds = [...document.querySelectorAll("audio")];
  const said = {images: images.length, loaded: images.filter(i => i.complete && i.naturalWidth > 0).length, silent: images.filter(i => !i.alt).length, sounds: sounds.map(a => a.duration),
    wide: document.documentElement.scrollWidth - window.innerWidth, elsewhere: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"))};
  const out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(said); document.body.append(out);
};
window.addEventListener("load", () => setTimeout(report, 1000));
</script></body>'''


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    "Two atlases, of digits and of made-up tones."
    import matplotlib
    matplotlib.use('Agg')
    from protoalign.atlas import make_atlas
    from protoalign.datasets import load
    from protoalign.naming import name_prototypes, rename
    folder, d = tmp_path_factory.mktemp('atlas'), load('digits')
    x, y = d.stimuli[:400].reshape(400, -1)/16, d.responses['simulated-01']
    lib = make_library(JointPrototypes(6).fit(x, y.values[:400]), d.ids[:400], dataset='digits')
    lib = rename(lib, name_prototypes(lib, [f'digit {c}' for c in d.labels], ids=d.ids))
    make_atlas(lib, d, folder/'digits.html', responses=y, activations=x, sharedness=np.linspace(0, 1, 6))
    rate = 8000
    tones = np.stack([.2*np.sin(2*np.pi*f*np.arange(rate//2)/rate) for f in np.linspace(200, 2000, 20)])
    loud = np.linspace(0, 1, 20)[:, None]*np.ones(3) + .01*np.random.default_rng(0).standard_normal((20, 3))
    heard = make_library(JointPrototypes(2).fit(loud, loud), [f'tone {i}' for i in range(20)])
    make_atlas(heard, tones, folder/'tones.html', rate=rate, k=4, labels=pd.DataFrame({'height': np.arange(20.), 'low': np.arange(20) < 10}))
    return folder


class Listener(http.server.BaseHTTPRequestHandler):
    "A proxy that lets nothing through and remembers what was asked."
    def log_message(self, *args): pass
    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(404)
        self.send_header('Content-Length', '0')
        self.end_headers()
    do_CONNECT = do_HEAD = do_POST = do_GET


def opened(page, tmp_path, width=1000):
    "(DOM after loading, addresses that the browser asked a proxy for)."
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Listener)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-default-apps '
             f'--disable-dev-shm-usage --proxy-server=127.0.0.1:{server.server_port} --user-data-dir={tmp_path/"profile"} --window-size={width},900 --virtual-time-budget=10000 --dump-dom').split()
    try: done = subprocess.run([CHROMIUM, *flags, page.as_uri()], capture_output=True, text=True, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    return done.stdout, server.asked


def probed(page, tmp_path, width=1000):
    "What a script inside a copy of the page says; the policy of the copy, all else equal, lets that script run."
    import re
    text = page.read_text(encoding='utf-8')
    assert text.count("default-src 'none'; ") == 1
    copy = tmp_path/page.name
    copy.write_text(text.replace("default-src 'none'; ", "default-src 'none'; script-src 'unsafe-inline'; ").replace('</body>', PROBE), encoding='utf-8')
    dom, _ = opened(copy, tmp_path, width)
    return json.loads(re.search(r'<pre id="probe">(.*?)</pre>', dom).group(1).replace('&amp;', '&'))


@needs_browser
def test_atlas_of_images_in_a_browser(pages, tmp_path):
    said = probed(pages/'digits.html', tmp_path)
    assert said['images'] == said['loaded'] == 6*8 + 6 + 1 and said['silent'] == 0 and said['elsewhere'] == []


@needs_browser
def test_atlas_of_sounds_in_a_browser(pages, tmp_path):
    said = probed(pages/'tones.html', tmp_path)
    assert said['images'] == said['loaded'] and said['sounds'] == [pytest.approx(.5)]*8 and said['elsewhere'] == []


@needs_browser
def test_atlas_fits_a_phone(pages, tmp_path):
    for name in ('digits.html', 'tones.html'): assert probed(pages/name, tmp_path, width=500)['wide'] <= 0


@needs_browser
def test_atlas_asks_for_nothing_even_where_it_is_told_to(pages, tmp_path):
    "An image from elsewhere, put into the page: the policy of the page stops it; without the policy the browser asks."
    import re
    text = (pages/'digits.html').read_text(encoding='utf-8').replace('</body>', '<img src="http://elsewhere.invalid/x.png"></body>')
    (tmp_path/'guarded.html').write_text(text, encoding='utf-8')
    (tmp_path/'open.html').write_text(re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', '', text), encoding='utf-8')
    asked = {name: [a for a in opened(tmp_path/name, tmp_path)[1] if 'elsewhere.invalid' in a] for name in ('guarded.html', 'open.html')}
    assert asked['guarded.html'] == [] and asked['open.html']


def test_atlas_shows_what_it_should(pages):
    from html import unescape
    text = (pages/'digits.html').read_text(encoding='utf-8')
    assert text.count('<section') == 6 and 'are simulated' in text and 'BSD-3-Clause' in text and 'sharedness 0.20' in text
    assert '<script' not in text and 'http://' not in text and 'https://' not in text
    assert 'in the column sharedness' in text and 'may come from one side alone' in text and 'not tested' not in text
    sounds = unescape((pages/'tones.html').read_text(encoding='utf-8'))
    assert sounds.count('<audio') == 8 and 'height' in sounds and 'Area under the ROC curve' in sounds
    assert 'Sharedness was not tested' in sounds and not any('brain share' in o for o in (text, sounds))


def test_hostile_texts_stay_texts(tmp_path):
    from protoalign.atlas import make_atlas
    from protoalign.naming import rename
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    lib = rename(library(ids=[f'{evil}{i}' for i in range(300)], dataset=evil, licence=evil, citation=evil), {0: evil}, source=evil)
    page = make_atlas(lib, np.zeros((300, 4, 4), np.uint8), tmp_path, labels=[evil]*300, title=evil).read_text(encoding='utf-8')
    assert '<script' not in page and '<img src=x' not in page and page.count('&lt;script&gt;') > 10


def test_atlas_says_what_does_not_fit(tmp_path):
    from protoalign.atlas import make_atlas
    from protoalign.data import Responses
    lib, images = library(), np.zeros((300, 4, 4), np.uint8)
    for options, said in ((dict(ids=['a']*3), '3 ids'), (dict(ids=[f'x{i}' for i in range(300)]), 'not among'), (dict(sharedness=[1]), '1 values of sharedness'), (dict(labels=['a']), 'ids for 1 rows'),
                          (dict(activations=np.zeros((2, 12))), '2 rows of activations'), (dict(responses=Responses(np.zeros((300, 4)), lib.ids)), 'of a library of 9 features')):
        with pytest.raises(ValueError, match=said): make_atlas(lib, images, tmp_path/'a.html', **options)
    with pytest.raises(ValueError, match='samples a second'): make_atlas(lib, np.zeros((300, 50)), tmp_path/'a.html')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('view', ['glass', 'mosaic', 'surface'])
def test_brain_maps_from_a_mask(view):
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from nibabel import Nifti1Image
    from protoalign.views import plot_brain
    cubes = np.zeros((20, 24, 20), np.int8)
    cubes[3:6, 10:13, 8] = 1
    fig = plot_brain(library(), 0, mask=Nifti1Image(cubes, np.array([[8., 0, 0, -76], [0, 8, 0, -108], [0, 0, 8, -64], [0, 0, 0, 1]])), view=view)
    assert len(fig.axes) >= 2
    plt.close('all')
    with pytest.raises(ValueError, match='view is'): plot_brain(library(), 0, view='inside')


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('view', ['glass', 'mosaic', 'surface'])
def test_map_of_scores(view, signed):
    "Labelled, from zero where scores are not signed, with holes; what lies below zero is drawn, what is NaN is not."
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from nibabel import Nifti1Image
    from protoalign.maps import _filled, plot_map
    cubes, values = np.zeros((20, 24, 20), np.int8), np.linspace(-.1, .4, 90)
    cubes[3:8, 10:13, 7:13], values[::7] = 1, np.nan
    fig = plot_map(values, mask=Nifti1Image(cubes, np.array([[8., 0, 0, -76], [0, 8, 0, -108], [0, 0, 8, -64], [0, 0, 0, 1]])), view=view, label='r', signed=signed)
    low, high = fig.axes[-1].get_ylim()
    assert fig.axes[-1].get_ylabel() == 'r' and low == (-high if signed else 0) and high == pytest.approx(np.nanpercentile(np.abs(values), 98))
    plt.close('all')
    drawn = _filled(values, .4, signed)
    assert (drawn[np.isnan(values)] == 0).all() and (np.abs(drawn[np.isfinite(values)]) > 1e-5*.4).all()


def test_map_on_its_own_mesh():
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from nilearn.datasets import load_fsaverage
    from nilearn.surface import SurfaceImage
    from protoalign.fmri import voxel_table
    from protoalign.maps import _on_surface, plot_map
    mesh = load_fsaverage('fsaverage5')['inflated']
    mask = SurfaceImage(mesh, {side: (mesh.parts[side].coordinates[:, 2] > 0).astype(np.int8) for side in ('left', 'right')})
    where = voxel_table(mask)
    values = (where.z/where.z.max()).to_numpy().copy()
    values[:50] = np.nan
    drawn = np.concatenate([np.asarray(o[1])[np.asarray(mask.data.parts[side]).ravel() > 0] for side, o in _on_surface(values, 1., mask, True).items()])
    np.testing.assert_allclose(drawn, values, rtol=1e-6)
    assert plot_map(values, mask=mask, label='height').axes[-1].get_ylabel() == 'height'
    plt.close('all')


def test_map_without_sides_and_in_one_dimension():
    from protoalign.views import map_coordinates
    x, y, _, _ = world()
    lib = library()
    assert map_coordinates(lib).stimuli is None and map_coordinates(lib, X=x).stimuli.shape == (300, 2) and map_coordinates(lib, Y=y).prototypes.shape == (6, 2)
    flat = partition_library(np.arange(30) % 2, 2)
    at = map_coordinates(flat)
    assert at.share == pytest.approx(1) and np.allclose(at.prototypes[:, 1], 0)
    assert np.linalg.norm(at.prototypes[0] - at.prototypes[1]) == pytest.approx(np.linalg.norm(flat.p_z[0] - flat.p_z[1]))


@needs_data('macaque_v4', 'cifar_resnet_weights')
def test_atlases_of_two_monkeys(tmp_path):
    "Real photographs and neurons: the page is whole, and dark photographs are found in both."
    import matplotlib
    matplotlib.use('Agg')
    from protoalign.activations import extract
    from protoalign.atlas import make_atlas
    from protoalign.datasets import load
    from protoalign.naming import name_prototypes, rename
    from protoalign.networks import backbone
    net = backbone('resnet20')
    model = net.make()
    (copies := tmp_path/'copies').mkdir()
    for session in ('201025', '190923'):
        d = load('macaque-v4', session=session)
        x, y = extract(model, 'layer2', net.prepare(d.stimuli, 48), grid=4)['layer2'], d.responses[f'V4-{session}']
        lib = make_library(JointPrototypes(12).fit(x, y.values), d.ids, network=model, data=(x, y.values), dataset='macaque-v4', target=f'V4-{session}', licence=d.licence)
        seen = pd.DataFrame({'brightness': d.stimuli.mean((1, 2, 3)), 'contrast': d.stimuli.std((1, 2, 3))})
        lib = rename(lib, name_prototypes(lib, seen))
        assert 'low brightness' in lib.names
        page = make_atlas(lib, d, tmp_path/f'{session}.html', labels=seen, responses=y, activations=x)
        assert page.stat().st_size < 3e6 and 'GPL-3.0' in page.read_text(encoding='utf-8')
        if CHROMIUM:
            said = probed(page, copies)
            assert said['images'] == said['loaded'] == 12*8 + 12 + 1
