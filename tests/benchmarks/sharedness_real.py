"""Sharedness, the choice of K, subjects, and animacy and faces among the landmarks, on real recordings; written to nbs/results

    PROTOALIGN_DATA=FOLDER OMP_NUM_THREADS=1 python tests/benchmarks/sharedness_real.py [n_splits] [n_shuffles] [folder for the results]"""
import sys, time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_mutual_info_score

from protoalign.activations import extract
from protoalign.choose_k import choose_k, subject_stability
from protoalign.data import split_stimuli
from protoalign.datasets import load
from protoalign.joint import JointPrototypes
from protoalign.networks import backbone
from protoalign.sharedness import FLAGS, sharedness
from protoalign.sources import data_folder

OUT = Path(__file__).resolve().parents[2]/'nbs'/'results'
NET = backbone('resnet20')


def activations(images, layer): return extract(NET.make(), layer, NET.prepare(images, 48), grid=4)[layer]


def acoustics():
    "Log energies of six cochlear bands and of 63 spectrotemporal modulations: an acoustic model, no network."
    z = np.load(data_folder('natsound165', None, ('acoustic_features.npz',))/'acoustic_features.npz', allow_pickle=False)
    x = np.hstack([z[k].reshape(len(z[k]), -1) for k in ('cochlear', 'modulation')]).astype(float)
    return np.log(np.maximum(x, x[x > 0].min()))


def recordings():
    "(data set, target, network side, activations, responses, content groups, own test set or None)"
    for session in ('201025', '190923'):
        d = load('macaque-v4', session=session)
        yield 'macaque-v4', f'V4-{session}', 'ResNet-20 layer2', activations(d.stimuli, 'layer2'), d.responses[f'V4-{session}'].values, d.groups, split_stimuli(d.groups)
    d = load('objects92')
    for layer in ('layer2', 'layer3'):
        yield 'objects92', 'IT-mean-of-15', f'ResNet-20 {layer}', activations(d.stimuli, layer), d.responses['IT-mean-of-15'].values, d.groups, None
    d = load('natsound165')
    yield 'natsound165', 'electrodes', 'acoustic model', acoustics(), d.responses['electrodes'].values, d.groups, None


def halves(groups, n_splits): return [split_stimuli([f'{s}/{g}' for g in groups], s, test=.5, val=0.) for s in range(n_splits)] # the prefix gives each split a hash of its own


def scaled(x, rows):
    "In units of each feature's deviation over the training stimuli."
    return (x - x[rows].mean(0))/np.maximum(x[rows].std(0), 1e-9)


def one_split(x, y, split, k, seed, n_resamples, acoustic):
    "Counts of the flags, and the stability of K, for one split."
    x = scaled(x, split.train) if acoustic else x
    model = JointPrototypes(k, random_state=seed)
    table = sharedness(model.fit(x[split.train], y[split.train]), x[split.test], y[split.test], random_state=seed)
    rows = np.random.default_rng(seed).permutation(len(y))
    unpaired = sharedness(model.fit(x[split.train], y[rows][split.train]), x[split.test], y[rows][split.test], random_state=seed)
    choice = choose_k(model, x[split.train], y[split.train], (k,), (x[split.test], y[split.test]), n_resamples=n_resamples, random_state=seed).set_index('criterion')
    return dict(n_train=len(split.train), n_test=len(split.test), **{f: (table.flag == f).sum() for f in FLAGS}, shared_if_shuffled=(unpaired.flag == 'shared').sum(),
                median_score=table.score.median(), explained_network=table.explained_network.sum(), explained_brain=table.explained_brain.sum(),
                stability=choice.value['stability'], matched_brain=choice.value['matched_brain'], kappa=choice.value['agreement'], kappa_null=choice.null['agreement'], kappa_p=choice.p['agreement'])


def sharedness_table(n_splits):
    rows = []
    for dataset, target, network, x, y, groups, own in recordings():
        splits = halves(groups, n_splits) if own is None else [own]
        for k in (5, 10) if own is None else (10, 20):
            if k > len(splits[0].train)/5: continue
            start = time.time()
            found = [one_split(x, y, s, k, i, 3 if own is None else 5, network == 'acoustic model') for i, s in enumerate(splits)]
            rows.append(dict(dataset=dataset, target=target, network=network, K=k, n_splits=len(splits), **pd.DataFrame(found).mean().rename({'kappa_p': 'mean_kappa_p'})))
            print(f'{time.time() - start:.0f} s', rows[-1], flush=True)
    return pd.DataFrame(rows)


def choice_tables():
    "The grid of K for two monkeys, from training and validation photographs."
    for dataset, target, _, x, y, _, own in recordings():
        if own is None: return
        table = choose_k(JointPrototypes(), x[own.train], y[own.train], (5, 10, 20, 50, 100), (x[own.val], y[own.val]))
        yield table.assign(dataset=dataset, target=target)


def subjects_table(n_splits):
    "15 people who saw the same 92 objects: partitions of the held-out half by each brain alone, and with one person's rows shuffled."
    d, rows = load('objects92'), []
    x, people = activations(d.stimuli, 'layer2'), {n: r.values for n, r in d.responses.items() if 'subject' in n}
    for k in (5, 9):
        for seed, split in enumerate(halves(d.groups, n_splits)):
            rng = np.random.default_rng(seed)
            for kind, responses in (('as recorded', people), ('rows shuffled', {n: y[rng.permutation(92)] for n, y in people.items()})):
                fits = {n: JointPrototypes(k, n_init=3, random_state=seed).fit(x[split.train], y[split.train]) for n, y in responses.items()}
                pairs = subject_stability(fits, {n: y[split.test] for n, y in responses.items()})
                rows.append(dict(K=k, rows=kind, ari=pairs.ari.mean(), matched_network=pairs.matched_network.mean()))
    table = pd.DataFrame(rows).groupby(['rows', 'K'])
    return table.mean().join(table.ari.std().rename('sd_over_splits')).assign(n_splits=n_splits, n_pairs=105).reset_index()


def associations(labels, flag):
    "Largest |phi| of membership and flag over prototypes, and adjusted mutual information of partition and flag."
    phi = max(abs(np.corrcoef(labels == k, flag)[0, 1]) for k in np.unique(labels) if (labels == k).any() and (labels != k).any())
    return np.array([phi, adjusted_mutual_info_score(flag, labels)])


def landmark_table(n_shuffles):
    "Animacy and faces among the prototypes of 92 objects: the same K with shuffled brain rows, and with shuffled category labels."
    d, rows, rng = load('objects92'), [], np.random.default_rng(0)
    y, names = d.responses['IT-mean-of-15'].values, np.array(d.class_names)[d.labels]
    flags = {'animate': ~np.char.endswith(names, 'inanimate'), 'face': np.char.endswith(names, 'face')}
    shuffles = [rng.permutation(92) for _ in range(n_shuffles)]
    for layer in ('layer2', 'layer3'):
        x = activations(d.stimuli, layer)
        for k in (5, 10):
            for arm, weight in (('joint', .5), ('brain alone', 1.), ('network alone', 0.)):
                fit = lambda rows=slice(None): JointPrototypes(k, brain_weight=weight, n_init=5).fit(x, y[rows]).labels_
                labels = fit()
                again = [fit(s) for s in shuffles] if arm == 'joint' else []
                for name, flag in flags.items():
                    seen = associations(labels, flag)
                    p = lambda null: (1 + (np.array(null) >= seen - 1e-12).sum(0))/(1 + len(null)) if len(null) else (np.nan, np.nan)
                    by_rows, by_labels = p([associations(o, flag) for o in again]), p([associations(labels, flag[s]) for s in shuffles])
                    for i, statistic in enumerate(('largest phi', 'adjusted mutual information')):
                        rows.append(dict(network=f'ResNet-20 {layer}', K=k, arm=arm, category=name, statistic=statistic, value=seen[i],
                                         p_shuffled_brain=by_rows[i], p_shuffled_labels=by_labels[i]))
    return pd.DataFrame(rows)


def main(n_splits=20, n_shuffles=200, out=OUT):
    tables = dict(sharedness=lambda: sharedness_table(n_splits), landmarks_objects92=lambda: landmark_table(n_shuffles),
                  subjects_objects92=lambda: subjects_table(n_splits), choose_k=lambda: pd.concat(choice_tables()))
    for name, make in tables.items():
        table = make()
        table.round(4).to_csv(out/f'{name}.csv', index=False)
        print(table.round(3).to_string())


if __name__ == '__main__': main(*(t(a) for t, a in zip((int, int, Path), sys.argv[1:])))
