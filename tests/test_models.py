"""Networks by name; other people's networks unwrapped, copied, and asked for logits, or refused in words."""
import copy
import functools
import threading
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
import torchvision
from nets import Functional, build, images
from torch import nn
from torch.utils.checkpoint import checkpoint

from unlearning.models import NETWORKS, copy_network, create_model, depends_on_its_weights, drawn_anew, find_logits, outputs, products_for, unwrap

X = images(2)


def small(): return create_model('small', 10).eval()


# Networks by name

@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('channels', [1, 3])
def test_logits_for_grey_and_colour(name, channels):
    model = create_model(name, 7, channels, 32).eval()
    out = outputs(model, images(2, channels, 32))
    assert out.shape == (2, 7) and out.dtype == torch.float32 and out.isfinite().all()


@pytest.mark.parametrize('size, positions', [(8, 4), (28, 49), (30, 36), (32, 64), (64, 256), (96, 256), (224, 256), (384, 256)])
def test_vit_cuts_images_into_at_most_256_patches(size, positions):
    """N14: 224 pixels in patches of 4 would be 3,136."""
    model = create_model('vit', 10, 3, size)
    assert model.encoder.pos_embedding.shape[1] == 1 + positions


def test_what_is_frozen_changes_no_other_draw():
    def head(frozen):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 10))
        net[:2].requires_grad_(not frozen)
        torch.manual_seed(5)
        return drawn_anew(net)[3].weight
    assert torch.equal(head(True), head(False))


def test_vit_at_224_answers(): assert outputs(create_model('vit', 10, 3, 224).eval(), images(1, size=224)).shape == (1, 10)


@pytest.mark.parametrize('size', [3, 7, 31, 37, 223])
def test_vit_refuses_what_it_cannot_cut(size):
    with pytest.raises(ValueError, match=f'an image of {size} pixels cannot be cut so: resize'): create_model('vit', 10, 3, size)


def test_unknown_network_is_named():
    with pytest.raises(ValueError, match='small, resnet18, resnet50, vit'): create_model('alexnet', 10)


def test_initialization_leaves_the_random_numbers_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    create_model('small', 10, seed=3)
    assert torch.equal(torch.rand(3), want)


# N3, N4: wrappers

@pytest.mark.parametrize('wrap', [lambda n: n, lambda n: torch.compile(n, backend='eager'), nn.DataParallel, lambda n: nn.DataParallel(nn.DataParallel(n)),
                                  lambda n: torch.compile(nn.DataParallel(n), backend='eager'), lambda n: nn.DataParallel(torch.compile(n, backend='eager'))])
def test_wrappers_come_off(wrap):
    net = small()
    assert unwrap(wrap(net)) is net
    copied = copy_network(wrap(net))
    assert type(copied) is type(net) and torch.equal(copied(X), net(X)) and copied[0].weight is not net[0].weight


def test_a_network_of_ones_own_with_a_part_called_module_is_no_wrapper():
    class Own(nn.Module):
        def __init__(self): super().__init__(); self.module = nn.Linear(4, 2)
    assert type(unwrap(Own())) is Own


# Copies

class Caches(Functional):
    def forward(self, x):
        self.kept = [self.features(x)]
        self.last = {'logits': self.fc(self.kept[0])}
        return self.last['logits']


def weight_normed():
    net = small()
    net[0] = torch.nn.utils.weight_norm(net[0])
    return net


def weight_normed_anew():
    net = small()
    net[0] = torch.nn.utils.parametrizations.weight_norm(net[0])
    return net


class Partial(Functional):
    def __init__(self): super().__init__(); self.run = functools.partial(self.features); self.bound = self.features
    def forward(self, x): return self.fc(self.run(x) + self.bound(x))


@pytest.mark.parametrize('make', [Caches, weight_normed, weight_normed_anew, Partial, Functional], ids=lambda m: m.__name__)
def test_copies_answer_alike_and_are_independent(make):
    net = build(make)
    want = net(X)
    copied = copy_network(net)
    assert torch.equal(copied(X), want) and depends_on_its_weights(copied, X)
    with torch.no_grad():
        for p in copied.parameters(): p.add_(1)
    assert torch.equal(net(X), want) and not torch.allclose(copied(X), want)


class Closure(nn.Module):
    def __init__(self): super().__init__(); self.net = small(); self.run = lambda x: self.net(x)
    def forward(self, x): return self.run(x)


class Listed(Closure):
    """The function is in a list, and remembers by a default."""
    def __init__(self): super().__init__(); self.run, self.runs = None, [lambda x, net=self.net: net(x)]
    def forward(self, x): return self.runs[0](x)


class Hooked(Functional):
    """The hook of the copy would write to the original."""
    def __init__(self):
        super().__init__()
        self.conv2.register_forward_hook(lambda module, args, out: setattr(self, 'kept', out))
    def forward(self, x): super().forward(x); return self.fc(self.kept.mean((2, 3)))


@pytest.mark.parametrize('make', [Closure, Listed, Hooked])
def test_copies_that_would_ask_the_original_are_refused(make):
    with pytest.raises(ValueError, match=f'{make.__name__} cannot be copied: the function in its attribute .* remembers the network itself.*make it a method'):
        copy_network(build(make))


@pytest.mark.parametrize('thing', [threading.Lock(), (i for i in range(3)), open(__file__)], ids=['lock', 'generator', 'file'])
def test_what_cannot_be_copied_is_named(thing):
    net = Functional()
    net.conv1.held = [thing]
    with pytest.raises(ValueError, match="Functional cannot be copied .attribute 'conv1.held', a list: .*keep it outside of the network"): copy_network(net)


GLOBAL = small()


class AsksGlobal(nn.Module):
    def __init__(self): super().__init__(); self.fc = nn.Linear(10, 10)
    def forward(self, x): return self.fc(GLOBAL(x))


def frozen():
    net = small()
    for p in net.parameters(): p.requires_grad_(False)
    return net


class Deaf(Functional):
    def forward(self, x): return super().forward(x).detach()


@pytest.mark.parametrize('make, depends', [(small, True), (frozen, True), (AsksGlobal, False), (Deaf, False), (Functional, True), (lambda: copy.deepcopy(Closure()), False)],
                         ids=['small', 'frozen', 'global', 'deaf', 'functional', 'closure'])
def test_whose_weights_an_answer_depends_on(make, depends):
    net = build(make)
    frozen = [p.requires_grad for p in net.parameters()]
    assert depends_on_its_weights(net, X) == depends and [p.requires_grad for p in net.parameters()] == frozen


# What CPU libraries do slowly

@pytest.mark.parametrize('conv, size, product', [(nn.Conv2d(512, 512, 3, padding=1), 1, True), (nn.Conv2d(256, 1024, 1), 4, True), (nn.Conv2d(256, 256, 3, padding=1), 4, False),
                                                 (nn.Conv2d(512, 512, 3, padding=1, groups=2), 1, False), (nn.Conv2d(512, 512, 3, padding='same'), 1, False), (nn.Conv2d(8, 8, 1), 1, False)])
def test_wide_convolutions_on_few_positions_are_products(conv, size, product):
    x = torch.randn(2, conv.in_channels, size, size)
    with products_for(conv, x): y = conv(x)
    def nodes(node): return set() if node is None else {node.name()}.union(*(nodes(n) for n, _ in node.next_functions))
    assert ('ConvolutionBackward0' in nodes(y.grad_fn)) != product
    torch.testing.assert_close(y, conv(x), rtol=1e-4, atol=1e-4)


def test_a_compiled_network_is_left_to_its_own_ways():
    compiled = nn.Sequential(torch.compile(nn.Conv2d(512, 512, 3, padding=1), backend='eager'))
    in_place = nn.Sequential(nn.Conv2d(512, 512, 3, padding=1))
    in_place[0].compile(backend='eager')
    for net in (compiled, in_place): assert 'nullcontext' in type(products_for(net, torch.randn(1, 512, 1, 1))).__name__


class Wide(nn.Module):
    """One wide convolution, asked for as its owner asks, and a small head."""
    def __init__(self, conv, ask): super().__init__(); self.conv, self.ask, self.fc = conv, ask, nn.Linear(conv.out_channels, 10)
    def forward(self, x): return self.fc(self.ask(self.conv, x).mean((2, 3)))


def test_a_convolution_that_forward_compiles_stays_one():
    graphs = []
    ask = torch.compile(lambda conv, x: conv(x), backend=lambda graph, _: graphs.append(graph.code) or graph.forward)
    outputs(Wide(nn.Conv2d(256, 256, 3, padding=1), ask), torch.randn(2, 256, 2, 2))
    assert len(graphs) == 1 and 'conv2d' in graphs[0]


@pytest.mark.parametrize('settings', [(1, 1, 1, 1), ((1,), (1,), (1, 1), 1)])
def test_stride_and_padding_may_be_single_numbers(settings):
    net = Wide(nn.Conv2d(256, 256, 3), lambda conv, x: F.conv2d(x, conv.weight, None, *settings))
    x = torch.randn(2, 256, 2, 2)
    torch.testing.assert_close(outputs(net, x), net(x), rtol=1e-3, atol=1e-3)


class Attends(nn.Module):
    def __init__(self): super().__init__(); self.attention = nn.MultiheadAttention(256, 4, batch_first=True)
    out_channels = 256
    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2)[..., None]


@pytest.mark.parametrize('layer', [nn.Conv2d(256, 256, 3, padding=1), Attends()])
@pytest.mark.parametrize('mixed', [False, True])
def test_gradient_checkpoints_compute_the_same_again(layer, mixed):
    net = Wide(layer, lambda layer, x: checkpoint(layer, x, use_reentrant=False))
    with torch.autocast('cpu', torch.bfloat16, enabled=mixed): value = outputs(net, torch.randn(2, 256, 2, 2)).sum()
    value.backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_product_has_the_type_and_the_layout_of_the_convolution():
    conv, x = nn.Conv2d(256, 1024, 1), torch.randn(3, 256, 2, 2)
    for layout in (torch.contiguous_format, torch.channels_last):
        for mixed in (False, True):
            with torch.autocast('cpu', torch.bfloat16, enabled=mixed):
                want = conv(x.to(memory_format=layout))
                with products_for(conv, x): got = conv(x.to(memory_format=layout))
            assert (got.dtype, got.stride()) == (want.dtype, want.stride())


def test_no_image_and_one_smaller_than_the_kernel_are_as_ever():
    conv = nn.Conv2d(256, 256, 3)
    with products_for(conv, X):
        assert nn.Conv2d(256, 256, 3, padding=1)(torch.randn(0, 256, 2, 2)).shape == (0, 256, 2, 2)
        with pytest.raises(RuntimeError, match='Kernel size'): conv(torch.randn(2, 256, 2, 2))


# N8: logits, whatever comes back

@dataclass
class Answer:
    features: torch.Tensor
    logits: torch.Tensor
    loss: object = None


class Returns(nn.Module):
    def __init__(self, pack): super().__init__(); self.net, self.pack = small(), pack
    def forward(self, x): return self.pack(self.net(x), x)


PACKS = {'tensor': lambda a, b: a, 'tuple': lambda a, b: (a, b), 'list': lambda a, b: [a, b], 'namedtuple': lambda a, b: namedtuple('N', 'main aux')(a, b),
         'namedtuple with logits': lambda a, b: namedtuple('N', 'aux logits')(b, a), 'none first': lambda a, b: (None, a, b), 'dict': lambda a, b: {'x': b, 'logits': a},
         'only tensor of a dict': lambda a, b: {'out': a, 'epoch': 3}, 'ordered dict': lambda a, b: OrderedDict(logits=a, x=b), 'dataclass': lambda a, b: Answer(b, a)}


@pytest.mark.parametrize('pack', PACKS)
def test_logits_are_found(pack): assert torch.equal(outputs(Returns(PACKS[pack]), X), small()(X))


def test_features_are_not_taken_for_logits():
    """(features, logits) or (logits, features): nobody can tell."""
    for pack in (lambda a, b: (b.mean((2, 3)), a), lambda a, b: [a, b.mean((2, 3))]):
        with pytest.raises(TypeError, match='which are the logits'): outputs(Returns(pack), X)
    assert torch.equal(outputs(Returns(lambda a, b: (a, 2 * a)), X), small()(X))  # an auxiliary head


@pytest.mark.parametrize('pack, why', [(lambda a, b: {'x': a, 'y': b}, 'a dict with keys x, y'), (lambda a, b: None, 'a NoneType'), (lambda a, b: 'cat', 'a str'),
                                       (lambda a, b: (), 'a tuple'), (lambda a, b: a.tolist(), 'a list')])
def test_missing_logits_are_named(pack, why):
    with pytest.raises(TypeError, match=f'no logits in what the network returned, {why}'): outputs(Returns(pack), X)


@pytest.mark.parametrize('training', [False, True])
def test_googlenet_in_both_modes(training):
    net = build(lambda: torchvision.models.googlenet(num_classes=10, init_weights=False)).train(training)
    assert outputs(net, images(2, size=64)).shape == (2, 10)


# N9, N10: shape and type

@pytest.mark.parametrize('shape, why', [((10, 1, 1), '2 × 10 × 1 × 1 for 2 images instead of 2 × classes: flatten it'), ((10, 1), '2 × 10 × 1 .*flatten'),
                                        ((5, 2), r'2 × 5 × 2 for 2 images instead of 2 × classes: the library classifies images')])
def test_other_shapes_are_refused(shape, why):
    with pytest.raises(ValueError, match=why): outputs(nn.Sequential(small(), nn.Unflatten(1, shape)), X)


@pytest.mark.parametrize('pack, why', [(lambda a, b: a[:, 0], 'returned 2 for 2 images.*one logit a class'), (lambda a, b: a.sum(), 'returned one number for 2 images'),
                                       (lambda a, b: a[:1], 'returned 1 × 10 for 2 images'), (lambda a, b: a.T, 'returned 10 × 2 for 2 images')])
def test_answers_that_are_not_one_row_an_image(pack, why):
    with pytest.raises(ValueError, match=why): outputs(Returns(pack), X)


@pytest.mark.parametrize('dtype', [torch.double, torch.bfloat16, torch.half, torch.float32])
def test_images_follow_the_type_of_the_network(dtype):
    out = outputs(small().to(dtype), X)
    assert out.dtype == dtype and torch.allclose(out.float(), small()(X), atol=0.05)


def test_integers_and_networks_without_weights_keep_their_type():
    class Takes(nn.Module):
        def forward(self, x): assert x.dtype == torch.uint8; return x.flatten(1).float()
    assert outputs(Takes(), torch.zeros(2, 1, 2, 2, dtype=torch.uint8)).shape == (2, 4)
    assert find_logits(X) is X


def test_a_loss_is_no_logits():
    logits, loss = torch.randn(2, 3), torch.tensor(0.3)
    assert all(find_logits(out) is logits for out in ((loss, logits), (logits, loss), [loss, logits]))
    with pytest.raises(TypeError, match='no logits in what the network returned, a tuple'): find_logits((loss,))
