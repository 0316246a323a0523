"The report of runs whose numbers are known, as files and in a browser."
import http.server, json, re, shutil, subprocess, threading
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use('Agg')

from made_run import make_run
from protoalign.arms import ARMS, Settings
from protoalign.data import Responses
from protoalign.datasets import load
from protoalign.config import Config
from protoalign.joint import JointPrototypes
from protoalign.library import make_library
from protoalign.outcomes import main_rows, read_run
from protoalign.figures import left_out
from protoalign.report import ceilings, headline, hopes, left_out_note, make_report, what_failed
from protoalign.stats import compare_arms

CONFIG = Config(arms=ARMS, n_seeds=3, sweep=(.1, 1.), settings=Settings('layer2', grid=4, K=4))
GAIN = dict(protoalign=.1, cka=.2, rsa=.1, shuffled=.02)
MISSING = 'cka-seed2-lam0.5', 'random-seed0-lam0.5', 'random-seed1-lam0.5', 'random-seed2-lam0.5'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "Fourteen arms, three seeds, four cells missing, one library; its report."
    out = make_run(tmp_path_factory.mktemp('run'), CONFIG, GAIN, MISSING)
    d = load('digits')
    x, y = d.stimuli[:200].reshape(200, -1)/16, d.responses['simulated-01'].values[:200]
    make_library(JointPrototypes(4).fit(x, y), d.ids[:200], dataset='digits').save(out/'libraries'/'protoalign-seed1-lam0.5.safetensors')
    make_report(out)
    return out


def test_it_says_what_is_there_and_what_is_not(run):
    page = (run/'report.html').read_text()
    assert f'{16*3 - 4} of 48 cells are here' in page and 'random-seed0-lam0.5' in page and 'not met so far' in page
    assert '<b>random</b>:' not in page and '<b>protonce</b>:' in page and 'simulated' in page
    assert 'protoalign run &lt;made up&gt; &amp; &#34;quoted&#34;' in page, 'commands are shown, not interpreted'
    assert 'No figure &#34;Loss and refreshes&#34;: no arm with prototypes is finished' in page


def test_figures_and_tables_are_files(run):
    names = {p.stem for p in (run/'figures').glob('*.png')}
    assert names == {p.stem for p in (run/'figures').glob('*.svg')} == {'alignment', 'task', 'differences', 'layers', 'sweep', 'gallery'}
    for p in (run/'figures').glob('*.svg'): assert ET.parse(p).getroot().tag.endswith('svg')
    tables = {p.stem: pd.read_csv(p) for p in (run/'tables').glob('*.csv')}
    assert {'means', 'tests', 'over_stimuli', 'claims', 'outcomes', 'evidence', 'dose', 'ceilings'} <= set(tables)
    held = read_run(run)
    rows = main_rows(held.results, CONFIG)
    fresh = compare_arms(rows, baselines=[a for a in sorted(set(rows.arm)) if a != 'protoalign'])
    assert np.allclose(tables['tests']['difference'], fresh['difference']) and np.allclose(tables['tests']['p_holm'], fresh['p_holm'])
    for p in (run/'tables').glob('*.tex'): assert p.read_text().startswith('\\begin{tabular}')


def test_the_same_run_gives_the_same_files(run):
    kept = [*run.glob('figures/*'), *run.glob('tables/*'), run/'report.html', run/'outcomes.csv']
    before = {p: p.read_bytes() for p in kept}
    make_report(run)
    assert [p.name for p in kept if p.read_bytes() != before[p]] == []


def test_failures_are_found(run):
    held = read_run(run)
    found = what_failed(hopes(compare_arms(main_rows(held.results, CONFIG), baselines=['cka', 'rsa', 'vanilla']))).set_index('metric')
    assert found.loc['cka_debiased'].tolist() == ['vanilla', 'rsa', 'cka'], found
    assert 'above' not in found.loc['task_accuracy'].replace('', np.nan).dropna().index


def test_prototypes_that_the_loss_left_out_are_told(tmp_path):
    "Nine of ten and eight of ten without a direction are most; four of ten, and an arm that refreshes nothing, are not."
    config = Config(arms=('vanilla', 'protoalign', 'shuffled'), n_seeds=2)
    out = make_run(tmp_path/'run', config)
    (out/'libraries').mkdir(exist_ok=True)
    for cell, n in (('protoalign-seed0-lam0.5', 9), ('protoalign-seed1-lam0.5', 8), ('shuffled-seed0-lam0.5', 4)):
        pd.DataFrame(dict(epoch=[0, 5], K=10, no_direction=[n, 0])).to_csv(out/'libraries'/f'{cell}.refreshes.csv', index=False)
    assert left_out(out, config) == {'protoalign': (17, 20), 'shuffled': (4, 10)}
    assert 'the loss left them out (protoalign 17 of 20):' in make_report(out, stimuli=False).read_text()
    assert left_out_note({'shuffled': (4, 10), 'random': (5, 10)}) == ''


def test_runs_that_have_hardly_begun(tmp_path):
    "Any one cell makes a report."
    for arm in ('vanilla', 'protoalign'):
        config = Config(arms=('vanilla', 'protoalign'), n_seeds=2)
        cells = [f'vanilla-seed{s}' for s in range(2)] + [f'protoalign-seed{s}-lam0.5' for s in range(2)]
        kept = next(c for c in cells if c.startswith(arm))
        out = make_run(tmp_path/arm, config, {}, [c for c in cells if c != kept], artefacts=False)
        page = make_report(out, stimuli=False).read_text()
        assert '1 of 4 cells are here' in page and 'There is no arm to compare with' in page
        assert headline(read_run(out).results, config) == []
    with pytest.raises(ValueError, match='holds no protoalign run'): make_report(tmp_path)


def test_reports_without_stimuli(run, tmp_path):
    out = shutil.copytree(run, tmp_path/'copy')
    for p in (out/'atlas.html', out/'figures'/'gallery.png'): p.unlink()
    page = make_report(out, stimuli=False).read_text()
    assert not (out/'atlas.html').exists() and not (out/'figures'/'gallery.png').exists() and 'atlas' not in page and 'nearest to each prototype' not in page


def test_ceiling_of_repeats():
    "Signal and noise of equal variance: three repeats bound R² at 3/4."
    rng = np.random.default_rng(0)
    ids = [f's{i}' for i in range(1500)]
    values = rng.normal(size=(1500, 1, 20)) + rng.normal(size=(1500, 3, 20))
    from protoalign.datasets import Dataset
    d = Dataset('made', np.zeros((1500, 4, 4), np.uint8), tuple(ids), ids, 'none', 'none', responses={'a': Responses(values, ids, 'one', 'here', 'made')})
    found = ceilings(d, 'a').set_index('metric')
    assert found.loc['encoding_r2', 'upper'] == pytest.approx(.75, abs=.02) and found.loc['encoding_r', 'upper'] == pytest.approx(.75**.5, abs=.02)


# In a browser

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason='needs a browser: apt-get install chromium')
PROBE = '''<script>
addEventListener("load", () => setTimeout(() => {
  const images = [...document.images], tests = [...document.querySelectorAll("details")].find(d => d.querySelector("summary").textContent === "Over seeds").querySelector("table");
  const column = k => [...tests.tBodies[0].rows].map(r => r.cells[k].textContent), head = k => tests.tHead.rows[0].cells[k];
  const k = [...tests.tHead.rows[0].cells].findIndex(c => c.textContent === "difference"), said = {images: images.length, loaded: images.filter(i => i.complete && i.naturalWidth > 0 && i.alt).length};
  head(k).click(); said.up = column(k);
  head(k).click(); said.down = column(k); said.sorted = head(k).getAttribute("aria-sort");
  dispatchEvent(new Event("beforeprint")); said.folded = [...document.querySelectorAll("details:not(.long)")].filter(d => !d.open).length;
  said.wide = document.documentElement.scrollWidth - innerWidth;
  said.broken = [...document.querySelectorAll("nav a")].filter(a => !document.querySelector(a.getAttribute("href"))).length;
  const out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(said); document.body.append(out);
}, 500));
</script></body>'''


class Listener(http.server.BaseHTTPRequestHandler):
    "A proxy that lets nothing through and remembers what was asked."
    def log_message(self, *args): pass
    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_error(404)
    do_CONNECT = do_HEAD = do_POST = do_GET


@needs_browser
@pytest.mark.parametrize('width', [1100, 420])
def test_in_a_browser(run, tmp_path, width):
    "Images load, a heading sorts its table, folds open for print, nothing is asked of the network, and a phone needs no sideways scrolling."
    (tmp_path/'page.html').write_text((run/'report.html').read_text().replace('</body>', PROBE))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Listener)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-default-apps '
             f'--disable-dev-shm-usage --proxy-server=127.0.0.1:{server.server_port} --user-data-dir={tmp_path/"profile"} --window-size={width},900 --virtual-time-budget=10000 --dump-dom').split()
    try: done = subprocess.run([CHROMIUM, *flags, (tmp_path/'page.html').as_uri()], capture_output=True, text=True, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    said = json.loads(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout).group(1))
    up = [float(o) for o in said['up']]
    assert up == sorted(up) and [float(o) for o in said['down']] == sorted(up, reverse=True) and said['sorted'] == 'descending'
    assert said['images'] == said['loaded'] == 6 and said['folded'] == 0 and said['wide'] <= 0 and said['broken'] == 0
    assert not [a for a in server.asked if 'localhost' not in a and '127.0.0.1' not in a and ('google' not in a)], server.asked
