"160 digits with a simulated subject: enough to run, too few to believe. As a script: `few_digits.py run|kill|writes CONFIG OUT [SEED SECONDS]`."
import json, os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path

import numpy as np

from protoalign.config import Config
from protoalign.datasets import dataset_loader, load
from protoalign.experiment import run


@dataset_loader('few-digits')
def few_digits(data_dir=None):
    ten, rows = load('digits'), np.arange(160)
    responses = {k: replace(r, values=r.values[rows], ids=tuple(np.array(r.ids)[rows])) for k, r in ten.responses.items()}
    return replace(ten, name='few-digits', stimuli=ten.stimuli[rows], ids=ten.ids[:160], groups=ten.groups[:160], labels=ten.labels[rows], responses=responses)


def killed_run(config, out, seed, longest):
    "Ten times kill -9 a run after a random while, then let it finish; one that ends before its kill is put aside. (Seconds, whole tables, half-written files) at each kill."
    rng, killed = random.Random(seed), []
    while len(killed) < 10:
        wait, pid = rng.uniform(.02, longest), os.fork()
        if pid == 0:
            try: run(config, out)
            finally: os._exit(0)
        end, gone = time.monotonic() + wait, 0
        while time.monotonic() < end and not gone:
            gone = os.waitpid(pid, os.WNOHANG)[0]
            time.sleep(.005)
        if gone:
            os.rename(out, f'{out}-ended-after-{len(killed)}')
            continue
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed.append((round(wait, 2), len(list(Path(out).glob('*/[!.]*.csv'))), len(list(Path(out).rglob('*.partial')))))
    run(config, out)
    return killed


def _die_at_replace(n):
    real, calls = os.replace, []
    def replace_or_die(source, target):
        calls.append(target)
        if len(calls) == n: os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
    os.replace = replace_or_die


def killed_between_writes(config, out):
    "The n-th process dies with its n-th file written but not yet in its place, until one gets through. The number of kills."
    for n in range(1, 100):
        pid = os.fork()
        if pid == 0:
            _die_at_replace(n)
            try: run(config, out)
            finally: os._exit(0)
        if os.WIFEXITED(os.waitpid(pid, 0)[1]): return n - 1


if __name__ == '__main__':
    job, path, out, *more = sys.argv[1:]
    config = Config(**json.loads(Path(path).read_text()))
    start, heard = time.monotonic(), []
    if job == 'run': print(json.dumps(dict(rows=len(run(config, out, told=heard.append)), seconds=time.monotonic() - start, trained=[e['cell'] for e in heard if e.get('seconds')])))
    elif job == 'writes': print(killed_between_writes(config, out))
    else: print(json.dumps(killed_run(config, out, int(more[0]), float(more[1]))))
