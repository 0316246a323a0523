"""What an alignment term costs: per training step, per refresh, and in memory. Writes nbs/results/training_cost.csv.

    python tests/benchmarks/training_cost.py [--parts step,refresh,memory] [--quick] [--out nbs/results/training_cost.csv]

ResNet-18 at 112 pixels, one stream, the loss at layer3 pooled to 256 units; 5,000 simulated stimuli with 300 voxels. The ways take turns within one run.
`share` is the median over turns of the term alone (forward and backward from the layer's activations) over a vanilla step; `whole` is what the whole step takes, over a vanilla step.
Two streams are timed too: there the stimuli pass through the network a second time, and that is the cost.
"""
import argparse, json, subprocess, sys, time

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torchvision.models import resnet18

from record import keep, machine, peak_gb, table_path
from protoalign.activations import extract
from protoalign.alignment import AlignmentLoss
from protoalign.baselines import CKALoss, ResponseRegression, RSALoss
from protoalign.layers import capture
from protoalign.loss import PrototypeObjective
from protoalign.protonce import ProtoNCE
from protoalign.refit import Refit

LAYER, SIZE = 'layer3', 112
WAYS = 'vanilla', 'proto_loss', 'RSA', 'RSA, soft ranks', 'CKA', 'regression', 'ProtoNCE', 'ProtoNCE without instances', 'proto_loss, two streams', 'proto_loss, two streams, every 4th'


def world(n):
    "Simulated activations and responses with twenty concepts."
    rng = np.random.default_rng(0)
    concept = rng.integers(20, size=n)
    return (rng.normal(size=(20, 256))[concept] + rng.normal(size=(n, 256))).astype(np.float32), (rng.normal(size=(20, 300))[concept] + rng.normal(size=(n, 300))).astype(np.float32)


def objectives(n):
    acts, brain = world(n)
    refit = Refit(torch.zeros(n, 1), brain, [f's{i}' for i in range(n)], LAYER, n_prototypes=20)
    nce, nce_alone, head = ProtoNCE(n, 256), ProtoNCE(n, 256, instance=False), ResponseRegression(brain, 256)
    for o in (nce, nce_alone, head): o.refresh(acts)
    proto = PrototypeObjective(refit(torch.nn.Identity(), acts={LAYER: acts}))
    return {'proto_loss': proto, 'RSA': RSALoss(brain), 'RSA, soft ranks': RSALoss(brain, 'spearman'), 'CKA': CKALoss(brain), 'regression': head, 'ProtoNCE': nce, 'ProtoNCE without instances': nce_alone,
            'proto_loss, two streams': proto, 'proto_loss, two streams, every 4th': proto}


def step_of(way, model, made, x, y, rows):
    "One training step without the optimiser's, which is the same for all."
    align = None if way == 'vanilla' else AlignmentLoss(model, {LAYER: made[way]}, .5)
    count = [0]
    def step():
        count[0] += 1
        model.zero_grad()
        if align is None: F.cross_entropy(model(x), y).backward()
        elif 'two' not in way:
            with align.watch(): task = F.cross_entropy(model(x), y)
            (task + align(rows)).backward()
        else:
            loss = F.cross_entropy(model(x), y)
            if 'every' not in way or count[0] % 4 == 1: loss = loss + align(rows, x)
            loss.backward()
    return step


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def term_alone(objective, h, rows):
    h = h.detach().requires_grad_()
    def go(): objective(h, rows).backward()
    return go


def step_part(n, batches, turns):
    model, made, found = resnet18(num_classes=10).train(), objectives(n), []
    for batch in batches:
        g = torch.Generator().manual_seed(0)
        x, y, rows = torch.randn(batch, 3, SIZE, SIZE, generator=g), torch.randint(10, (batch,), generator=g), torch.randperm(n, generator=g)[:batch]
        with capture(model, [LAYER]) as kept, torch.no_grad(): model(x)
        steps, alone = {w: step_of(w, model, made, x, y, rows) for w in WAYS}, {w: term_alone(made[w], kept[LAYER], rows) for w in WAYS[1:8]}
        for f in alone.values(): f()
        steps['vanilla']()
        times = pd.DataFrame([{w: seconds(f) for w, f in steps.items()} | {f'{w} alone': np.median([seconds(f) for _ in range(5)]) for w, f in alone.items()} for _ in range(turns)])
        for w in WAYS:
            whole = times[w]/times['vanilla']
            row = dict(part='step', what=w, size=f'batch {batch}', seconds=times[w].median(), whole=whole.mean() if 'every' in w else whole.median(), whole_low=whole.quantile(.25), whole_high=whole.quantile(.75))
            if w in alone: row.update(alone_ms=1e3*times[f'{w} alone'].median(), share=(times[f'{w} alone']/times['vanilla']).median())
            found.append(row)
            print(row, flush=True)
    return found


def refresh_part(n, turns):
    "A refresh of 5,000 stimuli, from the bank and from a clean pass, as a share of an epoch of as many images (vanilla steps of 64)."
    model, (acts, brain) = resnet18(num_classes=10).train(), world(n)
    x, y = torch.randn(64, 3, SIZE, SIZE), torch.randint(10, (64,))
    step = step_of('vanilla', model, {}, x, y, None)
    step()
    epoch = np.median([seconds(step) for _ in range(turns)])*n/64
    passes = np.median([seconds(lambda: extract(model, LAYER, x)) for _ in range(turns)])*n/64
    refit = Refit(torch.zeros(n, 1), brain, [f's{i}' for i in range(n)], LAYER, n_prototypes=20)
    cold = seconds(lambda: setattr(refit, 'first', refit(model, acts={LAYER: acts})))
    def moved(i): return acts + np.float32(.1)*np.random.default_rng(i).standard_normal(acts.shape, dtype=np.float32)
    warm = np.median([seconds(lambda: refit(model, like=refit.first, acts={LAYER: moved(i)})) for i in range(turns)])
    rows = dict(cold=cold, bank=warm, clean=passes + warm, **{'clean pass alone': passes})
    return [dict(part='refresh', what=f'refresh, {k}', size=f'{n:,} stimuli', seconds=v, share=v/epoch) for k, v in rows.items()]


def one_memory(way, n):
    torch.set_num_threads(2)
    model, made = resnet18(num_classes=10).train(), objectives(n)
    x, y, rows = torch.randn(64, 3, SIZE, SIZE), torch.randint(10, (64,)), torch.arange(64)
    step = step_of(way, model, made, x, y, rows)
    for _ in range(3): step()
    return peak_gb()


def memory_part(n):
    found = []
    for way in WAYS[:9]:
        told = float(subprocess.run([sys.executable, __file__, '--one', json.dumps([way, n])], check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        found.append(dict(part='memory', what=way, size='batch 64', peak_gb=told, share=told/found[0]['peak_gb'] - 1 if found else 0.))
        print(found[-1], flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--parts', default='step,refresh,memory')
    parser.add_argument('--batches', default='64,256')
    parser.add_argument('--turns', type=int, default=7)
    parser.add_argument('--quick', action='store_true', help='few stimuli, few turns, to try the script')
    parser.add_argument('--out', help='file to write; in nbs/results by default, a temporary one with --quick')
    parser.add_argument('--one', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: return print(one_memory(*json.loads(args.one)))
    n, batches, turns = (400, (16,), 2) if args.quick else (5000, tuple(map(int, args.batches.split(','))), args.turns)
    parts, about = dict(step=lambda: step_part(n, batches, turns), refresh=lambda: refresh_part(n, turns), memory=lambda: memory_part(n)), machine()
    for part in args.parts.split(','):
        table = pd.DataFrame([{**row, **about} for row in parts[part]()])
        print(table.drop(columns='machine').to_string(), flush=True)
        keep(table, table_path('training_cost', args.out, args.quick), ['part', 'size'], 4)


if __name__ == '__main__': main()
