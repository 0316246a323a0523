"""Activations straight to disk at full size: seconds and the most memory that a fresh process ever held. Writes nbs/results/extraction.csv.

    python tests/benchmarks/extraction.py"""
import csv, json, os, resource, subprocess, sys, tempfile, time
from pathlib import Path

import torch
from torch import nn
from torchvision.models import resnet50

from protoalign.activations import extract

ROOT = Path(__file__).resolve().parents[2]
CASES = { # stimuli, pixels, channels, pooling; a network of two convolutions, or one that people use
    '73,000 × 128': (73_000, 32, 128, dict(grid=1)),
    '10,000 × 15,000': (10_000, 50, 24, dict(how='flatten')),
    'ResNet-50': (64, 224, None, dict(batch_size=32)),
}


def images(n, size, batch_size):
    "Simulated images, made batch by batch."
    for first in range(0, n, batch_size):
        yield torch.randn(min(batch_size, n - first), 3, size, size, generator=torch.Generator().manual_seed(first))


def peak_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024


def network(size, channels):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, channels, 3, 2 if size == 32 else 1, 1), nn.ReLU()) if channels else resnet50()


def case(name, store):
    n, size, channels, options = CASES[name]
    net, options = network(size, channels), dict(options)
    layers, batch_size = '3' if channels else 'auto', options.pop('batch_size', 500)
    def run():
        start = time.monotonic()
        acts = extract(net, layers, images(n, size, batch_size), store=store, key=[n, size], **options)
        return acts, time.monotonic() - start
    extract(net, layers, images(1, size, 1), **options)
    before = peak_mb()
    acts, seconds = run()
    after = peak_mb()
    _, again = run()
    return dict(case=name, stimuli=n, features=sum(o.shape[1] for o in acts.values()), file_mb=round(sum(o.nbytes for o in acts.values())/1e6, 1), seconds=round(seconds, 1), stimuli_per_second=round(n/seconds, 1),
                peak_mb=round(after), of_which_before_mb=round(before), again_seconds=round(again, 3))


def main():
    rows = []
    for name in CASES:
        with tempfile.TemporaryDirectory() as store:
            done = subprocess.run([sys.executable, __file__, name, store], capture_output=True, text=True, check=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1])
    with open(ROOT/'nbs'/'results'/'extraction.csv', 'w', newline='', encoding='utf-8') as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == '__main__':
    if len(sys.argv) == 3: print(json.dumps(case(*sys.argv[1:])))
    else: main()
