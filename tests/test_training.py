"The callbacks inside what engineers already use: accumulation, 16 bits, freezing, saving, stopping, two processes."
import json, os, pickle, socket, subprocess, sys, textwrap, warnings

import numpy as np
import pytest
import torch
from torch import nn

with warnings.catch_warnings():
    warnings.filterwarnings('ignore')
    import fastai.callback.progress, fastai.callback.schedule
    from fastai.callback.fp16 import MixedPrecision
    from fastai.callback.schedule import SchedLin
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
from protoalign.resume import Checkpoint

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
    errors = [float(np.mean(e)) for e in learn.align_loss.losses]
    before = objective.weight.detach().clone()
    learn2 = train([AlignLoss({'1': ResponseRegression(BRAIN, 40)}, lam=1., head_lr=1e-9), ObjectiveRefresh(X, every=0)], epochs=3)
    assert errors[-1] < errors[0] and not torch.equal(before, list(learn2.align_loss.align.heads[0])[0].weight)


def test_prototypes_with_cka_beside_them():
    learn = train([ProtoLoss(LIBRARY, '1', lam=1., more={'1': CKALoss(BRAIN)})], epochs=1)
    row, heads = learn.proto_loss.log[-1], learn.proto_loss.align.heads[0]
    assert [type(o).__name__ for o in heads] == ['PrototypeObjective', 'CKALoss'] and 0 < float(row['1']) < 3


def test_a_library_set_by_hand_is_where_every_fit_begins():
    "Numbers and names that people or steering rely on survive the first refresh, and a second fit."
    lib = LIBRARY.renumber(np.roll(np.arange(10), 1))
    lib.names = [f'mine {k}' for k in range(10)]
    loss = ProtoLoss(None, '1')
    loss.set_library(lib)
    learn = train([loss, ProtoRefresh(refit(), every=1)], epochs=1)
    for _ in range(2):
        assert list(loss.library.names) == list(lib.names) and (loss.library.assign == lib.assign).mean() > .8
        with learn.no_logging(), learn.no_bar(): learn.fit(1, 1e-2)


@pytest.mark.parametrize('row, warned', [(dict(K=2, largest=.6), False), (dict(K=2, largest=.8), True), (dict(K=3, largest=.49), False), (dict(K=20, largest=.6), True), (dict(K=20, churn=.4), False), (dict(K=20, churn=.6), True),
                                         (dict(K=5, no_direction=5), True), (dict(K=5, no_direction=4), False)])
def test_a_refresh_warns_of_what_looks_wrong(row, warned):
    "Of two clusters one always has half of the stimuli or more: only a much larger one is told. Prototypes none of which counts train nothing."
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        ProtoRefresh(None).check([dict(epoch=0, layer='layer2', **row)])
    assert bool(told) == warned


def test_every_mth_batch_counts_over_epochs():
    "Twenty is more than the eight batches of an epoch: over five epochs, two passes, not five."
    learn = train([ProtoLoss(LIBRARY, '1', stimuli=X, each=20)], epochs=5, with_rows=False)
    assert len(learn.proto_loss.log) == 2


def test_an_overflow_does_not_kill_the_head():
    "What the objectives learn themselves skips a step whose gradient is not finite, as the network's optimiser does under a scaler."
    class Overflow(Callback):
        order = AlignLoss.order + 1
        def before_step(self):
            if self.iter == 3:
                for p in self.align_loss.align.parameters():
                    if p.grad is not None: p.grad.fill_(float('inf'))
    learn = train([AlignLoss({'1': ResponseRegression(BRAIN, 40)}, lam=1.), ObjectiveRefresh(X, every=0), Overflow()], epochs=1)
    assert all(torch.isfinite(p).all() for p in learn.align_loss.align.parameters()) and torch.isfinite(bits(learn)).all()


def test_objectives_beside_prototypes_in_any_order_of_callbacks():
    for turned in (False, True):
        cbs = [ProtoLoss(None, '1', more={'1': ResponseRegression(BRAIN, 40)}), ProtoRefresh(refit(), every=0), ObjectiveRefresh(X, every=0)]
        learn = train(cbs[::-1] if turned else cbs, epochs=1)
        assert learn.proto_loss.align.heads[0][1].weight.abs().sum() > 0


class Kill(Callback):
    order = 30
    def __init__(self, epoch): self.at = epoch
    def after_batch(self):
        if self.training and self.epoch == self.at and self.iter == 4: raise KeyboardInterrupt


@pytest.mark.parametrize('extra', ['save and stop', 'accumulate', 'two terms'])
def test_resumed_with_company(extra, tmp_path):
    "Checkpoint beside what engineers already use: the resumed run is the unbroken one."
    def cbs(where):
        pull = [ProtoLoss(None, '1', lam=1.), ProtoRefresh(refit(), every=2)]
        if extra == 'two terms': pull = [ProtoLoss(None, '1', lam=1., stimuli=X), ProtoRefresh(refit(), every=2), AlignLoss({'2': CKALoss(BRAIN)}, stimuli=X)]
        if extra == 'accumulate': return [*pull, GradientAccumulation(150)]
        if extra == 'save and stop': return [*pull, SaveModelCallback(monitor='accuracy', fname=f'best-{where}'), EarlyStoppingCallback(monitor='accuracy', patience=9)]
        return pull
    how = dict(epochs=4, with_rows=extra != 'two terms', metrics=accuracy, path=tmp_path)
    whole = train(cbs('whole'), **how)
    with pytest.raises(KeyboardInterrupt): train([*cbs('parts'), Checkpoint(tmp_path/'state.pt'), Kill(2)], **how)
    torch.rand(5)
    parts = train([*cbs('parts'), Checkpoint(tmp_path/'state.pt')], **how)
    assert torch.equal(bits(whole), bits(parts)) and len(parts.recorder.values) == 4
    assert [list(map(float, v)) for v in parts.recorder.values] == [list(map(float, v)) for v in whole.recorder.values]


def test_schedules_are_known_by_their_values(tmp_path):
    "A resumed process has other function objects; the same schedule resumes, another one is refused."
    def cbs(top): return [ProtoLoss(None, '1', lam={'1': SchedLin(0., top)}, tau=SchedLin(.2, .1)), ProtoRefresh(refit(), every=1)]
    whole = train(cbs(1.), epochs=3)
    with pytest.raises(KeyboardInterrupt): train([*cbs(1.), Checkpoint(tmp_path/'state.pt'), Kill(2)], epochs=3)
    parts = train([*cbs(1.), Checkpoint(tmp_path/'state.pt')], epochs=3)
    assert torch.equal(bits(whole), bits(parts))
    with pytest.raises(ValueError, match='holds another training'): train([*cbs(2.), Checkpoint(tmp_path/'state.pt')], epochs=3)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    pull = lambda **o: [ProtoLoss(None, '1', **o), ProtoRefresh(refit(), every=1), Checkpoint(tmp_path/'state.pt')]
    train(pull(lam=1.), epochs=1)
    for other in (dict(lam=.5), dict(lam=1., stimuli=X)):
        with pytest.raises(ValueError, match='holds another training'): train(pull(**other), epochs=1, with_rows='stimuli' not in other)


def test_each_fit_of_a_learner_has_its_own_checkpoint(tmp_path):
    with no_random(0):
        learn = learner([ProtoLoss(None, '1', lam=1.), ProtoRefresh(refit(), every=1), Checkpoint(tmp_path/'state.pt')])
        with learn.no_logging(), learn.no_bar():
            learn.lr_find(num_it=10, show_plot=False)
            assert not (tmp_path/'state.pt').exists()
            learn.fit(2, 1e-2)
            after = bits(learn)
            learn.fit(1, 1e-2)
    assert sorted(p.name for p in tmp_path.glob('state*')) == ['state.fit1.pt', 'state.pt'] and not torch.equal(after, bits(learn))
    assert len(learn.proto_loss.log) == 8


def test_callbacks_can_be_pickled_after_training():
    "As `learn.export` does; only the Learner's own users can say whether their data can."
    learn = train([ProtoLoss(None, '1', stimuli=X), ProtoRefresh(refit(), every=0)], epochs=1, with_rows=False)
    for cb in (learn.proto_loss, learn.proto_refresh):
        assert pickle.dumps({k: v for k, v in vars(cb).items() if k != 'learn'})


def test_bad_input_before_any_work():
    for bad, match in ((dict(lam=-1), 'lam must be at least 0'), (dict(tau=0), 'tau must be positive'), (dict(each=0), 'each is a number of batches')):
        with pytest.raises(ValueError, match=match): ProtoLoss(LIBRARY, '1', **bad)
    with pytest.raises(ValueError, match='every is a number of epochs'): ProtoRefresh(refit(), every=-1)
    with pytest.raises(ValueError, match="source is 'clean' or 'bank'"): ProtoRefresh(refit(), source='disk')
    with pytest.raises(ValueError, match='second stream has 10 stimuli, the library 400'): ProtoLoss(LIBRARY, '1', stimuli=X[:10])
    with pytest.raises(ValueError, match="made at layer '1', the loss stands at"): ProtoLoss([LIBRARY], ['0', '2'])
    with pytest.raises(ValueError, match=r"lam names layers without objectives: \['2'\]"): ProtoLoss(LIBRARY, '1', lam={'2': 1.})
    with pytest.raises(ValueError, match='more names layers where the loss does not stand'): ProtoLoss(LIBRARY, '1', more={'2': CKALoss(BRAIN)})
    with pytest.raises(ValueError, match='need the weights of each of 2 libraries, got 3'): ProtoLoss([LIBRARY, LIBRARY], '1', weights=[None]*3)
    with pytest.raises(ValueError, match='lam must be at least 0, got -1'): train([ProtoLoss(LIBRARY, '1', lam=lambda progress: -1.)], epochs=1)
    with pytest.raises(ValueError, match='one stream needs the row of each stimulus'): train([ProtoLoss(LIBRARY, '1')], epochs=1, with_rows=False)
    with pytest.raises(ValueError, match='add one of them'): train([ObjectiveRefresh(X)], epochs=1, with_rows=False)


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
    drawn = []
    class Watched(ProtoLoss):
        name = 'proto_loss'
        def _draw(self):
            rows = super()._draw()
            drawn.append(rows.tolist())
            return rows
    loss = Watched(None, '1', lam=1., stimuli=stimuli, batch_size=25)
    cbs = [loss, ProtoRefresh(made, every=1)]
    with t.no_random(0):
        learn = t.learner(cbs, with_rows=stimuli is None, bs=25, drop_last=True)
        with learn.no_logging(), learn.no_bar(), learn.distrib_ctx(sync_bn=False, cpu=True): learn.fit(3, 1e-2)
    rank = int(os.environ['RANK'])
    lib, rows = loss.library, drawn[0][:5] if drawn else []
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
