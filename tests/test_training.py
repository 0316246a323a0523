"The callbacks inside what engineers already use: accumulation, 16 bits, freezing, saving, stopping, two processes."
import copy, json, os, socket, subprocess, sys, textwrap, warnings

import numpy as np
import pytest
import torch
from torch import nn

with warnings.catch_warnings():
    warnings.filterwarnings('ignore')
    import fastai.callback.progress, fastai.callback.schedule
    from fastai.callback.fp16 import MixedPrecision
    from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
    from fastai.callback.training import GradientAccumulation
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.metrics import accuracy
    from fastai.optimizer import SGD
    from fastai.torch_core import no_random

from conftest import ROOT
from protoalign.activations import extract
from protoalign.baselines import CKALoss, ResponseRegression
from protoalign.datasets import load
from protoalign.loss import PrototypeObjective
from protoalign.refit import Refit
from protoalign.refresh import AlignLoss, ObjectiveRefresh, ProtoLoss, ProtoRefresh

DIGITS = load('digits')
X, Y = torch.tensor(DIGITS.stimuli[:400].reshape(-1, 64)/16, dtype=torch.float32), torch.tensor(DIGITS.labels[:400])
BRAIN = DIGITS.responses['simulated-01'].values[:400]


class Pairs:
    def __init__(self, with_rows): self.with_rows = with_rows
    def __len__(self): return 400
    def __getitem__(self, i): return (X[i], Y[i], *([i] if self.with_rows else []))


def net():
    with no_random(0): return nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))


def refit(**joint): return Refit(X, BRAIN, DIGITS.ids[:400], '1', n_prototypes=10, **joint)


LIBRARY = refit()(net())


def learner(cbs=(), with_rows=True, bs=50, shuffle=True, drop_last=False, **options):
    dls = DataLoaders(DataLoader(Pairs(with_rows), bs=bs, shuffle=shuffle, drop_last=drop_last), DataLoader(Pairs(with_rows), bs=200))
    dls.n_inp = 1
    return Learner(dls, net(), loss_func=CrossEntropyLossFlat(), cbs=list(cbs), **options)


def train(cbs=(), epochs=2, lr=1e-2, **options):
    with no_random(0):
        learn = learner(cbs, **options)
        with learn.no_logging(), learn.no_bar(): learn.fit(epochs, lr)
    return learn


def bits(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def judged(model):
    return PrototypeObjective(LIBRARY)(torch.tensor(extract(model, '1', X)['1']), torch.arange(400)).item()


VANILLA = judged(train(epochs=3, with_rows=False).model)


@pytest.mark.parametrize('stream', ['one', 'two'])
def test_accumulated_quarters_are_one_batch(stream):
    "Four quarter batches, accumulated, take the step of the whole: task and prototypes alike."
    def pull(each_bs): return ProtoLoss(LIBRARY, '1', lam=2., stimuli=None if stream == 'one' else X, batch_size=each_bs)
    how = dict(epochs=1, lr=.1, opt_func=SGD, shuffle=False, with_rows=stream == 'one')
    whole = train([pull(200)], bs=200, **how)
    parts = train([pull(50), GradientAccumulation(200)], bs=50, **how)
    apart = (bits(whole) - bits(parts)).abs().max() / (bits(whole) - torch.cat([p.detach().flatten() for p in net().parameters()])).abs().max()
    assert apart < 1e-3, apart
    without = train([GradientAccumulation(200)], bs=50, **{**how, 'with_rows': False})
    assert (bits(parts) - bits(without)).abs().max() > 1e-3


def test_sixteen_bits():
    "Under autocast the layer is 16 bits wide, the loss 32; it falls as far as without."
    class Bf16(Callback):
        order = MixedPrecision.order
        def before_batch(self):
            self.context = torch.autocast('cpu', torch.bfloat16)
            self.context.__enter__()
        def after_pred(self): self.learn.pred = self.pred.float()
        def after_loss(self): self.context.__exit__(None, None, None)
    seen = []
    class Watch(Callback):
        order = ProtoLoss.order + 1
        def after_loss(self):
            if self.training: seen.append((self.loss_grad.dtype, list(self.proto_loss.align.last.values())[0].dtype))
    plain, half = train([ProtoLoss(LIBRARY, '1', lam=1.)], epochs=4), train([ProtoLoss(LIBRARY, '1', lam=1.), Bf16(), Watch()], epochs=4)
    assert set(seen) == {(torch.float32, torch.float32)}
    assert judged(half.model) == pytest.approx(judged(plain.model), rel=.1) and not torch.equal(bits(plain), bits(half))


def test_fine_tune_leaves_the_term_out_while_frozen():
    loss = ProtoLoss(None, '1', lam=1.)
    with no_random(0):
        learn = learner([loss, ProtoRefresh(refit(), every=1)], splitter=lambda m: [list(m[:2].parameters()), list(m[2:].parameters())])
        learn.freeze()
        with learn.no_logging(), learn.no_bar():
            with pytest.warns(UserWarning, match="no gradient reaches layer '1'.*frozen up to group 1"): learn.fit(1, 1e-2)
            assert torch.equal(learn.model[0].weight, net()[0].weight) and not loss.log
            learn.unfreeze()
            learn.fit(3, 1e-2)
    assert len(loss.log) == 3*8 and judged(learn.model) < .8*VANILLA


def test_saving_and_stopping(tmp_path):
    "The best network is saved and comes back; training stops when nothing gets better."
    cbs = [ProtoLoss(None, '1', lam=1.), ProtoRefresh(refit(), every=1), SaveModelCallback(monitor='accuracy', fname='best'), EarlyStoppingCallback(monitor='accuracy', patience=1, min_delta=2.)]
    learn = train(cbs, epochs=6, metrics=accuracy, path=tmp_path)
    assert len(learn.recorder.values) == 2 and (tmp_path/'models'/'best.pth').exists()
    assert len(learn.recorder.refreshes) == 2 and len(learn.model[1]._forward_hooks) == 0


def test_a_head_learns_beside_the_network():
    objective = ResponseRegression(BRAIN, 40)
    learn = train([AlignLoss({'1': objective}, lam=1.), ObjectiveRefresh(X, every=0)], epochs=3)
    errors = torch.stack([torch.stack(e).mean() for e in learn.align_loss.losses])
    before = objective.weight.detach().clone()
    learn2 = train([AlignLoss({'1': ResponseRegression(BRAIN, 40)}, lam=1., head_lr=1e-9), ObjectiveRefresh(X, every=0)], epochs=3)
    assert errors[-1] < errors[0] and not torch.equal(before, list(learn2.align_loss.align.heads[0])[0].weight)


def test_prototypes_with_cka_beside_them():
    learn = train([ProtoLoss(LIBRARY, '1', lam=1., more={'1': CKALoss(BRAIN)})], epochs=1)
    row, heads = learn.proto_loss.log[-1], learn.proto_loss.align.heads[0]
    assert [type(o).__name__ for o in heads] == ['PrototypeObjective', 'CKALoss'] and 0 < float(row['1']) < 3


def test_bad_input_before_any_work():
    for bad, match in ((dict(lam=-1), 'lam must be at least 0'), (dict(tau=0), 'tau must be positive'), (dict(each=0), 'each is a number of batches')):
        with pytest.raises(ValueError, match=match): ProtoLoss(LIBRARY, '1', **bad)
    with pytest.raises(ValueError, match='every is a number of epochs'): ProtoRefresh(refit(), every=-1)
    with pytest.raises(ValueError, match="source is 'clean' or 'bank'"): ProtoRefresh(refit(), source='disk')
    with pytest.raises(ValueError, match='second stream has 10 stimuli, the library 400'): ProtoLoss(LIBRARY, '1', stimuli=X[:10])
    with pytest.raises(ValueError, match="made at layer '1', the loss stands at"): ProtoLoss([LIBRARY], ['0', '2'])


TWO = textwrap.dedent('''
    import json, os, sys, warnings
    warnings.filterwarnings('ignore')
    sys.path.insert(0, {tests!r})
    import torch
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo')
    import test_training as t
    from fastai.distributed import DistributedTrainer
    import fastai.distributed
    def over_gloo(self, t, rank): # fastai's own moves the order of the batches through a GPU
        t = torch.as_tensor(t)
        torch.distributed.broadcast(t, rank)
        return t.tolist() if t.ndim else t.item()
    fastai.distributed.DistributedDL._broadcast = over_gloo
    from protoalign.refresh import ProtoLoss, ProtoRefresh
    calls = []
    class Counted(type(t.refit())):
        def __call__(self, *a, **k):
            calls.append(1)
            return super().__call__(*a, **k)
    stimuli = t.X if sys.argv[1] == 'two' else None
    made = Counted(t.X, t.BRAIN, t.DIGITS.ids[:400], '1', n_prototypes=10)
    cbs = [ProtoLoss(None, '1', lam=1., stimuli=stimuli, batch_size=25), ProtoRefresh(made, every=1)]
    with t.no_random(0):
        learn = t.learner(cbs, with_rows=stimuli is None, bs=25, drop_last=True)
        with learn.no_logging(), learn.no_bar(), learn.distrib_ctx(sync_bn=False, cpu=True): learn.fit(3, 1e-2)
    rank = int(os.environ['RANK'])
    lib, rows = learn.proto_loss.library, [int(o) for o in learn.proto_loss.batches.gi_frame.f_locals['batch'][:5]] if stimuli is not None else []
    print('RESULT', json.dumps(dict(rank=rank, world=torch.distributed.get_world_size() if torch.distributed.is_initialized() else 2, calls=len(calls), bits=t.bits(learn).double().sum().item(),
          p_z=float(lib.p_z.sum()), judged=t.judged(learn.model), history=len(learn.proto_refresh.history), rows=rows)), flush=True)
''')


@pytest.mark.parametrize('stream', ['one', 'two'])
def test_two_processes_over_gloo(stream, tmp_path):
    "Both end with the same weights and prototypes; only the first computes them; each draws stimuli of its own."
    pytest.importorskip('accelerate')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    script = tmp_path/'two.py'
    script.write_text(TWO.format(tests=str(ROOT/'tests')))
    base = {**os.environ, 'PYTHONPATH': str(ROOT), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'WORLD_SIZE': '2', 'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1'}
    runs = [subprocess.Popen([sys.executable, str(script), stream], env={**base, 'RANK': str(r), 'LOCAL_RANK': str(r)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for r in (0, 1)]
    told = [p.communicate(timeout=300) for p in runs]
    found = [json.loads(line.split(' ', 1)[1]) for out, _ in told for line in out.splitlines() if line.startswith('RESULT')]
    assert len(found) == 2, told
    a, b = sorted(found, key=lambda o: o['rank'])
    assert (a['calls'], b['calls'], a['history'], b['history']) == (3, 0, 3, 3)
    assert a['bits'] == b['bits'] and a['p_z'] == b['p_z'] and a['judged'] < .8*VANILLA
    assert stream == 'one' or a['rows'] != b['rows']
