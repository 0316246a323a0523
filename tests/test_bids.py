"fMRIPrep's output: the right events for each run, planted amplitudes back, and every lack said by name."
import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.glm.first_level import make_first_level_design_matrix

from protoalign.bids import bids_responses

PLANTED = np.random.default_rng(0).normal(2, 1, size=(8, 6))
MASK = nib.Nifti1Image(np.ones((3, 2, 1), np.int8), np.eye(4))
T_R, SCANS = 1.5, 70
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning:nilearn', 'ignore::RuntimeWarning:nilearn')


def write_run(root, ses='01', run='1', raw_run=None, seed=0, start=.75, columns=(), spoil=(), res=None):
    "One run of eight scenes, amplitudes planted, in the raw data set and in fMRIPrep's folder."
    rng = np.random.default_rng(seed)
    events = pd.DataFrame(dict(onset=5. + 11*np.arange(8), duration=1., trial_type=rng.permutation([f'scene-{i}' for i in range(8)])))
    design = make_first_level_design_matrix(np.arange(SCANS)*T_R, events.assign(onset=events.onset - start), drift_model=None)
    moved = {f'{k}_{o}': np.cumsum(rng.normal(size=SCANS))*.1 for k in ('trans', 'rot') for o in 'xyz'}
    series = 100 + design[sorted(events.trial_type)].to_numpy() @ PLANTED + 2*moved['rot_y'][:, None] + .001*rng.normal(size=(SCANS, 6))
    series[list(spoil)] += 300
    raw, made = (root/o/'sub-01'/f'ses-{ses}'/'func' for o in ('', 'derivatives/fmriprep'))
    for o in (raw, made): o.mkdir(parents=True, exist_ok=True)
    name = f'sub-01_ses-{ses}_task-scenes_run-'
    pd.concat([events, pd.DataFrame(dict(onset=[90.], duration=[1.], trial_type=['n/a']))]).to_csv(raw/f'{name}{raw_run or run}_events.tsv', sep='\t', index=False)
    bold = made/f'{name}{run}_space-MNI_{f"res-{res}_" if res else ""}desc-preproc_bold.nii.gz'
    nib.save(nib.Nifti1Image(series.T.reshape(3, 2, 1, SCANS).astype(np.float32), np.eye(4)), bold)
    bold.with_name(bold.name.replace('.nii.gz', '.json')).write_text(json.dumps(dict(RepetitionTime=T_R, StartTime=start)))
    flags = {f'non_steady_state_outlier{i:02d}': np.eye(SCANS)[o] for i, o in enumerate(spoil)}
    drifts = {f'cosine{i:02d}': np.cos(np.pi*(np.arange(SCANS) + .5)*(i + 1)/SCANS) for i in range(2)}
    pd.DataFrame({**moved, **flags, **drifts}).to_csv(made/f'{name}{run}_desc-confounds_timeseries.tsv', sep='\t', index=False)
    (made/f'{name}{run}_desc-confounds_timeseries.json').write_text('{}')
    return bold


def ask(root, **options):
    return bids_responses(**{**dict(derivatives=root/'derivatives'/'fmriprep', subject='01', task='scenes', mask=MASK, space='MNI', method='lsa',
                                    confounds=('motion',), confound_options={'motion': 'basic'}), **options})


def truth(found): return PLANTED[[int(o[-1]) for o in found.ids]]


def test_planted_amplitudes_of_all_runs(tmp_path):
    for i, (s, r) in enumerate([('01', '1'), ('01', '2'), ('02', '1')]): write_run(tmp_path, s, r, seed=i)
    found = ask(tmp_path)
    assert found.values.shape == (8, 3, 6) and found.subject == 'sub-01'
    for i in range(3): np.testing.assert_allclose(found.values[:, i], truth(found), atol=.05)
    assert set(found.sessions.ravel()) == {'ses-01_run-1', 'ses-01_run-2', 'ses-02_run-1'}
    assert ask(tmp_path, session='02').values.shape == (8, 6)
    assert ask(tmp_path, entities={'run': '1'}).values.shape == (8, 2, 6)
    for o in ('1', '01'): assert ask(tmp_path, session=o).values.shape == (8, 2, 6)


@pytest.mark.parametrize('shown', [['007', '12', '1.0', '0', '1e3', '3', '12.0', '-0'], [str(i) for i in range(8)]])
def test_stimuli_are_named_as_written(tmp_path, shown):
    "With one n/a in the table of the first run and none in the second, numbers would be read as 12.0 here and as 12 there."
    for run in ('1', '2'):
        write_run(tmp_path, run=run)
        file = tmp_path/'sub-01'/'ses-01'/'func'/f'sub-01_ses-01_task-scenes_run-{run}_events.tsv'
        events = pd.read_csv(file, sep='\t')
        events['image'] = [*shown, None]
        (events if run == '1' else events[:8]).to_csv(file, sep='\t', index=False, na_rep='n/a')
    found = ask(tmp_path, stimulus_column='image')
    assert set(found.ids) == set(shown) and found.values.shape == (8, 2, 6)
    named = ask(tmp_path)
    as_scene = dict(zip(shown, events['trial_type']))
    np.testing.assert_array_equal(found.values, named.values[[named.ids.index(as_scene[o]) for o in found.ids]])


def test_least_squares_separate_is_near(tmp_path):
    write_run(tmp_path)
    found = ask(tmp_path, method='lss')
    assert np.corrcoef(found.values.ravel(), truth(found).ravel())[0, 1] > .9


def test_the_moment_of_a_scan_counts(tmp_path):
    write_run(tmp_path)
    np.testing.assert_allclose(ask(tmp_path).values, truth(ask(tmp_path)), atol=.05)
    assert np.abs(ask(tmp_path, start=0.).values - truth(ask(tmp_path))).max() > .2


def test_discarded_volumes_do_no_harm(tmp_path):
    write_run(tmp_path, spoil=(0, 1))
    found = ask(tmp_path)
    np.testing.assert_allclose(found.values, truth(found), atol=.05)
    assert np.abs(ask(tmp_path, confounds=()).values - truth(found)).max() > 1


def test_fmripreps_cosines_replace_the_drifts(tmp_path):
    write_run(tmp_path)
    found = ask(tmp_path, confounds=('motion', 'high_pass'))
    np.testing.assert_allclose(found.values, truth(found), atol=.05)
    with pytest.raises(ValueError, match='cannot be told apart'): ask(tmp_path, confounds=('motion', 'high_pass'), drift_model='cosine')


def test_names_with_and_without_zeros(tmp_path):
    for r in ('1', '2'): write_run(tmp_path, run=r, raw_run=f'0{r}', seed=int(r))
    found = ask(tmp_path)
    np.testing.assert_allclose(found.values[:, 1], truth(found), atol=.05)


def test_rows_without_a_stimulus_are_no_trials(tmp_path):
    write_run(tmp_path)
    assert 'nan' not in ask(tmp_path).ids and len(ask(tmp_path)) == 8


def test_two_resolutions(tmp_path):
    for res in ('1', '2'): write_run(tmp_path, res=res)
    with pytest.raises(ValueError, match='two images are the run ses-01_run-1 of scenes: choose one with entities='): ask(tmp_path)
    assert ask(tmp_path, entities={'res': '2'}).values.shape == (8, 6)


@pytest.mark.parametrize('options, error, match', [
    (dict(subject='02'), FileNotFoundError, r"no func/\*_desc-preproc_bold.nii.gz with .*sub-02; folders there: \['sub-01'\]"),
    (dict(task='rest'), FileNotFoundError, r"'task': 'rest', 'space': 'MNI'.*there are \['sub-01_ses-01_task-scenes_run-1_space-MNI_desc-preproc_bold.nii.gz'"),
    (dict(space='T1w'), FileNotFoundError, "'space': 'T1w'"), (dict(stimulus_column='image'), ValueError, r"no column 'image' for stimuli; it has \['onset', 'duration', 'trial_type'\]"),
    (dict(confounds=('motion', 'wm_csf')), ValueError, 'desc-preproc_bold.nii.gz: .*csf'), (dict(mask=nib.Nifti1Image(np.ones((2, 2, 1), np.int8), np.eye(4))), ValueError, 'different grids'),
])
def test_what_is_lacking_is_named(options, error, match, tmp_path):
    write_run(tmp_path)
    with pytest.raises(error, match=match): ask(tmp_path, **options)


def test_files_that_do_not_fit_each_other(tmp_path):
    bold, _ = write_run(tmp_path), write_run(tmp_path, run='2', seed=1)
    events = tmp_path/'sub-01'/'ses-01'/'func'/'sub-01_ses-01_task-scenes_run-1_events.tsv'
    confounds = bold.with_name('sub-01_ses-01_task-scenes_run-1_desc-confounds_timeseries.tsv')
    kept = events.read_text(), confounds.read_text()
    events.unlink()
    with pytest.raises(ValueError, match='run-1_space-MNI.* needs one table of events, and 0 of 1 in'): ask(tmp_path)
    events.write_text(kept[0])
    confounds.write_text('\n'.join(kept[1].splitlines()[:-5]) + '\n')
    with pytest.raises(ValueError, match='run-1_space.*65 rows of confounds for 70 scans'): ask(tmp_path)
    confounds.unlink()
    with pytest.raises(ValueError, match='run-1_space.*confound'): ask(tmp_path)
    confounds.write_text(kept[1])
    bold.with_name(bold.name.replace('.nii.gz', '.json')).unlink()
    with pytest.raises(ValueError, match='run-1_space-MNI_desc-preproc_bold.json gives no RepetitionTime: say t_r='): ask(tmp_path)
    assert len(ask(tmp_path, t_r=T_R)) == 8
    events.write_text(kept[0].replace('5.0\t', '500.0\t', 1))
    with pytest.raises(ValueError, match='run-1_space.*are they in seconds'): ask(tmp_path, t_r=T_R)


def test_events_elsewhere(tmp_path):
    write_run(tmp_path/'raw')
    shutil.move(tmp_path/'raw'/'derivatives', tmp_path/'made')
    options = dict(derivatives=tmp_path/'made'/'fmriprep', subject='01', task='scenes', mask=MASK, space='MNI', confounds=())
    assert len(bids_responses(events=tmp_path/'raw', **options)) == 8
    with pytest.raises(FileNotFoundError, match=r'no func/\*_events.tsv'): bids_responses(**options)


def test_two_tables_for_one_run(tmp_path):
    write_run(tmp_path)
    events = tmp_path/'sub-01'/'ses-01'/'func'/'sub-01_ses-01_task-scenes_run-1_events.tsv'
    shutil.copy(events, events.with_name(events.name.replace('run-1', 'run-01')))
    with pytest.raises(ValueError, match='needs one table of events, and 2 of 2 in'): ask(tmp_path)


def test_a_data_set_that_nilearn_made(tmp_path):
    data_gen = pytest.importorskip('nilearn._utils.data_gen')
    root = data_gen.create_fake_bids_dataset(base_dir=tmp_path, n_sub=2, n_ses=2, tasks=['main', 'localizer'], n_runs=[2, 1])
    image = nib.load(next((root/'derivatives'/'sub-02').rglob('*space-MNI*bold.nii.gz')))
    found = bids_responses(root/'derivatives', '02', 'main', nib.Nifti1Image(np.ones(image.shape[:3], np.int8), image.affine), space='MNI',
                           confounds=('motion',), confound_options={'motion': 'basic'}, t_r=5.)
    assert set(found.sessions.ravel()) == {f'ses-0{s}_run-0{r}' for s in (1, 2) for r in (1, 2)}
    assert all(o.startswith('c') for o in found.ids)
