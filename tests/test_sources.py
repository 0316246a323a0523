"Downloads are whole or not there: a server on this machine breaks in every way that the world outside does."
import hashlib, http.server, os, re, signal, subprocess, sys, threading, time
from dataclasses import replace

import pytest

from conftest import ROOT, needs_data
from protoalign.cli import main
from protoalign.sources import SOURCES, Source, data_folder, fetch, list_sources

CONTENT = os.urandom(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    "`behave` says what each request gets: 'whole', 'cut' (line broken at half), 'short' (half, said to be all), 'other' (other bytes), 'slow', 'no range', 404."
    daemon_threads = True
    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.behave, self.asked = [], []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self): return f'http://127.0.0.1:{self.server_port}/file.bin'


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass

    def do_GET(self):
        how = self.server.behave.pop(0) if self.server.behave else 'whole'
        asked = self.headers.get('Range')
        self.server.asked.append((how, asked))
        if how == 404: return self.send_error(404)
        start = int(re.search(r'\d+', asked)[0]) if asked and how != 'no range' else 0
        if start >= len(CONTENT): return self.send_error(416)
        content = (bytes(len(CONTENT)) if how == 'other' else CONTENT)[start:]
        half = content[:len(content)//2]
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', len(half) if how == 'short' else len(content))
        self.end_headers()
        if how == 'slow': return self.trickle(content)
        self.wfile.write(half if how in ('cut', 'short') else content)

    def trickle(self, content):
        for i in range(0, len(content), 20_000):
            try: self.wfile.write(content[i:i + 20_000])
            except OSError: return
            time.sleep(.05)


@pytest.fixture
def server(monkeypatch):
    s = Server()
    monkeypatch.setitem(SOURCES, 'made', Source('made', 'file.bin', 'this test', 'CC0', 'nobody', 'a test', .3, ('file.bin',), {'file.bin': (s.url, SHA)}))
    yield s
    s.shutdown()
    s.server_close()


def whole(tmp_path): return (tmp_path/'made'/'file.bin').read_bytes() == CONTENT and [p.name for p in (tmp_path/'made').iterdir()] == ['file.bin']


@pytest.mark.parametrize('behave', [[], ['cut'], ['cut', 'cut'], ['short'], ['cut', 'no range'], [404], ['other'], ['cut', 'other']], ids=str)
def test_whole_in_the_end(server, behave, tmp_path):
    "Two more tries are enough for each of these, and the file is byte for byte the source's."
    server.behave = list(behave)
    fetch('made', tmp_path, progress=False)
    assert whole(tmp_path)
    fetch('made', tmp_path, progress=False)
    assert len(server.asked) == sum(o != 'no range' for o in behave) + 1, 'a whole file was fetched again'


def test_goes_on_where_it_stopped(server, tmp_path):
    server.behave = ['cut']
    with pytest.raises(ConnectionError, match='What has come is kept'): fetch('made', tmp_path, progress=False, retries=0)
    assert not (tmp_path/'made'/'file.bin').exists()
    kept = (tmp_path/'made'/'.file.bin.partial').stat().st_size
    assert 100_000 < kept < len(CONTENT)
    fetch('made', tmp_path, progress=False, retries=0)
    assert whole(tmp_path) and server.asked[-1] == ('whole', f'bytes={kept}-')


@pytest.mark.parametrize('behave, error, said', [(['other']*3, ValueError, 'another checksum'), (['cut']*3, ConnectionError, 'could not be fetched'), (['short']*3, ValueError, 'another checksum'),
                                                 ([404]*3, ConnectionError, '404')])
def test_never_half_taken_for_whole(server, behave, error, said, tmp_path):
    server.behave = list(behave)
    with pytest.raises(error, match=said): fetch('made', tmp_path, progress=False)
    assert not (tmp_path/'made'/'file.bin').exists()
    with pytest.raises(FileNotFoundError, match='protoalign datasets made --fetch'): data_folder('made', tmp_path, ('file.bin',))


def test_a_whole_partial_file_is_not_asked_for_twice(server, tmp_path):
    "Killed between the last byte and the renaming."
    (tmp_path/'made').mkdir()
    (tmp_path/'made'/'.file.bin.partial').write_bytes(CONTENT)
    fetch('made', tmp_path, progress=False)
    assert whole(tmp_path)


def test_a_damaged_partial_file_is_thrown_away(server, tmp_path):
    (tmp_path/'made').mkdir()
    (tmp_path/'made'/'.file.bin.partial').write_bytes(bytes(1000))
    fetch('made', tmp_path, progress=False)
    assert whole(tmp_path) and [asked for _, asked in server.asked] == ['bytes=1000-', None]


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_killed_while_it_downloads(server, tmp_path):
    server.behave = ['slow']
    code = (f"from protoalign.sources import SOURCES, Source, fetch; SOURCES['made'] = {SOURCES['made']!r}; fetch('made', {str(tmp_path)!r}, progress=False)")
    child = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT)
    partial, deadline = tmp_path/'made'/'.file.bin.partial', time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline: time.sleep(.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert partial.exists() and not (tmp_path/'made'/'file.bin').exists()
    fetch('made', tmp_path, progress=False)
    assert (tmp_path/'made'/'file.bin').read_bytes() == CONTENT and server.asked[-1][1] is not None


def test_a_file_of_the_user_is_left_alone(server, tmp_path):
    (tmp_path/'made').mkdir()
    (tmp_path/'made'/'file.bin').write_bytes(b'mine')
    with pytest.raises(ValueError, match='Nothing was touched'): fetch('made', tmp_path)
    assert (tmp_path/'made'/'file.bin').read_bytes() == b'mine' and not server.asked


def test_offline(server, tmp_path, capsys):
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match='get file.bin from this test'): fetch('made', tmp_path, progress=False, retries=0)


def test_on_the_command_line(server, tmp_path, capsys, monkeypatch):
    server.behave = ['cut']
    assert main(['datasets', 'made', '--fetch', '--data-dir', str(tmp_path)]) == 0 and whole(tmp_path)
    assert main(['datasets', '--data-dir', str(tmp_path)]) == 0
    listed = capsys.readouterr().out
    assert 'made\n  present: yes; 0 MB; fetch: yes' in listed and 'esc10\n  present: no; 12 MB; fetch: by hand' in listed and 'digits\n  present: built in' in listed
    assert all(s.licence in listed and s.citation in listed and s.supports in listed for s in SOURCES.values())
    assert main(['datasets', 'esc10', '--fetch', '--data-dir', str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert 'may not fetch' in err and 'github.com/karolpiczak/ESC-10' in err


def test_cache_folder(server, tmp_path, monkeypatch):
    "Without any folder named, files go to the user's cache and are found there."
    monkeypatch.delenv('PROTOALIGN_DATA', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('HOME', str(tmp_path))
    folder = fetch('made', progress=False)
    assert tmp_path in folder.parents and data_folder('made', files=('file.bin',)) == folder


@needs_data('macaque_v4', 'objects92', 'cifar_resnet_weights', 'cifar10h')
def test_copies_at_hand_have_the_checksums():
    from pathlib import Path
    root, n = Path(os.environ['PROTOALIGN_DATA']), 0
    for s in SOURCES.values():
        for name, (_, sha) in s.files.items():
            if (root/s.name/name).exists():
                n += 1
                assert hashlib.sha256((root/s.name/name).read_bytes()).hexdigest() == sha, name
    assert n >= 20 and (list_sources().set_index('name').present[['macaque-v4', 'objects92']] == 'yes').all()


@pytest.mark.skipif(not os.path.isdir('/usr/share/datasets/fashion-mnist'), reason='the Debian package dataset-fashion-mnist is not installed')
def test_fashion_mnist_of_debian(tmp_path, monkeypatch):
    "The package's folder is found without being named; published sizes and balance."
    import numpy as np
    from protoalign.datasets import load
    monkeypatch.setenv('PROTOALIGN_DATA', str(tmp_path))
    test = load('fashion-mnist')
    assert test.stimuli.shape == (10_000, 28, 28) and (np.bincount(test.labels) == 1000).all()
    assert load('fashion-mnist', part='train').stimuli.shape == (60_000, 28, 28)


def test_two_processes_at_once(server, tmp_path):
    "Whatever the moment, the file is whole under its name and is downloaded once."
    server.behave = ['slow']
    code = f"from protoalign.sources import SOURCES, Source, fetch; SOURCES['made'] = {SOURCES['made']!r}; fetch('made', {str(tmp_path)!r}, progress=False)"
    children = [subprocess.Popen([sys.executable, '-c', code], cwd=ROOT) for _ in range(3)]
    assert [c.wait(60) for c in children] == [0, 0, 0]
    assert (tmp_path/'made'/'file.bin').read_bytes() == CONTENT and len(server.asked) == 1


def test_what_is_present_can_be_loaded(tmp_path):
    "Nothing, something hidden, or part of what `load` asks for is not 'yes'."
    from protoalign.sources import presence
    for s in SOURCES.values():
        folder = tmp_path/s.name
        folder.mkdir()
        if not s.needs: continue
        (folder/'.something.partial').write_bytes(b'half')
        assert presence(s, tmp_path) in ('no', 'yes' if s.places and os.path.isdir(s.places[0]) else 'no'), s.name
        first = s.needs[0] if isinstance(s.needs[0], str) else s.needs[0][0]
        (folder/first).parent.mkdir(parents=True, exist_ok=True)
        (folder/first).write_bytes(b'')
        assert len(s.needs) == 1 or s.places or presence(s, tmp_path) == 'partly', s.name


def test_home_folder(server, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert fetch('made', '~/data', progress=False) == tmp_path/'data'/'made' and data_folder('made', '~/data', ('file.bin',))
    assert sorted(p.name for p in tmp_path.iterdir()) == ['data']


def test_a_place_where_no_folder_can_be(server, tmp_path):
    (tmp_path/'data').write_text('a file')
    with pytest.raises(OSError, match='choose another one for your data'): fetch('made', tmp_path/'data', progress=False)
