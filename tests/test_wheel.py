"""What is installed is whole: a wheel, used where there is no checkout."""
import os, subprocess, sys, zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
USED = """
import unlearning
from pathlib import Path
assert Path(unlearning.__file__).is_relative_to({site!r}), unlearning.__file__
from unlearning import RECIPES, Training, load_split, unlearn
from unlearning.methods.budget import settings_table
from importlib.resources import files
import matplotlib.pyplot as plt
assert len(settings_table()) > 20 and 'verdict' in files('unlearning').joinpath('report.html.jinja').read_text()
plt.style.use('unlearning.figures')
print(load_split('digits', forget=90))
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    subprocess.run(['git', 'clone', '-q', ROOT, folder/'clone'], check=True)  # what is committed, and nothing that lies about
    build = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', folder, folder/'clone']
    subprocess.run(build, check=True)
    return next(folder.glob('*.whl'))


def test_a_wheel_works_without_a_checkout(wheel, tmp_path):
    site = tmp_path/'site'
    zipfile.ZipFile(wheel).extractall(site)
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(PYTHONPATH=str(site))
    done = subprocess.run([sys.executable, '-c', USED.format(site=str(site))], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and 'forget 90' in done.stdout, done.stderr


def test_a_wheel_holds_no_more_than_the_library(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split('/')[0] for name in names if '.dist-info' not in name} == {'unlearning'}
