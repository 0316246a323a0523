"Write README.md from nbs/index.ipynb: prose, shown code, text outputs, and figures as files beside the notebook."
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 'nbs/images'


def notebook():
    nb = nbformat.read(ROOT/'nbs'/'index.ipynb', as_version=4)
    nb.metadata['language_info'] = {'name': 'python'}
    nb.cells = [c for c in nb.cells if not c.source.startswith('#| hide')]
    for c in nb.cells:
        if c.source.startswith('#| echo: false'): c.metadata['transient'] = {'remove_source': True}
        c.source = '\n'.join(o for o in c.source.splitlines() if not o.startswith('#|'))
    return nb


def convert():
    exporter = MarkdownExporter()
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    return exporter.from_notebook_node(notebook(), resources={'unique_key': 'index', 'output_files_dir': IMAGES})


def readme():
    "The text of README.md."
    text, _ = convert()
    text = re.sub(r'\]\((?!\w+:)([^)]+\.ipynb)\)', r'](nbs/\1)', text)
    text = re.sub(r'\n{3,}', '\n\n', re.sub(r'[ \t]+$', '', text, flags=re.M)).replace('![png]', '![the idea in one figure]')
    return '<!-- Made from nbs/index.ipynb by .ci/readme.py: edit the notebook. -->\n\n' + text.strip() + '\n'


if __name__ == '__main__':
    _, resources = convert()
    (ROOT/IMAGES).mkdir(exist_ok=True)
    for name, data in resources['outputs'].items(): (ROOT/name).write_bytes(data)
    (ROOT/'README.md').write_text(readme(), encoding='utf-8')
