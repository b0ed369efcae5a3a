"""The order of a run, the digits, prepared sets, image folders, crops and toys."""

import contextlib
import itertools
import os
import pathlib
import pickle
import subprocess
import sys
import time

from absl import logging
import numpy as np
from PIL import Image
import pytest
from sklearn.datasets import load_digits
import tensorflow_datasets as tfds

from eqflow.data import digits, folder, images, pipeline, prepare, prepared, records, sources, toys
from tests import ROOT


class Paintings(tfds.core.GeneratorBasedBuilder):
  """Three unlabelled images of three sizes."""

  VERSION = tfds.core.Version('2.0.0')
  url_infos = None

  def _info(self):
    features = {'image': tfds.features.Image(shape=(None, None, 3)), 'year': np.int64}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i in range(3):
      yield i, {'image': Image.new('RGB', (8 + i, 9), (40 * i, 0, 200)), 'year': 1900 + i}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  place = tmp_path_factory.mktemp('data')
  digits.prepare(place)
  Paintings(data_dir=place, file_format='array_record').download_and_prepare()
  return place


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


def numbered(n, shape=(3, 4, 1)):
  """A source whose record i is filled with i."""
  x = np.broadcast_to(np.arange(n, dtype=np.uint8).reshape(n, *[1] * len(shape)), (n, *shape))
  return records.Source(records.InMemory(x, np.arange(n, dtype=np.int32)), shape, n, 'numbered')


def take(count, source, **options):
  with contextlib.closing(pipeline.batches(source, **options)) as batches:
    return list(itertools.islice(batches, count))


def joined(batches, key):
  return np.concatenate([batch[key] for batch in batches])


def assert_same(got, want, message):
  assert len(got) == len(want) > 0
  for a, b in zip(got, want):
    for key in ('x', 'label', 'index'):
      np.testing.assert_array_equal(a[key], b[key], err_msg=f'{key}: {message}')


def test_every_record_comes_exactly_once_an_epoch():
  label = joined(take(30, numbered(21), seed=0, batch=7), 'label').reshape(10, 21)
  assert (np.sort(label, axis=1) == np.arange(21)).all(), 'an epoch is not a permutation'
  assert len({tuple(epoch) for epoch in label}) == 10, 'two epochs have the same order'


def test_another_seed_is_another_order():
  orders = [pipeline.record_index(50, seed, np.arange(50)) for seed in range(3)]
  assert (orders[0] != orders[1]).any() and (orders[1] != orders[2]).any(), 'the seed is ignored'


def test_record_index_is_the_order_of_the_batches():
  label = joined(take(9, numbered(21), seed=5, batch=10), 'label')
  np.testing.assert_array_equal(
      pipeline.record_index(21, 5, np.arange(90)), label, 'record_index and batches disagree')
  assert [int(pipeline.record_index(21, 5, k)) for k in (0, 33, 89)] == list(label[[0, 33, 89]]), (
      'one k and an array of k disagree')


def test_a_batch_has_the_types_and_the_range_that_training_expects():
  batch, = take(1, numbered(256), seed=0, batch=256)
  assert {key: str(value.dtype) for key, value in batch.items()} == {
      'x': 'float32', 'label': 'int32', 'index': 'uint32'}, 'wrong dtypes'
  assert batch['x'].min() == -1 and batch['x'].max() == 1, 'bytes 0 and 255 must become -1 and 1'
  np.testing.assert_allclose(batch['x'][:, 0, 0, 0], batch['label'] / 127.5 - 1, atol=1e-6,
                             err_msg='x and label come from different records')


def test_a_run_resumes_at_any_example():
  source = numbered(21)
  whole = take(12, source, seed=3, batch=8, flip=True)
  assert_same(take(5, source, seed=3, batch=8, start=56, flip=True), whole[7:],
              'resuming at k = 56 must give batch 7')
  odd = take(1, source, seed=3, batch=16, start=5, flip=True)[0]
  np.testing.assert_array_equal(odd['index'], np.arange(5, 21), 'index must count from start')
  np.testing.assert_array_equal(odd['x'], joined(whole, 'x')[5:21],
                                'the k-th record depends on batch or start')


def test_processes_interleave_to_the_global_batch():
  whole = take(6, numbered(21), seed=1, batch=12, flip=True)
  parts = [take(6, numbered(21), seed=1, batch=12, process_index=p, process_count=3, flip=True)
           for p in range(3)]
  for p, part in enumerate(parts):
    want = [{key: value[p::3] for key, value in batch.items()} for batch in whole]
    assert_same(part, want, f'process {p} of 3 must hold rows {p}::3')


def test_workers_do_not_change_the_batches():
  source = sources.load('moons', split='train', data_dir=None, num_points=50)
  assert_same(take(5, source, seed=2, batch=20, workers=2), take(5, source, seed=2, batch=20),
              'two workers must give the batches of none')


def test_workers_end_with_a_training_that_is_killed_alone(tmp_path):
  program = '''
import multiprocessing, time
from eqflow.data import pipeline, toys
from eqflow.runs.dataset import open_source
from tests import config_file
if __name__ == '__main__':
  batches = pipeline.batches(open_source(config_file('toy').get_config()), seed=0, batch=8, workers=2)
  next(batches), next(batches)
  print(*[child.pid for child in multiprocessing.active_children()], flush=True)
  time.sleep(60)
'''
  (tmp_path / 'program.py').write_text(program)
  process = subprocess.Popen([sys.executable, tmp_path / 'program.py'], cwd=ROOT, text=True,
                             env=os.environ | {'PYTHONPATH': str(ROOT)}, stdout=subprocess.PIPE)
  workers = [int(pid) for pid in process.stdout.readline().split()]
  process.kill()
  process.wait()
  clock = time.monotonic()
  while (left := [pid for pid in workers if pathlib.Path(f'/proc/{pid}/cmdline').exists()
                  and pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()]):
    assert time.monotonic() - clock < 20, f'{len(left)} of {len(workers)} workers were left'
    time.sleep(0.1)
  assert len(workers) >= 2


def test_a_batch_may_be_larger_than_the_data_set():
  label = take(1, numbered(5), seed=0, batch=22)[0]['label']
  assert (np.sort(label[:20].reshape(4, 5), axis=1) == np.arange(5)).all(), (
      'a batch over four epochs must hold every record four times')


def test_a_flip_depends_on_the_example_alone():
  ramp = np.broadcast_to(np.arange(4, dtype=np.uint8)[:, None], (30, 2, 4, 1))
  source = records.Source(records.InMemory(ramp, np.zeros(30, np.int32)), (2, 4, 1), 0, 'ramp')
  falls = lambda batches: joined(batches, 'x')[:, 0, 0, 0] > joined(batches, 'x')[:, 0, 3, 0]
  flips = falls(take(40, source, seed=0, batch=30, flip=True))
  assert 0.44 < flips.mean() < 0.56, f'{flips.mean():.2f} of 1,200 are mirrored, not about half'
  np.testing.assert_array_equal(falls(take(150, source, seed=0, batch=8, flip=True)), flips,
                                'the flips depend on the batch size')
  assert (flips[:30] != flips[30:60]).any(), 'the second epoch repeats the flips of the first'
  assert not falls(take(2, source, seed=0, batch=30)).any(), 'mirrored without flip=True'


def test_flipping_leaves_the_source_alone():
  pixels = np.array([[[[0], [9]]]] * 3, np.uint8)
  source = records.Source(records.InMemory(pixels, np.zeros(3, np.int32)), (1, 2, 1), 0, 'pairs')
  take(9, source, seed=0, batch=3, flip=True)
  assert (pixels[:, 0, 0] == 0).all(), 'mirroring a batch has changed the source'


def test_a_closed_iterator_says_so():
  batches = pipeline.batches(numbered(5), seed=0, batch=2)
  batches.close()
  with pytest.raises(ValueError, match='closed'):
    next(batches)


@pytest.mark.parametrize('options, text', [
    ({'batch': 10, 'process_count': 4}, r'batch=10 is not divisible by process_count=4.*batch=8'),
    ({'batch': 4, 'process_index': 2, 'process_count': 2}, r'process_index=2 with process_count=2'),
    ({'batch': 4, 'start': -1}, r'start=-1: the run counts examples from 0'),
    ({'batch': 4, 'flip': True}, r"flip=True mirrors images, but 'numbered' has .*shape \(2,\)"),
])
def test_impossible_batches_are_refused(options, text):
  with pytest.raises(ValueError, match=text):
    pipeline.batches(numbered(5, (2,)), seed=0, **options)


def test_a_source_without_records_is_refused():
  with pytest.raises(ValueError, match="'numbered' has no records"):
    pipeline.batches(numbered(0), seed=0, batch=2)


def test_the_digits_are_those_of_sklearn(data_dir):
  whole, train, heldout = [sources.load('digits', split=split, data_dir=data_dir)
                           for split in ('all', 'train', 'heldout')]
  assert (len(train), len(heldout), len(whole)) == (1500, 297, 1797), 'wrong split sizes'
  assert (whole.shape, whole.num_classes, whole.name) == ((8, 8, 1), 10, 'digits')
  order = digits.permutation()
  assert sorted(order) == list(range(1797)), 'the splits are not disjoint parts of all records'
  reference = load_digits()
  for source, rows in ((whole, order), (train, order[:1500]), (heldout, order[1500:])):
    x, label = pipeline.arrays(source)
    want = np.round(reference.images[rows] * 255 / 16) / 127.5 - 1
    np.testing.assert_allclose(x[..., 0], want, atol=1e-6, err_msg='pixels are not sklearn\'s')
    np.testing.assert_array_equal(label, reference.target[rows], 'labels are not sklearn\'s')


def test_the_digits_prepare_themselves(tmp_path):
  prepare.prepare('digits', tmp_path / 'by command')
  assert prepared.prepared(tmp_path / 'by command') == ['digits:1.0.0']
  assert len(sources.load('digits', split='heldout', data_dir=tmp_path / 'new')) == 297, (
      'digits must need no preparation')


def test_records_decoded_one_by_one_give_the_same_batches(data_dir, monkeypatch):
  in_memory = sources.load('digits', split='heldout', data_dir=data_dir)
  monkeypatch.setattr(records, 'MEMORY', 0)
  lazy = sources.load('digits', split='heldout', data_dir=data_dir)
  assert not isinstance(lazy.records, records.InMemory), 'too big for memory, yet in memory'
  lazy = pickle.loads(pickle.dumps(lazy))
  assert_same(take(8, lazy, seed=0, batch=50, flip=True),
              take(8, in_memory, seed=0, batch=50, flip=True), 'lazy decoding changes the batches')
  np.testing.assert_array_equal(pipeline.arrays(lazy)[0], pipeline.arrays(in_memory)[0])


def test_a_prepared_set_is_cropped_and_may_lack_labels(data_dir):
  source = sources.load('paintings', split='train[:2]', data_dir=data_dir, size=4)
  assert (len(source), source.shape, source.num_classes) == (2, (4, 4, 3), 0)
  assert (source[1]['x'][0, 0, 2], source[1]['label']) == (200, 0)
  assert len(sources.load('paintings:2.0.0', split='all', data_dir=data_dir, size=4)) == 3


def test_images_of_many_sizes_need_a_size(data_dir):
  with pytest.raises(ValueError, match=r'paintings: its images have no fixed shape.*give size='):
    sources.load('paintings', split='train', data_dir=data_dir)


def test_an_unprepared_data_set_is_named_with_the_command(data_dir):
  with pytest.raises(FileNotFoundError) as error:
    sources.load('cifar10', split='train', data_dir=data_dir)
  for part in ("'cifar10' is not prepared", f"data_dir='{data_dir}'",
               'digits:1.0.0, paintings:2.0.0', 'TensorFlow',
               f'python -m eqflow.data.prepare --name=cifar10 --data_dir={data_dir}'):
    assert part in str(error.value), f'the message lacks {part!r}'
  with pytest.raises(FileNotFoundError, match="'digits:9.9.9' is not prepared"):
    sources.load('digits:9.9.9', split='train', data_dir=data_dir)


def test_an_unknown_split_lists_the_allowed_ones(data_dir, tmp_path):
  for name, text in (('digits', r"\['all', 'heldout', 'train'\]"), ('paintings', r"\['train'\]"),
                     ('moons', r"\['all', 'heldout', 'train'\]"),
                     ('folder', r"\['all', 'train'\]; for held-out images")):
    with pytest.raises(ValueError, match=rf"{name} has no split 'test': choose from {text}"):
      sources.load(name, split='test', data_dir=data_dir, size=4)


def test_an_empty_split_is_refused(data_dir):
  with pytest.raises(ValueError, match=r"the split 'train\[:0\]' of paintings has no records"):
    sources.load('paintings', split='train[:0]', data_dir=data_dir, size=4)


def test_files_without_random_access_are_refused(tmp_path):
  digits.prepare(tmp_path)
  info = tmp_path / 'digits/1.0.0/dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(ValueError, match=r'format tfrecord, which has no random access.*array_record'):
    prepared.source('digits', split='train', data_dir=tmp_path)


def test_preparing_says_what_to_install(monkeypatch, tmp_path):
  def without_tensorflow(*args, **options):
    raise ModuleNotFoundError("No module named 'tensorflow'")
  monkeypatch.setattr(tfds, 'builder', without_tensorflow)
  with pytest.raises(ImportError, match=r"preparing cifar10.*'tensorflow'.*pip install"):
    prepare.prepare('cifar10', tmp_path)


def test_class_folders_give_the_labels(painted):
  place, cache = painted
  source = folder.source(place, size=4, cache_dir=cache)
  assert source.records.paths == ('a/0.png', 'a/deep/1.PNG', 'b/2.jpg'), 'wrong files'
  assert (source.shape, source.num_classes, source.damaged) == ((4, 4, 3), 2, ())
  got = [(int(record['x'][0, 0, 0]), record['label']) for record in source]
  assert got == [(10, 0), (20, 0), (30, 1)], 'each file must keep its pixels and its class'


def test_a_folder_is_a_data_set_by_name(painted):
  place, cache = painted
  source = sources.load('folder', split='train', data_dir=place, size=4, channels=1,
                        cache_dir=cache)
  assert source.shape == (4, 4, 1), 'channels=1 must give one channel'
  batch, = take(1, source, seed=0, batch=3)
  np.testing.assert_allclose(np.sort(batch['x'][:, 0, 0, 0]), np.array([10, 20, 30]) / 127.5 - 1,
                             atol=1e-6, err_msg='a batch of a folder is not its images')
  with pytest.raises(ValueError, match=r"'folder' with .*size=None: give data_dir.*and size"):
    sources.load('folder', split='train', data_dir=place)


def test_images_directly_in_a_folder_are_unlabelled(painted):
  source = folder.source(painted[0] / 'b', size=4, cache_dir=painted[1])
  assert (len(source), source.num_classes, source[0]['label']) == (1, 0, 0)


def test_a_damaged_file_is_named_skipped_and_counted(painted, monkeypatch):
  place, cache = painted
  noise = np.random.RandomState(0).randint(0, 256, (40, 40, 3), np.uint8)
  Image.fromarray(noise).save(place / 'a/broken.png')
  whole = (place / 'a/broken.png').read_bytes()
  (place / 'a/broken.png').write_bytes(whole[:len(whole) // 2])
  said = []
  monkeypatch.setattr(logging, 'warning', lambda text, *args: said.append(text % args))
  source = folder.source(place, size=4, cache_dir=cache)
  assert source.damaged == ('a/broken.png',), 'the damaged file must be listed'
  assert len(source) == 3 and 'a/broken.png' not in source.records.paths, 'it must be skipped'
  assert 'Skipping the damaged image' in said[0] and 'a/broken.png' in said[0], said
  assert 'Skipped 1 damaged of 4 images' in said[1], said
  (place / 'a/broken.png').write_bytes(whole)
  assert folder.source(place, size=4, cache_dir=cache).damaged == (), 'a mended file must return'


def test_intact_files_are_decoded_once_ever(painted, monkeypatch):
  place, cache = painted
  folder.source(place, size=4, cache_dir=cache)
  opened = []
  monkeypatch.setattr(images, 'read', lambda file, **options: opened.append(file.name))
  folder.source(place, size=8, cache_dir=cache)
  assert opened == [], 'the index is not used'
  Image.new('RGB', (5, 5)).save(place / 'b/2.jpg')
  folder.source(place, size=8, cache_dir=cache)
  assert opened == ['2.jpg'], 'a changed file, and only that, must be read again'


def test_a_cache_that_cannot_be_written_does_not_stop_a_run(painted):
  place, cache = painted
  cache.write_text('a file where the folder should be')
  assert len(folder.source(place, size=4, cache_dir=cache)) == 3


def test_a_file_that_vanishes_during_the_run_is_named(painted):
  source = folder.source(painted[0], size=4, cache_dir=painted[1])
  (painted[0] / 'a/0.png').unlink()
  with pytest.raises(FileNotFoundError) as error:
    source[0]
  assert 'could be read when the run began' in error.value.__notes__[0]


def test_a_folder_without_usable_images_is_refused(painted, tmp_path):
  place, cache = painted
  with pytest.raises(FileNotFoundError, match=r"nowhere' does not exist: give data_dir a folder"):
    folder.source(tmp_path / 'nowhere', size=4, cache_dir=cache)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match=r"no images in .*empty': expected files such as .png"):
    folder.source(tmp_path / 'empty', size=4, cache_dir=cache)
  (tmp_path / 'empty/bad.png').write_bytes(b'nothing')
  with pytest.raises(ValueError, match=r'all 1 images are damaged'):
    folder.source(tmp_path / 'empty', size=4, cache_dir=cache)
  Image.new('L', (5, 5)).save(place / 'stray.png')
  with pytest.raises(ValueError, match=r'has 1 images \(stray.png, ...\) beside the class folders'):
    folder.source(place, size=4, cache_dir=cache)
  with pytest.raises(ValueError, match='channels=2'):
    folder.source(place, size=4, channels=2, cache_dir=cache)


@pytest.mark.parametrize('mode, pixel, suffix, want', [
    ('RGB', (200, 100, 50), 'png', (200, 100, 50)),
    ('RGB', (200, 100, 50), 'webp', (200, 100, 50)),
    ('RGBA', (200, 100, 50, 128), 'png', (200, 100, 50)),
    ('L', 77, 'bmp', (77, 77, 77)),
    ('1', 1, 'png', (255, 255, 255)),
    ('LA', (77, 9), 'png', (77, 77, 77)),
    ('P', 3, 'gif', (30, 60, 90)),
    ('I;16', 257 * 200, 'png', (200, 200, 200)),
    ('I;16', 257 * 200, 'tiff', (200, 200, 200)),
    ('CMYK', (0, 255, 255, 0), 'tiff', (255, 0, 0)),
])
def test_every_format_becomes_rgb_bytes(mode, pixel, suffix, want, tmp_path):
  image = Image.new(mode, (6, 5), pixel)
  if mode == 'P':
    image.putpalette([0] * 9 + [30, 60, 90])
  file = tmp_path / f'x.{suffix}'
  image.save(file, **({'lossless': True} if suffix == 'webp' else {}))
  pixels = images.read(file, channels=3)
  assert pixels.dtype == np.uint8 and pixels.shape == (5, 6, 3), (pixels.dtype, pixels.shape)
  assert (pixels == want).all(), f'{mode} in {suffix}: {pixels[0, 0]}, not {want}'


def test_float_pixels_are_refused(tmp_path):
  Image.new('F', (4, 4), 0.5).save(tmp_path / 'x.tiff')
  with pytest.raises(ValueError, match='float pixels: save the image with 8 or 16 bits'):
    images.read(tmp_path / 'x.tiff', channels=3)


def test_the_exif_orientation_is_respected(tmp_path):
  pixels = np.zeros((8, 16, 3), np.uint8)
  pixels[:, :8] = 255
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(pixels).save(tmp_path / 'x.png', exif=exif)
  got = images.read(tmp_path / 'x.png', channels=1)
  assert got.shape == (16, 8, 1), 'orientation 6 must turn the image by 90 degrees'
  assert (got[:8] == 255).all() and (got[8:] == 0).all(), 'its left side must come to the top'


def test_a_crop_by_a_power_of_two_is_the_mean_of_blocks():
  pixels = 4 * np.random.RandomState(0).randint(0, 64, (8, 24), np.uint8)
  means = pixels[:, 8:16].reshape(4, 2, 4, 2).mean((1, 3))
  np.testing.assert_allclose(np.asarray(images.adm_crop(Image.fromarray(pixels), 4)), means,
                             atol=0.5, err_msg='one halving must average 2 x 2 blocks')


@pytest.mark.parametrize('width, height, size', [(37, 53, 8), (64, 64, 64), (15, 16, 8), (5, 9, 8)])
def test_the_crop_is_that_of_adm(width, height, size):
  pixels = np.random.RandomState(1).randint(0, 256, (height, width, 3), np.uint8)
  # As published, in openai/guided-diffusion.
  image = Image.fromarray(pixels)
  while min(*image.size) >= 2 * size:
    image = image.resize(tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX)
  scale = size / min(*image.size)
  image = image.resize(tuple(round(x * scale) for x in image.size),
                       resample=Image.Resampling.BICUBIC)
  array = np.array(image)
  y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
  got = np.asarray(images.adm_crop(Image.fromarray(pixels), size))
  np.testing.assert_array_equal(got, array[y:y + size, x:x + size], 'not the crop of ADM')


@pytest.mark.parametrize('name', sorted(sources.TOYS))
def test_a_toy_has_unit_scale(name):
  draw, num_classes = sources.TOYS[name]
  x, label = draw(40_000, 0)
  assert x.dtype == np.float32 and x.shape == (40_000, 2) and label.dtype == np.int32
  np.testing.assert_allclose(x.mean(0), 0, atol=0.03, err_msg='the mean must be 0')
  assert abs((x ** 2).mean() - 1) < 0.02, f'E|x|^2 / 2 is {(x ** 2).mean():.3f}, not 1'
  np.testing.assert_allclose(np.bincount(label) * num_classes / 40_000, 1, atol=0.1,
                             err_msg='the classes must be equally likely')


@pytest.mark.parametrize('name', sorted(sources.TOYS))
def test_a_toy_depends_on_count_and_seed_alone(name):
  draw, _ = sources.TOYS[name]
  for part, same in zip(draw(100, 7), draw(300, 7)):
    np.testing.assert_array_equal(part, same[:100], 'the first points depend on how many follow')
  assert (draw(100, 7)[0] != draw(100, 8)[0]).any(), 'the seed is ignored'


def test_toys_have_the_densities_they_state():
  x, label = toys.moons(1_000)
  centre = np.where(label[:, None] == 1, [0.5, 0.25], [-0.5, -0.25])
  distance = np.linalg.norm(x / np.sqrt(2) - centre, axis=1)
  assert np.abs(distance - 1).max() < 0.25, 'the moons are not circles of radius 1'
  x, label = toys.checkerboard(1_000)
  square = np.floor(x / (np.sqrt(3) / 2) + 2).astype(int)
  assert ((square.sum(1) % 2 == 0) & (square >= 0).all(1) & (square < 4).all(1)).all(), (
      'a point lies on a light square')
  assert (label == 2 * square[:, 0] + square[:, 1] // 2).all(), 'wrong squares'
  x, label = toys.rings(1_000)
  radius = np.linalg.norm(x, axis=1)
  assert np.abs(radius - np.sqrt(3 / 7) * (label + 1)).max() < 0.25, 'wrong rings'
  x, label = toys.mixture(10_000)
  assert np.allclose(x[label == 2].mean(0), [0, np.sqrt(1.98)], atol=0.02), 'wrong centre'
  assert np.allclose(x[label == 2].std(0), 0.1, atol=0.01), 'wrong width'


def test_toy_splits_are_disjoint_draws():
  train, heldout, whole = [sources.load('rings', split=split, data_dir=None, num_points=80, seed=4)
                           for split in ('train', 'heldout', 'all')]
  assert (len(train), len(heldout), train.shape, train.num_classes) == (80, 80, (2,), 3)
  np.testing.assert_array_equal(np.concatenate([train.records.x, heldout.records.x]),
                                whole.records.x, 'all must be train and heldout')
  np.testing.assert_array_equal(train.records.x, toys.rings(80, 4)[0])


def test_data_never_imports_tensorflow(data_dir):
  program = ('import sys; from eqflow.data import pipeline, sources; '
             "assert not {'tensorflow_datasets', 'sklearn'} & set(sys.modules), 'not lazy'; "
             f"source = sources.load('digits', split='train', data_dir={str(data_dir)!r}); "
             'next(pipeline.batches(source, seed=0, batch=4)); '
             "assert 'tensorflow' not in sys.modules, 'tensorflow was imported'")
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                        check=False)
  assert done.returncode == 0, done.stderr
