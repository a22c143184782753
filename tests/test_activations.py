"""An activation is a call: each is found and masked at its place, whoever calls the network, however it is handed on."""
import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from nets import HANDED_ON, OWN, Block, Functional, Transformer, ask, build, head, hold, images, in_threads, pruned
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.feature_extraction import create_feature_extractor

from unlearning.activations import Mask, mask_activations, masks, place_masks, watch_activations
from unlearning.models import NETWORKS, create_model

X = images()
each_own = pytest.mark.parametrize('name', OWN)
each_network = pytest.mark.parametrize('name', NETWORKS)


def fresh(name, seed=0):
    model = create_model(name, 5, 3, 32, seed).eval()
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    nn.init.normal_(last.weight, generator=torch.Generator().manual_seed(seed))  # torchvision's vit starts with zeros: the same logits always
    return model


@pytest.fixture(scope='module')
def zoo():
    """Each network by name, with random masks; a copy for every test."""
    made = {}
    def get(name):
        if name not in made: made[name] = pruned(fresh(name), images(size=32))
        return copy.deepcopy(made[name])
    return get


# N1, N2: which calls there are

@each_own
def test_each_call_has_a_mask_and_empty_masks_change_nothing(name):
    make, calls = OWN[name]
    net, plain = build(make), build(make)
    weights = dict(net.named_parameters())
    placed = place_masks(net, X)
    assert len(masks(placed)) == calls and placed is net
    assert {id(p) for p in placed.parameters()} == {id(p) for p in weights.values()}  # an optimizer built before goes on working
    for training in (False, True):
        torch.manual_seed(0)
        want = plain.train(training)(X)
        torch.manual_seed(0)
        assert torch.equal(placed.train(training)(X), want)


@each_own
def test_masks_hold(name):
    net, plain = build(OWN[name][0]), build(OWN[name][0])
    assert hold(pruned(net, X), X) and not torch.allclose(ask(net, X), ask(plain, X))


@each_own
@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
def test_a_network_that_is_masked_shut_says_the_same_of_every_image(name, training):
    """Beyond what masks report of themselves: what flows on is masked."""
    net = pruned(build(OWN[name][0]), X, keep=0)
    for m in net.modules():
        if isinstance(m, Block): m.register_forward_hook(lambda m, args, out: out - args[0])  # without its shortcut
    if name.startswith('transformer') or 'three' in name: pytest.skip('shortcuts around every activation')
    net.eval() if not training else net.train()
    a, b = net(X), net(images(seed=1))
    assert torch.allclose(a, b, atol=1e-6)


def test_calls_are_counted_per_network():
    counts = {'small': 7, 'resnet18': 1 + 8 * 2, 'resnet50': 1 + 16 * 3, 'vit': 6}
    assert {name: len(masks(place_masks(fresh(name), images(size=32)))) for name in NETWORKS} == counts


def test_order_is_that_of_execution():
    class Backwards(nn.Module):
        def __init__(self): super().__init__(); self.last, self.first, self.conv = nn.ReLU(), nn.Tanh(), nn.Conv2d(3, 4, 3)
        def forward(self, x): return self.last(F.elu(self.first(self.conv(x)))).mean((2, 3))
    net = place_masks(Backwards(), X)
    assert list(masks(net)) == list(watch_activations(net, X)) == ['first.mask', 'mask_0', 'last.mask']


@pytest.mark.parametrize('make', [lambda: nn.Sequential(nn.Conv2d(3, 8, 3), *head()), lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)),
                                  lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softmax(1), *head())], ids=['conv', 'linear', 'softmax'])
def test_no_activation_is_named(make):
    net = make()
    net(X)
    with pytest.raises(ValueError, match='no activation call found in Sequential: looked for relu, .*sigmoid'): place_masks(net, X)


class Gated(Functional):
    """A gate that does not depend on the image is no activation of the image."""
    def __init__(self): super().__init__(); self.gate = nn.Parameter(torch.full((4, 8), 0.3))
    def forward(self, x): return self.fc(F.relu(self.conv1(x)).mean((2, 3)) * torch.tanh(self.gate).mean(0))


class Normalises(Functional):
    def forward(self, x): return super().forward((x - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / 2)


class Mish(nn.Module):
    def forward(self, x): return x * torch.tanh(F.softplus(x))


class Options(Functional):
    def forward(self, images, features=False, *, scale=1.0):
        x = self.features(images) * scale
        return x if features else self.fc(x)


class Noisy(Functional):
    """What only training does lies before, between and after the activations."""
    def forward(self, x):
        x = self.bn1(self.conv1(x))
        if self.training: x = x + 0.1 * torch.randn_like(x)
        x = F.relu(x)
        x = F.dropout(x, 0.2, self.training)
        x = F.relu(self.bn2(self.conv2(x))).mean((2, 3))
        return (self.fc(x), self.fc(torch.tanh(x))) if self.training else self.fc(x)


class Checkpointed(Functional):
    def forward(self, x):
        x = checkpoint(lambda x: F.relu(self.bn1(self.conv1(x))), x, use_reentrant=False)
        return self.fc(x.mean((2, 3)))


class Kept(Functional):
    """torch's module of this function takes arguments of its own."""
    def __init__(self): super().__init__(); self.act = torch.threshold
    def forward(self, x): return self.fc(self.act(self.conv1(x), 0.1, 0.).mean((2, 3)))


@pytest.mark.parametrize('make, calls', [(Gated, 1), (Normalises, 2), (lambda: chain_of(Mish()), 1), (Options, 2), (Noisy, 2), (Checkpointed, 1), (Kept, 1)],
                         ids=['gate', 'constant', 'own mish', 'options', 'noise', 'checkpointing', 'threshold'])
def test_unusual_forwards(make, calls):
    net = pruned(build(make), X)
    assert len(masks(net)) == calls and hold(net, X) and hold(net.train(), X)


def chain_of(act): return nn.Sequential(nn.Conv2d(3, 8, 3), act, *head())


class Standardises(Functional):
    """It computes with its buffers."""
    def __init__(self): super().__init__(); self.register_buffer('mean', torch.zeros(3))
    def forward(self, x): return super().forward(x - self.mean.view(1, 3, 1, 1))


def test_buffers_are_not_frozen_into_a_rewritten_forward():
    net, plain = pruned(build(Standardises), X, keep=1), build(Standardises)
    for m in (net, plain): m.mean.fill_(0.5)
    assert torch.equal(ask(net, X), ask(plain, X)) and torch.equal(ask(net.double(), X.double()), ask(plain.double(), X.double()))


def test_an_option_that_the_trace_did_not_see_is_refused():
    net = place_masks(build(Options), X)
    assert net(images=X).shape == (4, 10) and net(X, features=False).shape == (4, 10)
    with pytest.raises(AssertionError, match='features has been specialized'): net(X, features=True)


# In place: who reads the input afterwards reads the masked value

class ReadAfterwards(Functional):
    def forward(self, x):
        x = self.conv1(x)
        F.relu(x, inplace=True)
        return self.fc(x.mean((2, 3)))


class ReadByModule(Functional):
    def __init__(self): super().__init__(nn.ReLU(inplace=True))
    def forward(self, x):
        x = self.conv1(x)
        y = self.activation(x)
        return self.fc((x + y).mean((2, 3)))


class ReadByMethod(Functional):
    def forward(self, x):
        x = self.conv1(x)
        y = x.relu_()
        return self.fc((x - 2 * y).mean((2, 3)))


@pytest.mark.parametrize('cls', [ReadAfterwards, ReadByModule, ReadByMethod])
def test_what_is_read_after_an_activation_in_place_is_masked(cls):
    net = pruned(build(cls), X, keep=0)
    assert torch.equal(ask(net, X), net.fc.bias.expand(4, 10))


class ThroughView(Functional):
    def forward(self, x):
        x = self.conv1(x)
        x.flatten(1).relu_()
        return self.fc(x.mean((2, 3)))


class Branches(Functional):
    def forward(self, x): return self.fc(F.relu(self.conv1(x)).mean((2, 3))) * (2 if x.sum() > 0 else 1)


class Keeps(Functional):
    def forward(self, x):
        self.kept = F.relu(self.conv1(x)).mean((2, 3))
        return self.fc(self.kept)


class TokensFirst(Transformer):
    def __init__(self): super().__init__(); self.encoder.layers[0].self_attn.batch_first = False
    def forward(self, x): return self.fc(torch.relu(self.patches(x).flatten(2).permute(2, 0, 1)).mean(0))


class Fused(Functional):
    """Without gradients it takes a path of its own."""
    def __init__(self): super().__init__(nn.ReLU())
    def forward(self, x):
        x = self.conv1(x)
        return self.fc((self.activation(x) if torch.is_grad_enabled() else x.clamp(min=0)).mean((2, 3)))


@pytest.mark.parametrize('make, why', [
    (ThroughView, 'answers differently in eval mode'), (Branches, r'Branches \(the network itself\): its forward cannot be traced.*control flow'),
    (Keeps, "keeps what it computes in its attribute 'kept'"), (TokensFirst, 'does not begin with the batch'),
    (Fused, "'activation.mask' is not asked exactly once without gradients"),
    (lambda: torch.jit.script(create_model('small', 10)), 'scripted network'), (lambda: torch.fx.symbolic_trace(build(Functional)), 'torch.fx already')],
    ids=['view', 'control flow', 'keeps', 'tokens first', 'fused', 'scripted', 'traced'])
def test_what_cannot_be_masked_is_refused_by_name_and_left_alone(make, why):
    net = build(make)
    before, want = set(net.state_dict()), ask(net, X)
    with pytest.raises(ValueError, match=why): place_masks(net, X)
    assert set(net.state_dict()) == before and torch.equal(ask(net, X), want) and not masks(net)


# An activation by another name

RECTIFY = {'method': lambda x: x.clamp(min=0), 'position': lambda x: x.clamp(0), 'function': lambda x: torch.clamp(x, min=0.), 'clamp_min': lambda x: torch.clamp_min(x, 0),
           'clip': lambda x: x.clip(0, 6), 'in place': lambda x: x.clamp_(min=0), 'clip in place': lambda x: torch.clip_(x, 0., 6.)}


class Clamps(Functional):
    """Its second activation is a plain one, so that a first one without a mask would go unnoticed."""
    def features(self, x):
        x = self.activation(self.bn1(self.conv1(x.clamp(-1, 1).clamp(0, 1))))  # the image in its range: no activation
        return torch.tanh(self.bn2(self.conv2(x))).mean((2, 3))


@pytest.mark.parametrize('how', RECTIFY)
def test_a_clamp_from_zero_is_an_activation(how):
    net = pruned(build(lambda: Clamps(RECTIFY[how])), X)
    assert [m.size for m in masks(net).values()] == [(8, 14, 14), (8, 12, 12)] and hold(net, X)


def test_a_hidden_layer_of_the_images_shape_is_no_image():
    class Same(Functional):
        def __init__(self): super().__init__(); self.same = nn.Conv2d(3, 3, 3, padding=1)
        def forward(self, x): return self.fc(F.relu(self.conv1(self.same(x.clamp(0, 1)).clamp(min=0))).mean((2, 3)))
    assert [m.size for m in masks(place_masks(build(Same), X)).values()] == [(3, 16, 16), (8, 14, 14)]


def test_other_clamps_are_none():
    net = place_masks(build(lambda: Clamps(lambda x: x.clamp(-1, 1))), X)
    assert [m.size for m in masks(net).values()] == [(8, 12, 12)]


@pytest.mark.parametrize('larger', [lambda x: torch.maximum(x, torch.zeros_like(x)), lambda x: torch.max(x, torch.zeros(())), lambda x: x.maximum(x.new_zeros(1)),
                                    lambda x: x.clamp(min=x.new_zeros(1))])
def test_a_maximum_with_zero_is_refused(larger):
    with pytest.raises(ValueError, match=r'Clamps \(the network itself\): the larger of x and 0 is an activation.*make it an nn.ReLU'):
        place_masks(build(lambda: Clamps(larger)), X)


@pytest.mark.parametrize('kind', [nn.RNN, nn.LSTM, nn.GRU])
def test_what_happens_inside_a_recurrent_layer_is_said(kind):
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.act, self.fc = kind(16, 8, batch_first=True), nn.ReLU(), nn.Linear(8, 10)
        def forward(self, x): return self.fc(self.act(self.rows(x.mean(1))[0][:, -1]))
    with pytest.warns(UserWarning, match=f"inside {kind.__name__} 'rows' .* get no mask"): net = place_masks(build(Rows), X)
    assert list(masks(net)) == ['act.mask']


# N3: compiled; N4: whoever calls

@pytest.mark.parametrize('wrap', [lambda net: torch.compile(net, backend='eager'), nn.DataParallel,
                                  lambda net: nn.DataParallel(torch.compile(net, backend='eager'))], ids=['compiled', 'parallel', 'both'])
def test_wrapped_networks_are_pruned_as_plain_ones(wrap):
    x, plain = images(size=32), pruned(fresh('small'), images(size=32))
    wrapped = wrap(fresh('small'))
    wrapped(x)
    net = pruned(wrapped, x)
    assert set(net.state_dict()) == set(plain.state_dict()) and torch.equal(ask(net, x), ask(plain, x))


def test_a_compiled_part():
    whole = nn.Sequential(nn.Conv2d(3, 8, 3), torch.compile(build(lambda: Block(F.relu)), backend='eager'), *head()).eval()
    whole(X)
    assert hold(pruned(whole, X), X)


def test_children_and_head_apart(zoo):
    net, x = zoo('resnet18'), images(size=32)
    body = nn.Sequential(*list(net.children())[:-1])
    assert torch.equal(net.fc(body(x).flatten(1)), net(x))


def test_features_and_slices():
    net = pruned(build(lambda: torchvision.models.squeezenet1_1(num_classes=10)), images(size=32))
    x = images(size=32)
    assert torch.equal(net.classifier(net.features(x)).flatten(1), net(x))
    assert torch.equal(net.classifier(net.features[3:](net.features[:3](x))).flatten(1), net(x))


# N5: threads; N6: handed on

@pytest.mark.parametrize('name', ['F.relu', 'one ReLU in two blocks', 'one block three times'])
def test_four_threads_get_right_answers(name):
    assert in_threads(pruned(build(OWN[name][0]), X), X, 4) == 400


def test_two_threads_get_right_answers_of_a_resnet(zoo): assert in_threads(zoo('small'), images(size=32), 2) == 400


@pytest.mark.parametrize('how', HANDED_ON)
@pytest.mark.parametrize('name', ['F.relu', 'one ReLU twice', 'one ReLU in a chain', 'one block three times', 'transformer'])
def test_masks_are_handed_on(name, how):
    net = pruned(build(OWN[name][0]), X)
    if name == 'transformer' and how == 'jit.trace': pytest.skip('torch checks its own trace of the fused attention, not ours')
    other = HANDED_ON[how](net, X)
    assert torch.allclose(ask(other, X), ask(net, X), atol=1e-5)


@pytest.mark.parametrize('name, node', [('small', '4.relu2'), ('resnet18', 'layer2.0'), ('F.relu', 'conv2'), ('one block three times', 'fc')])
def test_feature_extractors(name, node, zoo):
    x = images(size=32)
    net = zoo(name) if name in NETWORKS else pruned(build(OWN[name][0]), x)
    kept = []
    net.get_submodule(node.replace('.relu2', '')).register_forward_hook(lambda m, args, out: kept.append(out))
    net(x)
    got = create_feature_extractor(net, [node])(x)[node]
    assert torch.equal(got, kept[0])


# Masks

@each_network
def test_masks_survive_copying_and_belong_to_the_copy(name, zoo):
    model, x = zoo(name), images(size=32)
    want, copied = ask(model, x), copy.deepcopy(model)
    mask_activations(copied, {key: torch.zeros_like(m.mask) for key, m in masks(copied).items()})
    assert torch.equal(ask(model, x), want) and not torch.equal(ask(copied, x), want)


@each_network
def test_an_interrupted_pass_leaves_no_trace(name, zoo):
    model, x = zoo(name), images(size=32)
    want = ask(model, x)
    def interrupt(module, args): raise KeyboardInterrupt
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    handle = last.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt): ask(model, x)
    handle.remove()
    assert torch.equal(ask(model, x), want) and not any(m._forward_hooks for m in model.modules())


@each_network
def test_second_pruning_keeps_the_first(name, zoo):
    model = zoo(name)
    first = {key: m.mask.clone() for key, m in masks(model).items()}
    second = {key: torch.roll(mask.flatten(), 1).view_as(mask) for key, mask in first.items()}
    mask_activations(model, second)
    for key, out in watch_activations(model, images(size=32)).items(): assert not out[:, ~(first[key] & second[key])].any()


@each_network
def test_plain_network_refuses_a_pruned_state(name, zoo):
    with pytest.raises(RuntimeError, match='mask'): fresh(name).load_state_dict(zoo(name).state_dict())


def test_placing_twice_keeps_the_masks(zoo):
    net = zoo('small')
    want = ask(net, images(size=32))
    assert place_masks(net, images(size=32)) is net and torch.equal(ask(net, images(size=32)), want)


@pytest.mark.parametrize('size', [24, (32, 48), 64])
def test_images_of_another_size_are_refused(zoo, size):
    """Multiplying would broadcast, or mask other positions."""
    shape = (size, size) if isinstance(size, int) else size
    with pytest.raises(AssertionError, match='images of another size'): zoo('small')(torch.randn(2, 3, *shape))


@pytest.mark.parametrize('name, shape, why', [('2', (32, 16, 16), "no mask '2'"), ('2.mask', (32, 1, 1), r'is \(32, 1, 1\), and its activation \(32, 16, 16\)'),
                                              ('3.relu1.mask', (16, 16), 'and its activation')])
def test_wrong_masks_are_named(zoo, name, shape, why):
    with pytest.raises(ValueError, match=why): mask_activations(zoo('small'), {name: torch.ones(shape, dtype=torch.bool)})


def test_images_that_are_not_square():
    x = torch.randn(3, 3, 20, 12)
    assert hold(pruned(build(Functional), x), x)


@pytest.mark.parametrize('dtype', [torch.double, torch.bfloat16])
def test_masks_follow_the_type_of_the_network(dtype):
    net = pruned(build(Functional).to(dtype), X)
    assert hold(net, X) and ask(net, X.to(dtype)).dtype == dtype


def test_training_goes_on_behind_masks():
    """A step changes the weights that speak; what is masked stays silent, with gradient checkpointing too."""
    for make in (Functional, Checkpointed):
        net = pruned(build(make), X)
        before = net.conv1.weight.detach().clone()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        F.cross_entropy(net.train()(X), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
        assert not torch.equal(net.conv1.weight, before) and hold(net.eval(), X)


def test_random_states_of_gpus_are_put_back_too(monkeypatch):
    forks, fork = [], torch.random.fork_rng
    monkeypatch.setattr(torch.random, 'fork_rng', lambda *args, **options: forks.append((args, options)) or fork(*args, **options))
    place_masks(build(Functional), X)
    assert forks and all(f == ((), {}) for f in forks)  # with no device left out


def test_mask_alone():
    mask, x = Mask(), torch.randn(2, 3, 4)
    assert mask(x) is x and not mask.state_dict()
    mask.mask = torch.rand(3, 4) < 0.5
    assert torch.equal(mask(x), torch.where(mask.mask, x, 0 * x)) and list(mask.state_dict()) == ['mask']


# Gradients, and what is decided anew in each call

class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w): return w.sign()
    @staticmethod
    def backward(ctx, g): return g


class Binary(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)
    def forward(self, x): return self.head(F.relu(Sign.apply(self.conv(x))).mean((2, 3)))


class Frozen(Binary):
    def forward(self, x):
        with torch.no_grad(): x = self.conv(x)
        return self.head(F.relu(x).mean((2, 3)))


class Counts(Binary):
    def __init__(self):
        super().__init__()
        self.step = 0
    def forward(self, x):
        self.step += 1
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize('make, why', [(Binary, 'gradients arrive elsewhere'), (Frozen, 'gradients arrive elsewhere'), (Counts, "changes its attribute 'step' in each call")])
def test_what_a_trace_would_freeze_or_lose_is_refused(make, why):
    with pytest.raises(ValueError, match=why): place_masks(build(make), X)


def test_without_an_image_no_activation_is_found():
    with pytest.raises(ValueError, match='pass one image at least'): place_masks(fresh('small'), images(size=32)[:0])


class OwnWeight(nn.Module):
    """A block that holds its weight itself, and clamps before it is left."""
    def __init__(self, i, o): super().__init__(); self.weight = nn.Parameter(torch.randn(o, i, 3, 3) / 5)
    def forward(self, x): return F.conv2d(x, self.weight).clamp(min=0)


def test_a_clamp_after_a_weight_of_the_same_block_is_an_activation():
    net = nn.Sequential(OwnWeight(1, 8), OwnWeight(8, 8), nn.Flatten(), nn.Linear(128, 10))
    assert len(masks(place_masks(net, torch.rand(4, 1, 8, 8)))) == 2


class OwnMatrix(nn.Module):
    """As `OwnWeight`, by a matrix that is turned first."""
    def __init__(self, i, o): super().__init__(); self.weight = nn.Parameter(torch.randn(o, i) / 5)
    def forward(self, x): return (x.flatten(1) @ self.weight.T).clamp(min=0)


def test_a_clamp_after_a_matrix_of_the_same_block_is_an_activation():
    assert len(masks(place_masks(nn.Sequential(OwnMatrix(64, 8), OwnMatrix(8, 10), nn.Linear(10, 10)), torch.rand(4, 1, 8, 8)))) == 2


class InRange(nn.Module):
    """Puts its pixels into their range, in its weights' own type."""
    def __init__(self): super().__init__(); self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(144, 10)
    def forward(self, x): return self.fc(self.conv(x.to(self.conv.weight.dtype).to(self.conv.weight).clamp(0, 1)).relu().flatten(1))


def test_pixels_put_in_their_range_are_no_activation():
    assert len(masks(place_masks(InRange(), torch.rand(4, 1, 8, 8)))) == 1
    class Undone(InRange):  # by constants of the weights' type
        def forward(self, x): return super().forward((x * self.conv.weight.new_tensor([0.5]) + 0.5).clamp(0, 1))
    assert len(masks(place_masks(Undone(), torch.rand(4, 1, 8, 8)))) == 1


class Checkpointed2(nn.Module):
    """A part of modules, run again for the gradients."""
    def __init__(self): super().__init__(); self.body, self.fc = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), nn.Linear(8, 10)
    def forward(self, x): return self.fc(checkpoint(self.body, x, use_reentrant=False).mean((2, 3)))


def test_a_module_inside_a_checkpoint_is_masked(): assert len(masks(place_masks(Checkpointed2(), torch.rand(3, 3, 8, 8)))) == 1


def test_a_compiled_part_that_has_run_is_watched():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), torch.compile(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()), backend='eager'), nn.Flatten(), nn.Linear(128, 10)).eval()
    net, x = place_masks(net, torch.rand(3, 3, 8, 8)), torch.rand(3, 3, 8, 8)
    with torch.no_grad(): net(x)
    assert list(watch_activations(net, x)) == list(masks(net)) != []


class OneByOne(nn.Module):
    def __init__(self): super().__init__(); self.f = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    def forward(self, x): return torch.stack([self.f(image[None])[0] for image in x])


def test_a_forward_that_goes_by_the_image_is_refused_in_words():
    with pytest.raises(ValueError, match='called 3 times for 3 images and 2 times for one less'): place_masks(OneByOne(), torch.rand(3, 3, 8, 8))
