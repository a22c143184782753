"""Packaging. Everything that changes is in settings.ini, which nbdev reads as well."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser()
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
readme = here/'README.md'

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    author=cfg['author'],
    license='Apache-2.0',
    keywords=cfg['keywords'].split(),
    classifiers=['Development Status :: 3 - Alpha', f"Intended Audience :: {cfg['audience']}",
                 f"Natural Language :: {cfg['language']}", 'Programming Language :: Python :: 3'],
    packages=find_packages(include=['unlearning', 'unlearning.*']),
    package_data={'unlearning': ['*.csv', '*.jinja', '*.mplstyle']},
    # From 3.14 on a notebook's annotations, which say what its parameters are, lie elsewhere.
    python_requires='>=' + cfg['min_python'] + ', <3.14',
    install_requires=cfg['requirements'].split(),
    # The tests run a cluster too.
    extras_require={'cluster': cfg['cluster_requirements'].split(), 'dev': (cfg['cluster_requirements'] + cfg['dev_requirements']).split()},
    zip_safe=False,
)
