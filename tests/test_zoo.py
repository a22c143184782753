"""Networks of torchvision, timm and Hugging Face, with weights at random, at the smallest images that each takes."""
import copy
import logging

import numpy as np
import pytest
import torch
import torchvision
from nets import Functional, ask, build, hold, images, in_threads, pruned
from torch import nn

from unlearning.activations import masks, place_masks
from unlearning.images import batches, in_memory, make_split
from unlearning.methods.activation_pruning import activation_pruning
from unlearning.methods.boundary import boundary
from unlearning.methods.finetune import finetune
from unlearning.methods.gradient_surgery import gradient_surgery
from unlearning.methods.soft_relabeling import soft_relabeling
from unlearning.models import copy_network, depends_on_its_weights, find_logits, outputs
from unlearning.training import Training, logits
from unlearning.unlearn import unlearn
from unlearning.weights import export, load_weights, save_weights

timm, transformers = pytest.importorskip('timm'), pytest.importorskip('transformers')
logging.getLogger('transformers').setLevel(logging.ERROR)


def huggingface(name, **settings):
    config = getattr(transformers, f'{name}Config')(num_labels=10, **settings)
    return lambda: getattr(transformers, f'{name}ForImageClassification')(config)


def torchvisions(name, **settings): return lambda: getattr(torchvision.models, name)(num_classes=10, **settings)


def timms(name, **settings): return lambda: timm.create_model(name, num_classes=10, **settings)


def efficientnet():
    """efficientnet_b0 with its first blocks only."""
    settings, last = torchvision.models.efficientnet._efficientnet_conf('efficientnet_b0', width_mult=1.0, depth_mult=0.5)
    return torchvision.models.EfficientNet(settings[:3], 0.2, num_classes=10, last_channel=last)


def swin():
    """swin_t with one block of each kind in two stages."""
    return torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [3, 3], [7, 7], num_classes=10)


def convnext():
    """convnext_tiny with a block a stage."""
    settings = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([settings(24, 48, 1), settings(48, None, 1)], num_classes=10)


# name: (builder, image size, number of activation calls)
ZOO = {
    'timm resnet10t': (timms('resnet10t'), 32, 11),
    'timm vit_tiny': (timms('vit_tiny_patch16_224', img_size=32, depth=3), 32, 3),
    'timm mobilenetv3': (timms('mobilenetv3_small_100'), 32, 42),
    'hugging face vit': (huggingface('ViT', hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8), 32, 2),
    'hugging face resnet': (huggingface('ResNet', embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type='basic'), 32, 7),
    'torchvision googlenet': (torchvisions('googlenet', init_weights=False), 32, 57),
    'torchvision efficientnet': (efficientnet, 32, 13),
    'torchvision swin': (swin, 32, 4),
    'torchvision convnext': (convnext, 32, 2),
    'own': (Functional, 16, 2),
}
BIG = {'efficientnet_b0': (torchvisions('efficientnet_b0'), 65), 'swin_t': (torchvisions('swin_t'), 12), 'convnext_tiny': (torchvisions('convnext_tiny'), 18)}
each = pytest.mark.parametrize('name', ZOO)


def settled(net, size):
    """With batch statistics of its own, and branches that count: at random and untrained, some networks say nearly the same of every image."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.momentum = None
        if hasattr(m, 'layer_scale'): nn.init.ones_(m.layer_scale)
    with torch.no_grad(): net.train()(images(8, size=size, seed=2))
    return net.eval()


@pytest.fixture(scope='module')
def zoo():
    """(plain network, the same with masks at random, images) by name."""
    made = {}
    def get(name):
        if name not in made:
            plain, x = settled(build(ZOO[name][0]), ZOO[name][1]), images(2, size=ZOO[name][1])
            made[name] = plain, pruned(copy_network(plain), x), x
        return made[name]
    return get


@each
def test_answers(name, zoo):
    plain, _, x = zoo(name)
    assert outputs(plain, x).shape == (2, 10) and depends_on_its_weights(copy_network(plain), x)
    assert outputs(copy.deepcopy(plain).train(), x).shape == (2, 10)


@each
def test_masks_are_placed_and_hold(name, zoo):
    plain, net, x = zoo(name)
    assert len(masks(net)) == ZOO[name][2] and hold(net, x)
    assert not torch.allclose(ask(net, x), ask(plain, x)) and torch.equal(find_logits(net.forward(x)), find_logits(net(x)))


@each
def test_empty_masks_change_nothing(name, zoo):
    plain, _, x = zoo(name)
    placed = place_masks(copy_network(plain), x)
    assert torch.equal(ask(placed, x), ask(plain, x))


@each
def test_masks_hold_in_train_mode(name, zoo):
    _, net, x = zoo(name)
    assert hold(copy.deepcopy(net).train(), x)


@each
def test_threads(name, zoo):
    _, net, x = zoo(name)
    assert in_threads(net, x, 4, requests=24) == 24


@each
def test_saved_and_loaded(name, zoo, tmp_path):
    _, net, x = zoo(name)
    other = load_weights(build(ZOO[name][0], seed=1), save_weights(net, tmp_path/'model.safetensors'))
    assert torch.equal(ask(other, x), ask(net, x))


@each
def test_exported(name, zoo, tmp_path):
    _, net, x = zoo(name)
    program = torch.export.load(export(net, tmp_path/'model.pt2', x)).module()
    more = images(3, size=ZOO[name][1], seed=1)
    with torch.no_grad(): assert torch.allclose(program(more), ask(net, more), atol=1e-4)


@pytest.mark.parametrize('name', BIG)
def test_whole_networks_of_torchvision(name, tmp_path):
    """Masks hold whoever asks, in both modes and several threads, and after saving and exporting."""
    (make, calls), x = BIG[name], images(2, size=32)
    net = pruned(settled(build(make), 32), x)
    assert len(masks(net)) == calls and hold(net, x) and hold(copy.deepcopy(net).train(), x)
    assert torch.equal(net.forward(x), net(x)) and in_threads(net, x, 4, requests=8) == 8
    other = load_weights(build(make, seed=1), save_weights(net, tmp_path/'model.safetensors'))
    assert torch.equal(ask(other, x), ask(net, x))
    program = torch.export.load(export(net, tmp_path/'model.pt2', x)).module()
    with torch.no_grad(): assert torch.allclose(program(x), ask(net, x), atol=1e-4)


# The recipes, on each of them as it is: efficientnet_b0, swin_t and convnext_tiny whole

BRIEF = Training(epochs=1, batch_size=8, lr=1e-3, augment=())
STEPS = dict(batch_size=8, lr=1e-3)
RECIPES = dict(finetune=finetune(repair=BRIEF), surgery=gradient_surgery(erase=STEPS, repair=BRIEF), pruning=activation_pruning(repair=BRIEF, rounds=1),
               soft=soft_relabeling(erase=STEPS, repair=BRIEF), boundary=boundary(erase=STEPS, repair=BRIEF))
WHOLE = {name: (BIG.get({'torchvision efficientnet': 'efficientnet_b0', 'torchvision swin': 'swin_t', 'torchvision convnext': 'convnext_tiny'}.get(name), (build_,))[0], size)
         for name, (build_, size, _) in ZOO.items()}


@pytest.fixture(scope='module')
def colours():
    """Sixteen images of ten classes, eight to forget, of a size."""
    def make(size):
        rng = np.random.default_rng(0)
        pixels = [rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8) for n in (16, 10)]
        return make_split(in_memory(pixels[0], np.arange(16) % 10), in_memory(pixels[1], np.arange(10)), np.arange(8))
    return make


@each
def test_recipes_on_other_peoples_networks(name, colours):
    """Each moves the weights and leaves the original alone; what is pruned is masked in the end."""
    make, size = WHOLE[name]
    split, net = colours(size), settled(build(make), size)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for recipe in RECIPES.values():
        done = unlearn(net, split, recipe, seed=1)
        weights = dict(done.named_parameters())
        assert any(not torch.equal(weights[k], before[k]) for k in weights.keys() & before.keys())
        assert logits(done, split.test).isfinite().all()
        if recipe.name == 'activation_pruning': assert masks(done) and hold(done, next(batches(split.test, 2)).x)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and not net.training
