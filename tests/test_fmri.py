"Volumes and surfaces go into responses and back; Haxby's blocks are estimated, and nothing is fetched behind anybody's back."
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.glm.first_level import make_first_level_design_matrix
from nilearn.maskers import SurfaceMasker
from nilearn.surface import InMemoryMesh, SurfaceImage

from protoalign import fmri
from protoalign.data import check_split
from protoalign.datasets import load
from protoalign.fmri import haxby_responses, image_responses, region_mask, to_image, trial_betas, voxel_table

RNG = np.random.default_rng(0)
FACES = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 1]])
MESH = {side: InMemoryMesh(RNG.normal(size=(n, 3)), FACES) for side, n in (('left', 5), ('right', 6))}
BETAS = {side: RNG.normal(size=(n, 8)).astype(np.float32) for side, n in (('left', 5), ('right', 6))}
ATLAS = SurfaceImage(MESH, {'left': np.array([0, 1, 2, 2, 0]), 'right': np.array([1, 1, 0, 2, 0, 2])})
MAPS = SurfaceImage(MESH, BETAS)
IDS = [f's{i}' for i in range(8)]


@pytest.mark.parametrize('label, rows', [(None, 7), (1, 3), (2, 4)])
def test_surfaces_as_nilearn_reads_them(label, rows):
    found = image_responses(MAPS, ATLAS, IDS, label=label)
    np.testing.assert_allclose(found.values, SurfaceMasker(region_mask(ATLAS, label), standardize=None).fit_transform(MAPS), rtol=1e-6)
    assert found.n_features == rows == len(found.features)
    for column, row in zip(found.values.T, found.features.itertuples()):
        np.testing.assert_allclose(column, BETAS[row.hemisphere][row.vertex])
        np.testing.assert_allclose([row.x, row.y, row.z], MESH[row.hemisphere].coordinates[row.vertex])


@pytest.mark.parametrize('label', [None, 2])
def test_surfaces_come_back(label):
    found = image_responses(MAPS, ATLAS, IDS, label=label)
    back = to_image(found.values, ATLAS, label)
    again = image_responses(back, ATLAS, IDS, label=label)
    np.testing.assert_allclose(again.values, found.values, rtol=1e-6)
    for side, o in back.data.parts.items(): assert (o[~region_mask(ATLAS, label).data.parts[side]] == 0).all()
    assert to_image(found.values[0], ATLAS, label).shape == (11,)
    with pytest.raises(ValueError, match='got values of shape'): to_image(found.values[:, :-1], ATLAS, label)


def test_surfaces_from_lists_files_and_one_hemisphere(tmp_path):
    whole = image_responses(MAPS, ATLAS, IDS, sessions=[0]*4 + [1]*4)
    single = [SurfaceImage(MESH, {side: o[:, i] for side, o in BETAS.items()}) for i in range(8)]
    np.testing.assert_array_equal(image_responses(single, ATLAS, IDS).values, whole.values)
    files = {side: tmp_path/f'{side}.func.gii' for side in BETAS}
    for side, file in files.items(): nib.save(nib.GiftiImage(darrays=[nib.gifti.GiftiDataArray(o, datatype='NIFTI_TYPE_FLOAT32') for o in BETAS[side].T]), file)
    np.testing.assert_array_equal(image_responses(files, ATLAS, IDS).values, whole.values)
    left = SurfaceImage({'left': MESH['left']}, {'left': ATLAS.data.parts['left']})
    assert (image_responses({'left': BETAS['left']}, left, IDS).features.hemisphere == 'left').all()
    twice = image_responses(MAPS, ATLAS, IDS[:4]*2)
    np.testing.assert_array_equal(twice.values[1], whole.values[[1, 5]])


def test_an_inflated_mesh_has_the_same_vertices():
    inflated = {side: InMemoryMesh(2*m.coordinates, m.faces) for side, m in MESH.items()}
    np.testing.assert_array_equal(image_responses(SurfaceImage(inflated, BETAS), ATLAS, IDS).values, image_responses(MAPS, ATLAS, IDS).values)


@pytest.mark.parametrize('images, options, match', [
    ({'left': BETAS['left']}, {}, r"images with {'left': 5} vertices and mask with {'left': 5, 'right': 6} lie on different meshes"),
    ({'left': BETAS['right'], 'right': BETAS['left']}, {}, 'lie on different meshes'), ({'left': 'no.gii', 'right': 'no.gii'}, {}, 'cannot be read as data of a surface'),
    (MAPS, dict(ids=IDS[:5]), '8 volumes and 5 stimulus ids'), (MAPS, dict(label=9), r'no vertex of the mask has the label 9; its labels begin with \[1, 2\]'),
    ({**BETAS, 'left': np.where(BETAS['left'] == BETAS['left'][2, 3], np.nan, BETAS['left'])}, {}, '1 of 7 voxels of the region hold NaN'),
])
def test_surfaces_that_do_not_fit(images, options, match):
    with pytest.raises(ValueError, match=match): image_responses(images, ATLAS, **{'ids': IDS, **options})


def test_a_volume_goes_in_and_comes_back():
    values, affine = RNG.normal(size=(4, 5, 3, 8)).astype(np.float32), np.diag([2, 2, 3, 1])
    atlas = nib.Nifti1Image(RNG.integers(0, 3, size=(4, 5, 3)).astype(np.int16), affine)
    found = image_responses(nib.Nifti1Image(values, affine), atlas, IDS, label=2)
    inside = atlas.get_fdata() == 2
    np.testing.assert_array_equal(found.values, values[inside].T)
    np.testing.assert_allclose(to_image(found.values, atlas, 2).get_fdata()[inside], values[inside])
    np.testing.assert_allclose(voxel_table(region_mask(atlas, 2))[list('xyz')], np.argwhere(inside)*[2, 2, 3])


def test_nan_is_outside():
    values = np.full((4, 4, 4), np.nan, np.float32)
    values[:2, :2, :2] = [[[1, 2], [1, 0]], [[1, 1], [np.nan, -1]]]
    inside = np.isin(values, [1, 2, -1])
    assert len(voxel_table(region_mask(nib.Nifti1Image(values, np.eye(4))))) == inside.sum() == 6
    np.testing.assert_array_equal(region_mask(nib.Nifti1Image(values, np.eye(4)), [1, 2]).get_fdata(), np.isin(values, [1, 2]))
    with pytest.raises(ValueError, match=r'has the label 3; its labels begin with \[-1.0, 1.0, 2.0\]'): region_mask(nib.Nifti1Image(values, np.eye(4)), 3)
    with pytest.raises(ValueError, match='no voxel of the mask is different from 0'): region_mask(nib.Nifti1Image(values*np.nan, np.eye(4)))
    left = SurfaceImage({'left': MESH['left']}, {'left': np.array([1, np.nan, 0, 2, np.nan])})
    np.testing.assert_array_equal(region_mask(left).data.parts['left'], [True, False, False, True, False])


@pytest.mark.parametrize('labels', [[1, 2], (2, 4), np.array([3]), [1, 2, 1, 1]])
def test_several_labels_are_one_region(labels):
    "Also as many labels as the grid has voxels along an axis, which broadcasting would take for a pattern."
    atlas = RNG.integers(0, 5, size=(4, 4, 4)).astype(np.int16)
    np.testing.assert_array_equal(region_mask(nib.Nifti1Image(atlas, np.eye(4)), labels).get_fdata() > 0, np.any([atlas == o for o in labels], axis=0))


@pytest.mark.parametrize('labels, lost', [([1, 7, 9], '7, 9'), ([], r'\[\]'), ('V1', 'V1')])
def test_labels_that_are_not_there(labels, lost):
    atlas = nib.Nifti1Image(np.arange(8).reshape(2, 2, 2).astype(np.int16) % 3, np.eye(4))
    for mask, what in ((atlas, 'voxel'), (ATLAS, 'vertex')):
        with pytest.raises(ValueError, match=rf'no {what} of the mask has the label {lost}; its labels begin with \[1, 2\]'): region_mask(mask, labels)
    np.testing.assert_array_equal(np.concatenate(list(region_mask(ATLAS, [1, 2]).data.parts.values())), np.concatenate(list(region_mask(ATLAS).data.parts.values())))


def test_an_image_that_is_cut_off(tmp_path):
    "Its header can be read, its values cannot."
    nib.save(nib.Nifti1Image(RNG.normal(size=(8, 8, 8, 4)).astype(np.float32), np.eye(4)), tmp_path/'whole.nii.gz')
    (tmp_path/'cut.nii.gz').write_bytes((tmp_path/'whole.nii.gz').read_bytes()[:3000])
    with pytest.raises(ValueError, match='cut.nii.gz cannot be read.*Is it whole'): image_responses(tmp_path/'cut.nii.gz', nib.Nifti1Image(np.ones((8, 8, 8), np.int8), np.eye(4)), IDS[:4])


@pytest.mark.parametrize('method', ['lss', 'lsa'])
def test_a_later_scan_is_an_earlier_event(method):
    events = pd.DataFrame(dict(onset=np.arange(8)*9. + 3, duration=1.))
    y = RNG.normal(size=(60, 4))
    np.testing.assert_array_equal(trial_betas(y, events, 1.5, method, start=.75), trial_betas(y, events.assign(onset=events.onset - .75), 1.5, method))
    first = events.assign(onset=events.onset - 3) # an event before the moment of the first scan is no fault
    assert np.isfinite(trial_betas(y, first, 1.5, method, start=.75)).all()


def test_a_regressor_of_its_own_leaves_a_volume_out():
    events, y = pd.DataFrame(dict(onset=np.arange(5)*14. + 3, duration=1.)), RNG.normal(size=(60, 4))
    spoilt = y.copy()
    spoilt[[7, 30]] += 1e4
    spikes = np.eye(60)[:, [7, 30]]
    np.testing.assert_allclose(trial_betas(spoilt, events, 1.5, confounds=spikes), trial_betas(y, events, 1.5, confounds=spikes), atol=1e-7)
    assert np.abs(trial_betas(spoilt, events, 1.5) - trial_betas(y, events, 1.5)).max() > 100


CATEGORIES = ['bottle', 'cat', 'chair', 'face', 'house', 'scissors', 'scrambledpix', 'shoe']


def made_haxby(runs=4, noise=.2, without=None):
    "A recording of Haxby's shape with planted patterns; run `without` has only rest."
    rng, table, volumes, pattern = np.random.default_rng(0), [], [], np.random.default_rng(1).normal(size=(8, 12))
    for run in range(runs):
        order = rng.permutation(CATEGORIES)
        shown = ['rest']*6 + [o for c in order for o in [c]*9 + ['rest']*5] + ['rest']*3
        events = pd.DataFrame(dict(onset=2.5*(6 + 14*np.arange(8)), duration=22.5, trial_type=order))
        design = make_first_level_design_matrix(np.arange(121)*2.5, events, drift_model=None)[CATEGORIES].to_numpy()
        volumes.append(500 + 100*run + (run != without)*design @ pattern + .02*np.arange(121)[:, None] + noise*rng.normal(size=(121, 12)))
        table += [('rest' if run == without else o, run) for o in shown]
    func = nib.Nifti1Image(np.vstack(volumes).T.reshape(2, 3, 2, -1).astype(np.float32), np.eye(4))
    return func, pd.DataFrame(table, columns=['labels', 'chunks']), nib.Nifti1Image(np.ones((2, 3, 2), np.int8), np.eye(4)), pattern


def lay(folder, func, table, mask, subject=2):
    "The files where nilearn looks for them."
    place = folder/'haxby'/'haxby2001'/f'subj{subject}'
    place.mkdir(parents=True)
    nib.save(func, place/'bold.nii.gz')
    table.to_csv(place/'labels.txt', sep=' ', index=False)
    for name in ('../mask', 'mask4_vt', 'mask8b_face_vt', 'mask8b_house_vt', 'mask8_face_vt', 'mask8_house_vt', 'anat'): nib.save(mask, place/f'{name}.nii.gz')
    (place/'../MD5SUMS').write_text('')
    return folder


def test_blocks_are_recovered():
    func, table, mask, pattern = made_haxby()
    found = haxby_responses(func, table, mask, subject='simulated')
    assert found.values.shape == (8, 4, 12) and sorted(found.ids) == CATEGORIES
    np.testing.assert_allclose(found.values.mean(1), pattern[[CATEGORIES.index(o) for o in found.ids]], atol=.25)
    single = haxby_responses(func, table, mask, by='block')
    assert single.values.shape == (32, 12) and len(set(single.ids)) == 32
    for o, run, row in zip(single.ids, single.sessions, single.values):
        assert o.endswith(f'/run{run:02d}')
        where = found.ids.index(o.split('/')[0])
        np.testing.assert_array_equal(row, found.values[where][found.sessions[where] == run][0])


def test_runs_are_modelled_apart():
    func, table, mask, _ = made_haxby()
    last = func.slicer[..., 363:], table[363:]
    alone = haxby_responses(*last, mask, by='block')
    whole = haxby_responses(func, table, mask, by='block')
    np.testing.assert_allclose(alone.values, whole.values[[whole.ids.index(o) for o in alone.ids]], rtol=1e-4, atol=1e-4)


def test_a_run_without_labels_is_left_out():
    func, table, mask, _ = made_haxby(without=2)
    found = haxby_responses(func, table, mask)
    assert found.values.shape == (8, 3, 12) and set(found.sessions.ravel()) == {0, 1, 3}
    with pytest.raises(ValueError, match='no block but rest in 484 labels'): haxby_responses(func, table.assign(labels='rest'), mask)


@pytest.mark.parametrize('change, match', [(dict(labels=lambda t: t[:-1]), '483 labels for 484 volumes'), (dict(labels=lambda t: t.rename(columns={'chunks': 'run'})), 'columns labels and chunks'),
                                           (dict(by=lambda t: 'run'), "by is 'category' or 'block'")])
def test_labels_that_do_not_fit(change, match):
    func, table, mask, _ = made_haxby()
    with pytest.raises(ValueError, match=match): haxby_responses(**{**dict(func=func, labels=table, mask=mask), **{k: f(table) for k, f in change.items()}})


@pytest.fixture
def no_requests(monkeypatch):
    import requests
    monkeypatch.setattr(requests.Session, 'send', lambda *a, **k: pytest.fail('a request was sent'))


def test_haxby_by_name(tmp_path, monkeypatch, no_requests):
    "From files laid out as nilearn does; no request leaves the machine."
    func, table, mask, _ = made_haxby()
    lay(tmp_path, func, table, mask)
    data = load('haxby', data_dir=tmp_path, region='face')
    assert data.stimuli.shape == (32, 0, 0) and data.class_names == tuple(CATEGORIES) and not data.simulated
    assert [data.class_names[i] for i in data.labels] == [o.split('/')[0] for o in data.ids]
    assert set(data.groups) == {f'run{i:02d}' for i in range(4)}
    assert 'CC BY-SA 3.0' in data.licence and '2001' in data.citation and 'no' in data.note
    np.testing.assert_allclose(data.responses['face-2'].values, haxby_responses(func, table, mask, 'block').values, rtol=1e-4, atol=1e-4)
    for seed in range(3): check_split(data.groups, data.split(seed, test=.5))
    monkeypatch.setenv('PROTOALIGN_DATA', str(tmp_path))
    assert load('haxby').ids == data.ids


def test_haxby_from_nilearns_own_folder(tmp_path, monkeypatch, no_requests):
    "Where nilearn was told to keep its data; a folder that the caller names is the only one that counts."
    lay(tmp_path, *made_haxby()[:3], subject=4)
    monkeypatch.setenv('NILEARN_DATA', str(tmp_path/'haxby'))
    monkeypatch.setenv('PROTOALIGN_DATA', str(tmp_path/'none'))
    assert len(load('haxby', subject=4).ids) == 32
    with pytest.raises(FileNotFoundError): load('haxby', data_dir=tmp_path/'none', subject=4)


def test_haxby_is_not_fetched_unasked(tmp_path, monkeypatch, no_requests):
    "No request, no new folder, and a cure that names the licence."
    for name, folder in (('HOME', 'home'), ('PROTOALIGN_DATA', 'data'), ('NILEARN_DATA', 'shared')):
        (tmp_path/folder).mkdir()
        monkeypatch.setenv(name, str(tmp_path/folder))
    cure = r"subj3 lacks bold.nii.gz, labels.txt, mask4_vt.nii.gz.*300 MB.*CC BY-SA 3.0.*Science 293.*load\('haxby', fetch=True, subject=3\).*fetch_haxby\(subjects=\[3\]"
    for where in (None, tmp_path/'data'):
        with pytest.raises(FileNotFoundError, match=cure): load('haxby', data_dir=where, subject=3)
    assert not [o for folder in ('home', 'data', 'shared') for o in (tmp_path/folder).rglob('*')]
    for wrong in (dict(subject=7), dict(region='V1')):
        with pytest.raises(ValueError, match='haxby has subjects 1 to 6'): load('haxby', data_dir=tmp_path, **wrong)


def test_haxby_is_fetched_when_asked(tmp_path, monkeypatch):
    import nilearn.datasets
    import requests
    asked = []
    def fetch(**options):
        asked.append(options)
        lay(tmp_path, *made_haxby()[:3], subject=5)
    monkeypatch.setattr(nilearn.datasets, 'fetch_haxby', fetch)
    assert len(load('haxby', data_dir=tmp_path, subject=5, fetch=True).ids) == 32
    assert len(load('haxby', data_dir=tmp_path, subject=5, fetch=True).ids) == 32, 'what is there is not fetched again'
    assert asked == [dict(data_dir=tmp_path/'haxby', subjects=[5], verbose=0)]
    def offline(**options): raise requests.ConnectionError('no route')
    monkeypatch.setattr(nilearn.datasets, 'fetch_haxby', offline)
    with pytest.raises(ConnectionError, match=r'subject 3 .* could not be fetched \(ConnectionError: no route\)'): load('haxby', data_dir=tmp_path, subject=3, fetch=True)
