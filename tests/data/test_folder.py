"""Image folders: labels, damaged files, the index of intact files."""


import contextlib
import os

from absl import logging
import numpy as np
from PIL import Image
import pytest

from eqflow.data import folder, images, pipeline, sources


@pytest.fixture
def painted(tmp_path):
  """A folder with classes b (one image nested) and a, each image of one grey, and a cache folder."""
  values = {'a/0.png': 10, 'a/deep/1.PNG': 20, 'b/2.jpg': 30, 'b/.hidden.png': 0, 'b/x.txt': 0}
  for name, value in values.items():
    file = tmp_path / 'images' / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith('.txt'):
      file.write_text('not an image')
    else:
      Image.new('RGB', (12, 10), (value,) * 3).save(file)
  return tmp_path / 'images', tmp_path / 'cache'


def test_class_folders_give_the_labels(painted):
  place, cache = painted
  source = folder.source(place, size=(4, 4), cache_dir=cache)
  assert [part.name for part in source.records.parts()] == ['a/0.png', 'a/deep/1.PNG', 'b/2.jpg']
  assert (source.shape, source.classes, source.left_out) == ((4, 4, 3), ('a', 'b'), {})
  got = [(int(record['x'][0, 0, 0]), record['label']) for record in source]
  assert got == [(10, 0), (20, 0), (30, 1)], 'each file must keep its pixels and its class'


def test_the_name_folder_loads_a_folder(painted):
  place, cache = painted
  source = sources.load('folder', split='train', data_dir=place, size=(4, 4), channels=1,
                        cache_dir=cache)
  assert source.shape == (4, 4, 1), 'channels=1 must give one channel'
  with contextlib.closing(pipeline.batches(source, seed=0, batch=3)) as batches:
    batch = next(batches)
  np.testing.assert_allclose(np.sort(batch['x'][:, 0, 0, 0]), np.array([10, 20, 30]) / 127.5 - 1,
                             atol=1e-6, err_msg='a batch of a folder is not its images')
  with pytest.raises(ValueError, match=r"size=None.* 'folder'"):
    sources.load('folder', split='train', data_dir=place)


def test_each_file_is_one_record(painted):
  place, cache = painted
  for link, to in (('a/self', '.'), ('a/up', '..'), ('c', 'b'), ('0', 'a'), ('a/again.png', '0.png'),
                   ('b/other.png', '../a/deep/1.PNG'), ('a/loop.png', 'loop.png'),
                   ('a/gone.png', 'gone')):
    os.symlink(to, place / link)
  os.mkfifo(place / 'b/fifo.png')
  source = folder.source(place, size=(4, 4), cache_dir=cache)
  assert [part.name for part in source.records.parts()] == ['a/0.png', 'a/deep/1.PNG', 'b/2.jpg']
  assert source.classes == ('a', 'b'), 'a link to a class is not another class'
  assert set(source.left_out) == {'a/self', 'a/up', 'c', '0', 'a/again.png', 'b/other.png',
                                  'a/loop.png', 'a/gone.png', 'b/fifo.png'}
  assert 'a/deep/1.PNG again' in source.left_out['b/other.png']
  assert 'FIFO' in source.left_out['b/fifo.png'] and 'No such file' in source.left_out['a/gone.png']


def test_links_lead_out_of_the_folder(painted):
  place, cache = painted
  outside = place.parent / 'outside'
  outside.mkdir()
  os.symlink('../images/b', outside / 'z')
  os.symlink('../images/a', outside / 'y')
  source = folder.source(outside, size=(4, 4), cache_dir=cache)
  assert source.classes == ('y', 'z') and len(source) == 3


def test_rectangles_of_1_to_4_channels(painted):
  for channels in (1, 2, 3, 4):
    source = folder.source(painted[0], size=(6, 4), channels=channels, cache_dir=painted[1])
    assert source.shape == source[0]['x'].shape == (6, 4, channels)


def test_images_directly_in_a_folder_are_unlabelled(painted):
  source = folder.source(painted[0] / 'b', size=(4, 4), cache_dir=painted[1])
  assert (len(source), source.num_classes, source[0]['label']) == (1, 0, 0)


def test_a_damaged_file_is_named_skipped_and_listed(painted, monkeypatch):
  place, cache = painted
  noise = np.random.RandomState(0).randint(0, 256, (40, 40, 3), np.uint8)
  Image.fromarray(noise).save(place / 'a/broken.png')
  whole = (place / 'a/broken.png').read_bytes()
  (place / 'a/broken.png').write_bytes(whole[:len(whole) // 2])
  said = []
  monkeypatch.setattr(logging, 'warning', lambda text, *args: said.append(text % args))
  source = folder.source(place, size=(4, 4), cache_dir=cache)
  assert list(source.left_out) == ['a/broken.png'], 'the damaged file must be listed'
  assert 'truncated' in source.left_out['a/broken.png'], 'with a reason'
  assert len(source) == 3 and all(part.name != 'a/broken.png' for part in source.records.parts())
  assert 'a/broken.png: ' in said[0] and 'truncated' in said[0] and 'Left out 1 files' in said[1], said
  (place / 'a/broken.png').write_bytes(whole)
  assert not folder.source(place, size=(4, 4), cache_dir=cache).left_out, 'a repaired file must return'


def test_intact_files_are_decoded_only_once(painted, monkeypatch):
  place, cache = painted
  folder.source(place, size=(4, 4), cache_dir=cache)
  opened = []
  monkeypatch.setattr(images, 'check', lambda file: opened.append(os.path.basename(file.name)))
  folder.source(place, size=(8, 8), cache_dir=cache)
  assert opened == [], 'the index is not used'
  Image.new('RGB', (5, 5)).save(place / 'b/2.jpg')
  folder.source(place, size=(8, 8), cache_dir=cache)
  assert opened == ['2.jpg'], 'a changed file, and only that, must be read again'


def test_a_run_continues_without_a_writable_cache(painted):
  place, cache = painted
  cache.write_text('a file where the folder should be')
  assert len(folder.source(place, size=(4, 4), cache_dir=cache)) == 3


def test_a_file_deleted_during_the_run_is_named(painted):
  source = folder.source(painted[0], size=(4, 4), cache_dir=painted[1])
  (painted[0] / 'a/0.png').unlink()
  with pytest.raises(FileNotFoundError) as error:
    source[0]
  assert 'while reading' in error.value.__notes__[0]


def test_a_folder_without_usable_images_is_rejected(painted, tmp_path):
  place, cache = painted
  with pytest.raises(FileNotFoundError, match=r"nowhere'"):
    folder.source(tmp_path / 'nowhere', size=(4, 4), cache_dir=cache)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match=r"empty': .*\.png"):
    folder.source(tmp_path / 'empty', size=(4, 4), cache_dir=cache)
  (tmp_path / 'empty/bad.png').write_bytes(b'nothing')
  with pytest.raises(ValueError, match=r'none of its 1 images'):
    folder.source(tmp_path / 'empty', size=(4, 4), cache_dir=cache)
  Image.new('L', (5, 5)).save(place / 'stray.png')
  with pytest.raises(ValueError, match=r'1 images \(stray.png, ...\)'):
    folder.source(place, size=(4, 4), cache_dir=cache)
  with pytest.raises(ValueError, match='channels=5'):
    folder.source(place, size=(4, 4), channels=5, cache_dir=cache)
