"""Data sets prepared by TFDS."""

import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from eqflow.data import digits, prepare, prepared, sources


def test_a_prepared_set_is_cropped_and_may_have_no_labels(data_dir):
  source = sources.load('paintings', split='train[:2]', data_dir=data_dir, size=(4, 4))
  assert (len(source), source.shape, source.num_classes) == (2, (4, 4, 3), 0)
  assert (source[1]['x'][0, 0, 2], source[1]['label']) == (200, 0)
  assert len(sources.load('paintings:2.0.0', split='all', data_dir=data_dir, size=(4, 4))) == 3


def test_images_of_several_sizes_need_a_size(data_dir):
  with pytest.raises(ValueError, match=r'paintings.*size='):
    sources.load('paintings', split='train', data_dir=data_dir)


def test_an_unprepared_data_set_is_reported_with_the_command(data_dir):
  with pytest.raises(FileNotFoundError) as error:
    sources.load('cifar10', split='train', data_dir=data_dir)
  for part in ("'cifar10' is not prepared", f"data_dir='{data_dir}'",
               'digits:1.0.0, paintings:2.0.0', 'TensorFlow',
               f'python -m eqflow.data.prepare --name=cifar10 --data_dir={data_dir}'):
    assert part in str(error.value), f'the message lacks {part!r}'
  with pytest.raises(FileNotFoundError, match="'digits:9.9.9' is not prepared"):
    sources.load('digits:9.9.9', split='train', data_dir=data_dir)


def test_an_unknown_split_lists_the_known_ones(data_dir, tmp_path):
  for name, text in (('digits', r"\['all', 'heldout', 'train'\]"), ('paintings', r"\['train'\]"),
                     ('moons', r"\['all', 'heldout', 'train'\]"),
                     ('folder', r"\['all', 'train'\]; for held-out images")):
    with pytest.raises(ValueError, match=rf"{name} .*'test'.* {text}"):
      sources.load(name, split='test', data_dir=data_dir, size=(4, 4))


def test_an_empty_split_is_rejected(data_dir):
  with pytest.raises(ValueError, match=r"'train\[:0\]' of paintings"):
    sources.load('paintings', split='train[:0]', data_dir=data_dir, size=(4, 4))


def test_files_without_random_access_are_rejected(tmp_path):
  digits.prepare(tmp_path)
  info = tmp_path / 'digits/1.0.0/dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(ValueError, match=r'tfrecord.*array_record'):
    prepared.source('digits', split='train', data_dir=tmp_path)


def test_preparing_names_the_missing_package(monkeypatch, tmp_path):
  def without_tensorflow(*args, **options):
    raise ModuleNotFoundError("No module named 'tensorflow'")
  monkeypatch.setattr(tfds, 'builder', without_tensorflow)
  with pytest.raises(ImportError, match=r"preparing cifar10.*'tensorflow'.*pip install"):
    prepare.prepare('cifar10', tmp_path)


def test_data_never_imports_tensorflow(data_dir):
  program = ('import sys; from eqflow.data import pipeline, sources; '
             "assert not {'tensorflow_datasets', 'sklearn'} & set(sys.modules), 'not lazy'; "
             f"source = sources.load('digits', split='train', data_dir={str(data_dir)!r}); "
             'next(pipeline.batches(source, seed=0, batch=4)); '
             "assert 'tensorflow' not in sys.modules, 'tensorflow was imported'")
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                        check=False)
  assert done.returncode == 0, done.stderr
