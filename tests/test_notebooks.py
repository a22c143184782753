"""Every library notebook runs from top to bottom: what it asserts is true. nbdev's directives are respected."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nbdev.test import test_nb as run_notebook

NBS = Path(__file__).resolve().parent.parent/'nbs'
NOTEBOOKS = sorted(p for folder in ('.', 'datasets', 'methods', 'metrics') for p in (NBS/folder).glob('*.ipynb'))
TOURS = 'operations', 'own_network'  # they export nothing: a whole way, on networks of some size


def case(page):
    return pytest.param(page, id=page.relative_to(NBS).as_posix(), marks=[pytest.mark.slow] if page.stem in TOURS else [])


@pytest.mark.parametrize('notebook', [*map(case, NOTEBOOKS)])
def test_notebook(notebook, monkeypatch, capfd):
    monkeypatch.setenv('IN_TEST', '1')  # run_notebook sets it for good, and nbdev_export does nothing where it is set
    passed, _ = run_notebook(notebook, skip_flags=['notest'])
    said = capfd.readouterr().err
    assert passed, said


WEIGHED = """import sys, numpy, torch
from unlearning import RECIPES, logits, unlearn, wrong_digits
split, original, retrained = wrong_digits()
nets = original, retrained, unlearn(original, split, RECIPES['digits']['soft+surgery+pruning'])
numpy.save(sys.argv[1], torch.stack([logits(net, split.train) for net in nets]))"""


def test_the_networks_of_the_pages_are_the_same_on_every_processor(tmp_path):
    """Sums in another order make no other figures: a page's digits are as many as it shows. (In float32 they are others.)"""
    def answers(instructions):
        at = tmp_path/f'{instructions}.npy'
        subprocess.run([sys.executable, '-c', WEIGHED, at], check=True, env=os.environ | dict(ATEN_CPU_CAPABILITY=instructions))
        return np.load(at)
    np.testing.assert_allclose(answers('default'), answers('avx2'), rtol=0, atol=1e-4)
