"Other recordings, spoiled images, and attacks, against what can be known beforehand."
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from conftest import needs_data
from protoalign.generalisation import CORRUPTIONS, Pixels, corrupt, corruption_accuracy, corruption_summary, fgsm, generalise, make_target, pgd, pixel_scale, robustness, task_hits
from protoalign.networks import CifarResNet, backbone, prepare


@pytest.fixture(scope='module')
def images(): return torch.from_numpy(np.random.default_rng(0).uniform(size=(12, 3, 16, 16))).float()


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return CifarResNet(8).train()


def test_worst_change_of_a_linear_network_at_the_edges():
    "Where pixels would leave [0, 1], the closed form takes each pixel's own room."
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), torch.rand(40, 1, 6, 6)
    w, b = (o[1] - o[0] for o in (net[1].weight.detach(), net[1].bias.detach()))
    y = (x.flatten(1) @ w + b > 0).long()
    sign, eps = (2*y - 1)[:, None], .1
    worst = (x.flatten(1) - eps*sign*w.sign()).clamp(0, 1)
    for attacked in (fgsm(net, x, y, eps), pgd(net, x, y, eps, n_steps=8), pgd(net, x, y, eps, n_restarts=0)): assert torch.allclose(attacked.flatten(1), worst, atol=1e-6)


def test_attack_stays_in_the_ball_and_is_never_easier(network, images):
    y = torch.arange(12) % 10
    for eps in (0., 2/255, 8/255):
        a = pgd(network, images, y, eps, n_steps=4, n_restarts=2, batch_size=5)
        assert (a - images).abs().max() <= eps + 1e-6 and a.min() >= 0 and a.max() <= 1
        assert not (task_hits(network, a, y) & ~task_hits(network, images, y)).any()
    assert torch.equal(pgd(network, images, y, 8/255, seed=3), pgd(network, images, y, 8/255, seed=3))
    assert network.training and all(p.grad is None for p in network.parameters()) and not images.requires_grad
    with pytest.raises(ValueError, match='at least 0'): pgd(network, images, y, -.1)
    with pytest.raises(ValueError, match='from 0 to 1'): pgd(network, images - 1, y)


def test_an_image_that_fools_comes_before_a_higher_loss():
    from protoalign.generalisation import _worst
    fooled, unsure = torch.tensor([1., 1.01, -5]), torch.tensor([1., .99, .99])
    for order in ([fooled, unsure], [unsure, fooled]): assert torch.equal(_worst(nn.Flatten(), torch.stack(order)[:, None, :, None, None], torch.tensor([0])).flatten(), fooled)


def test_what_was_seen_leaves_the_test(network):
    from protoalign.data import split_stimuli
    from protoalign.generalisation import Target
    rng, groups = np.random.default_rng(0), tuple(f's{i}' for i in range(80))
    t = Target(torch.rand(80, 3, 8, 8), rng.normal(size=(80, 5)), split_stimuli(groups), groups)
    count = lambda seen: generalise(network, {'a': t}, ['layer1'], n_groups=4, seen=seen)['n'].iloc[0]
    assert count(()) == len(t.split.test) and count([groups[i] for i in t.split.test[:3]]) == len(t.split.test) - 3
    with pytest.raises(ValueError, match='at least 4'): count(groups)


def test_more_restarts_hurt_no_less(network, images):
    with torch.no_grad(): y = network.eval()(images).argmax(1)
    left = [task_hits(network, pgd(network, images, y, 1/255, n_steps=3, n_restarts=n), y).sum() for n in (1, 4)]
    assert left[1] <= left[0]


@pytest.mark.parametrize('kind', CORRUPTIONS)
@pytest.mark.parametrize('channels', [1, 3])
def test_corruptions(images, kind, channels):
    x = images[:, :channels]
    assert corrupt(x, kind, 0) is x
    found = [corrupt(x, kind, s) for s in range(6)]
    assert all(o.shape == x.shape and o.min() >= 0 and o.max() <= 1 and o.dtype == x.dtype for o in found)
    away = [(o - x).pow(2).mean().item() for o in found]
    assert min(away[1:]) > 0 and (kind == 'pixelate' or away == sorted(away)), 'each severity is further from the image; of pixels of noise, the cells decide'
    assert torch.equal(corrupt(x, kind, 3, seed=1), corrupt(x, kind, 3, seed=1))


def test_corruptions_say_what_is_wrong(images):
    with pytest.raises(ValueError, match='known'): corrupt(images, 'fog', 1)
    for severity in (-1, 6, 1.5):
        with pytest.raises(ValueError, match='severity'): corrupt(images, 'jpeg', severity)


def test_jpeg_is_that_of_pillow(images):
    bytes_, buffer = (images[0].permute(1, 2, 0)*255).round().byte().numpy(), io.BytesIO()
    Image.fromarray(bytes_).save(buffer, 'JPEG', quality=50)
    assert np.array_equal((corrupt(images, 'jpeg', 4)[0].permute(1, 2, 0)*255).round().byte().numpy(), np.array(Image.open(buffer)))


def test_brightness_is_that_of_hsv(images):
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
    hsv = rgb_to_hsv(images.permute(0, 2, 3, 1).numpy())
    hsv[..., 2] = np.clip(hsv[..., 2] + .15, 0, 1)
    assert np.allclose(corrupt(images, 'brightness', 3).permute(0, 2, 3, 1).numpy(), hsv_to_rgb(hsv), atol=1e-5)
    assert torch.allclose(corrupt(torch.zeros(1, 3, 4, 4), 'brightness', 5), torch.full((1, 3, 4, 4), .3))


def test_pixels_wrap_the_scaling(network, images):
    eight = (images*255).round().byte().permute(0, 2, 3, 1).numpy()
    wrapped = Pixels(network.eval(), *pixel_scale(prepare))
    with torch.no_grad(): assert torch.allclose(wrapped(torch.from_numpy(eight).permute(0, 3, 1, 2)/255), network(prepare(eight)), atol=1e-4)
    assert torch.allclose(wrapped.images(prepare(eight)), torch.from_numpy(eight).permute(0, 3, 1, 2)/255, atol=1e-6)
    with pytest.raises(ValueError, match='wrap the network'): pixel_scale(lambda x: prepare(x)**2)


def test_summary_by_hand(network, images):
    y = torch.arange(12) % 10
    table = corruption_accuracy({'a': network, 'b': network}, images, y, kinds=['contrast', 'jpeg'], severities=(1, 5))
    table['accuracy'] = np.where(table.kind == 'clean', .9, np.where(table.network == 'a', np.where(table.kind == 'jpeg', .5, .8), .75))
    found = corruption_summary(table)
    assert found.loc['a'].tolist() == pytest.approx([.9, .65, 1]) and found.loc['b', 'mce'] == pytest.approx((.25/.2 + .25/.5)/2)
    with pytest.raises(ValueError, match='known'): corruption_summary(table, 'c')


def test_before_and_after_see_the_same_noise(network, images):
    found = robustness({'before': network, 'after': network}, images, torch.arange(12) % 10, n_steps=2)
    assert found.loc['before'].drop('mce').equals(found.loc['after'].drop('mce'))


@needs_data('macaque_v4', 'cifar_resnet_weights')
def test_a_network_on_two_animals():
    "Untuned, the network predicts neurons of both animals; photographs that it was trained on leave the test."
    from protoalign.datasets import load
    net = backbone('resnet20')
    targets = {s: make_target(load('macaque-v4', session=s), net.prepare, size=32) for s in ('201025', '190923')}
    first = targets['201025']
    found = generalise(net.make(), targets, ['layer2'], grid=4, seen=[first.groups[i] for i in first.split.train]).set_index(['target', 'metric'])
    assert (found.xs('encoding_r', level='metric')['value'] > .25).all()
    assert found.loc[('201025', 'encoding_r'), 'n'] == len(first.split.test), 'test stimuli are never training stimuli'
