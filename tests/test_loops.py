"`AlignmentLoss` in loops that are not ours: Lightning's Trainer and Hugging Face's, λ = 0 and λ > 0."
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from protoalign.activations import extract
from protoalign.alignment import AlignmentLoss
from protoalign.datasets import load
from protoalign.joint import JointPrototypes
from protoalign.library import make_library
from protoalign.loss import PrototypeObjective

DIGITS = load('digits')
X = torch.tensor(DIGITS.stimuli[:400].reshape(-1, 64)/16, dtype=torch.float32)
Y, ROWS = torch.tensor(DIGITS.labels[:400]), torch.arange(400)


@pytest.fixture(scope='module')
def start():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))
    joint = JointPrototypes(10).fit(extract(net, '1', X)['1'], DIGITS.responses['simulated-01'].values[:400])
    return net, make_library(joint, DIGITS.ids[:400], net)


def judged(net, library):
    with torch.no_grad(): return AlignmentLoss(net, {'1': PrototypeObjective(library)})(ROWS, X).item()


def bits(net): return torch.cat([p.detach().flatten() for p in net.parameters()])


def with_lightning(start, lam):
    lightning = pytest.importorskip('lightning')

    class Aligned(lightning.LightningModule):
        def __init__(self, net, library):
            super().__init__()
            self.net, self.align = net, AlignmentLoss(net, {'1': PrototypeObjective(library)}, lam)

        def training_step(self, batch, _):
            x, y, rows = batch
            with self.align.watch(): task = F.cross_entropy(self.net(x), y)
            return task + self.align(rows)

        def configure_optimizers(self): return torch.optim.AdamW(self.net.parameters(), 1e-2)

    torch.manual_seed(1)
    module = Aligned(copy.deepcopy(start[0]), start[1])
    trainer = lightning.Trainer(max_epochs=4, accelerator='cpu', logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(module, DataLoader(TensorDataset(X, Y, ROWS), 50, shuffle=True))
    return module.net


class Rows(Dataset):
    def __len__(self): return 400
    def __getitem__(self, i): return dict(x=X[i], labels=Y[i], rows=ROWS[i])


class Classifier(nn.Module):
    "A network that speaks as Hugging Face's do."
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, labels=None):
        logits = self.net(x)
        return dict(loss=F.cross_entropy(logits, labels), logits=logits)


def with_hugging_face(start, lam, tmp_path):
    transformers = pytest.importorskip('transformers')
    pytest.importorskip('accelerate')

    class Aligned(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            rows, align = inputs.pop('rows'), self.align
            with align.watch(): out = model(**inputs)
            loss = out['loss'] + align(rows)
            return (loss, out) if return_outputs else loss

    model = Classifier(copy.deepcopy(start[0]))
    args = transformers.TrainingArguments(str(tmp_path), num_train_epochs=4, per_device_train_batch_size=50, learning_rate=1e-2, report_to=[], save_strategy='no',
                                          disable_tqdm=True, use_cpu=True, seed=1, remove_unused_columns=False, logging_strategy='no')
    trainer = Aligned(model=model, args=args, train_dataset=Rows())
    trainer.align = AlignmentLoss(model, {'net.1': PrototypeObjective(start[1])}, lam)
    trainer.train()
    return model.net


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('loop', ['lightning', 'hugging face'])
def test_other_loops_train_towards_prototypes(loop, start, tmp_path):
    nets = {lam: with_lightning(start, lam) if loop == 'lightning' else with_hugging_face(start, lam, tmp_path) for lam in (0, 1.)}
    losses = {lam: judged(net, start[1]) for lam, net in nets.items()}
    assert losses[1.] < .6*losses[0], losses
    right = {lam: float((net(X).argmax(1) == Y).float().mean()) for lam, net in nets.items()}
    assert min(right.values()) > .8, right


@pytest.mark.filterwarnings('ignore')
def test_lambda_zero_is_lightnings_own_training(start):
    lightning = pytest.importorskip('lightning')

    class Plain(lightning.LightningModule):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def training_step(self, batch, _): return F.cross_entropy(self.net(batch[0]), batch[1])
        def configure_optimizers(self): return torch.optim.AdamW(self.net.parameters(), 1e-2)

    torch.manual_seed(1)
    plain = Plain(copy.deepcopy(start[0]))
    lightning.Trainer(max_epochs=4, accelerator='cpu', logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False).fit(plain, DataLoader(TensorDataset(X, Y, ROWS), 50, shuffle=True))
    assert torch.equal(bits(plain.net), bits(with_lightning(start, 0)))
    assert np.isfinite(bits(plain.net).numpy()).all()
