"""Batches of a run: order, resuming, processes, workers, flips."""

import contextlib
import itertools
import os
import pathlib
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

from eqflow.data import pipeline, records, sources
from tests import ROOT


def numbered(n, shape=(3, 4, 1)):
  """A source of n records; record i is filled with i."""
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


def test_every_record_occurs_once_per_epoch():
  label = joined(take(30, numbered(21), seed=0, batch=7), 'label').reshape(10, 21)
  assert (np.sort(label, axis=1) == np.arange(21)).all(), 'an epoch is not a permutation'
  assert len({tuple(epoch) for epoch in label}) == 10, 'two epochs have the same order'


def test_another_seed_gives_another_order():
  orders = [pipeline.record_index(50, seed, np.arange(50)) for seed in range(3)]
  assert (orders[0] != orders[1]).any() and (orders[1] != orders[2]).any(), 'the seed is ignored'


def test_record_index_is_the_order_of_the_batches():
  label = joined(take(9, numbered(21), seed=5, batch=10), 'label')
  np.testing.assert_array_equal(
      pipeline.record_index(21, 5, np.arange(90)), label, 'record_index and batches disagree')
  assert [int(pipeline.record_index(21, 5, k)) for k in (0, 33, 89)] == list(label[[0, 33, 89]]), (
      'one k and an array of k disagree')


def test_a_batch_has_the_dtypes_and_range_for_training():
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


def test_rows_of_all_processes_form_the_global_batch():
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


def test_workers_exit_when_their_parent_is_killed(tmp_path):
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


def test_a_flip_depends_only_on_the_example():
  ramp = np.broadcast_to(np.arange(4, dtype=np.uint8)[:, None], (30, 2, 4, 1))
  source = records.Source(records.InMemory(ramp, np.zeros(30, np.int32)), (2, 4, 1), 0, 'ramp')
  falls = lambda batches: joined(batches, 'x')[:, 0, 0, 0] > joined(batches, 'x')[:, 0, 3, 0]
  flips = falls(take(40, source, seed=0, batch=30, flip=True))
  assert 0.44 < flips.mean() < 0.56, f'{flips.mean():.2f} of 1,200 are mirrored, not about half'
  np.testing.assert_array_equal(falls(take(150, source, seed=0, batch=8, flip=True)), flips,
                                'the flips depend on the batch size')
  assert (flips[:30] != flips[30:60]).any(), 'the second epoch repeats the flips of the first'
  assert not falls(take(2, source, seed=0, batch=30)).any(), 'mirrored without flip=True'


def test_flipping_does_not_change_the_source():
  pixels = np.array([[[[0], [9]]]] * 3, np.uint8)
  source = records.Source(records.InMemory(pixels, np.zeros(3, np.int32)), (1, 2, 1), 0, 'pairs')
  take(9, source, seed=0, batch=3, flip=True)
  assert (pixels[:, 0, 0] == 0).all(), 'mirroring a batch has changed the source'


def test_a_closed_iterator_raises():
  batches = pipeline.batches(numbered(5), seed=0, batch=2)
  batches.close()
  with pytest.raises(ValueError, match='closed'):
    next(batches)


@pytest.mark.parametrize('options, text', [
    ({'batch': 10, 'process_count': 4}, r'batch=10 .* process_count=4.*batch=8'),
    ({'batch': 4, 'process_index': 2, 'process_count': 2}, r'process_index=2 with process_count=2'),
    ({'batch': 4, 'start': -1}, r'start=-1'),
    ({'batch': 4, 'flip': True}, r"flip=True .*'numbered' .*\(2,\)"),
])
def test_impossible_batches_are_rejected(options, text):
  with pytest.raises(ValueError, match=text):
    pipeline.batches(numbered(5, (2,)), seed=0, **options)


def test_an_empty_source_is_rejected():
  with pytest.raises(ValueError, match="'numbered' has no records"):
    pipeline.batches(numbered(0), seed=0, batch=2)


def test_records_decoded_one_by_one_give_the_same_batches(data_dir, monkeypatch):
  in_memory = sources.load('digits', split='heldout', data_dir=data_dir)
  monkeypatch.setattr(records, 'MEMORY', 0)
  lazy = sources.load('digits', split='heldout', data_dir=data_dir)
  assert not isinstance(lazy.records, records.InMemory), 'too big for memory, yet in memory'
  lazy = pickle.loads(pickle.dumps(lazy))
  assert_same(take(8, lazy, seed=0, batch=50, flip=True),
              take(8, in_memory, seed=0, batch=50, flip=True), 'lazy decoding changes the batches')
  np.testing.assert_array_equal(pipeline.arrays(lazy)[0], pipeline.arrays(in_memory)[0])
