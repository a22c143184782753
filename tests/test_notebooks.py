"""Every library notebook runs from top to bottom: what it shows and asserts is true. nbdev's directives are respected."""
from pathlib import Path

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
    assert passed, capfd.readouterr().err
