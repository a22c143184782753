"""Networks as other people write them, and ways to hand a network on: shared by the tests of models, activations and weights."""
import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from unlearning.activations import mask_activations, masks, place_masks, watch_activations
from unlearning.models import find_logits


def images(n=4, channels=3, size=16, seed=0): return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


class Functional(nn.Module):
    """Two convolutions, a function in between, dropout by the mode."""
    def __init__(self, activation=F.relu):
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.fc, self.activation = nn.Linear(8, 10), activation

    def features(self, x):
        x = self.activation(self.bn1(self.conv1(x)))
        x = self.activation(self.bn2(self.conv2(x)))
        return F.dropout(x, 0.5, self.training).mean((2, 3))

    def forward(self, x): return self.fc(self.features(x))


class Block(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), act

    def forward(self, x): return self.act(self.bn(self.conv(x))) + x


class Three(nn.Module):
    """One block with one set of weights, called three times."""
    def __init__(self, act=None):
        super().__init__()
        self.stem, self.block, self.fc = nn.Conv2d(3, 8, 3), Block(act or F.relu), nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3): x = self.block(x)
        return self.fc(x.mean((2, 3)))


class Transformer(nn.Module):
    """torch's own layers, whose fused path calls no activation."""
    def __init__(self, activation='relu'):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation=activation)
        self.patches, self.encoder, self.fc = nn.Conv2d(3, 16, 8, 8), nn.TransformerEncoder(layer, 2), nn.Linear(16, 10)

    def forward(self, x): return self.fc(self.encoder(self.patches(x).flatten(2).mT).mean(1))


def head(): return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)


def chain(act): return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), act, nn.Conv2d(8, 8, 3), act, *head())


def one_relu_in_two_blocks():
    act = nn.ReLU(inplace=True)
    return nn.Sequential(nn.Conv2d(3, 8, 3), Block(act), Block(act), *head())


def one_block_in_three_places():
    block = Block(F.relu)
    return nn.Sequential(nn.Conv2d(3, 8, 3), block, block, block, *head())


def relu_(x): return x.relu_()
def method(x): return x.relu()
def in_place(x): return F.silu(x, inplace=True)


# name: (builder, number of activation calls)
OWN = {'F.relu': (Functional, 2), 'torch.relu': (lambda: Functional(torch.relu), 2), 'torch.relu_': (lambda: Functional(torch.relu_), 2),
       'x.relu()': (lambda: Functional(method), 2), 'x.relu_()': (lambda: Functional(relu_), 2), 'F.silu in place': (lambda: Functional(in_place), 2),
       'F.gelu': (lambda: Functional(F.gelu), 2), 'one ReLU twice': (lambda: Functional(nn.ReLU()), 2), 'one PReLU twice': (lambda: Functional(nn.PReLU()), 2),
       'one ReLU in a chain': (lambda: chain(nn.ReLU()), 2), 'one Hardswish in place in a chain': (lambda: chain(nn.Hardswish(inplace=True)), 2),
       'one ReLU in two blocks': (one_relu_in_two_blocks, 2), 'one block in three places': (one_block_in_three_places, 3),
       'one block three times': (Three, 3), 'one block with a module three times': (lambda: Three(nn.Tanh()), 3),
       'transformer': (Transformer, 2), 'transformer with a module': (lambda: Transformer(nn.GELU()), 2)}


def build(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


def pruned(net, x, keep=0.6):
    """Masks at random on every activation."""
    net, rng = place_masks(net, x).eval(), torch.Generator().manual_seed(1)
    return mask_activations(net, {name: torch.rand(out.shape[1:], generator=rng) < keep for name, out in watch_activations(net, x[:1]).items()})


@torch.no_grad()
def ask(net, x): return find_logits(net(x))


def hold(net, x):
    """Every masked position is silent, and each mask lets something through."""
    seen = watch_activations(net, x)
    return list(seen) == list(masks(net)) and all(not out[:, ~masks(net)[k].mask].any() and out.any() for k, out in seen.items())


def in_threads(net, x, threads, requests=400):
    """How many of the answers, asked from several threads, are right; bit for bit."""
    parts = [x[i:i + 1] for i in range(len(x))]
    want = [ask(net, part) for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(lambda i: ask(net, parts[i % len(parts)]), range(requests)))
    return sum(torch.equal(a, want[i % len(parts)]) for i, a in enumerate(answers))


def pickled(net, x): return pickle.loads(pickle.dumps(net))


def saved_by_torch(net, x):
    torch.save(net, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


def averaged(net, x):
    mean = AveragedModel(net)
    for _ in range(2): mean.update_parameters(net)
    return mean.eval()


def called(net, x):
    weights = dict(net.named_parameters()) | dict(net.named_buffers())
    return lambda x: functional_call(net, weights, (x,))


HANDED_ON = {'forward': lambda net, x: net.forward, 'deepcopy': lambda net, x: copy.deepcopy(net), 'pickle': pickled, 'torch.save': saved_by_torch,
             'jit.script': lambda net, x: torch.jit.script(net), 'jit.trace': lambda net, x: torch.jit.trace(net, x),
             'fx': lambda net, x: torch.fx.symbolic_trace(net), 'export': lambda net, x: torch.export.export(net, (x,)).module(),
             'compile': lambda net, x: torch.compile(net, backend='eager'), 'DataParallel': lambda net, x: nn.DataParallel(net),
             'AveragedModel': averaged, 'functional_call': called}
