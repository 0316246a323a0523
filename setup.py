"Everything about the package stands in settings.ini; this file only hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

def lines(key): return [o for o in cfg[key].strip().splitlines() if o]

setup(
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    license=cfg['license'],
    keywords=cfg['keywords'].split(),
    classifiers=[f"Development Status :: {cfg['status']}", 'Intended Audience :: Science/Research',
                 'Intended Audience :: Education', 'Programming Language :: Python :: 3',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    python_requires=f">={cfg['min_python']}",
    packages=['protoalign'],
    install_requires=lines('requirements'),
    extras_require={name: lines(f'{name}_requirements') for name in ('dev', 'files', 'audio', 'meeg', 'encoding', 'search', 'cluster', 'networks', 'hub')},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': ['protoalign=protoalign._modidx:d']},
)
