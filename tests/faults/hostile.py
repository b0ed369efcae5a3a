"""Hostile files and configs under a limit of memory: each is rejected in one line, or does no harm.

  python -m tests.faults.hostile FOLDER FIRST COUNT

Each case is a copy of this process, with the program imported, which runs one command. So this process
must not compute with JAX, and prints its rows as JSON.
"""

from collections.abc import Callable
import gzip
import json
import os
import pathlib
import pickle
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
import zipfile

from absl import app, flags
import numpy as np
from safetensors import numpy as safetensors

from eqflow import interop, main
from tests import ROOT
from tests.faults import configs
from tests.faults.datasets import _clothes, _draw, _prepare, paint

# The readers state at most 2.1 GiB; the program itself needs less than 0.9.
LIMIT, MOST, SECONDS = 4 * 2**30, 3 * 2**30, 120
TRAINS = 3   # the exit code of a training that starts to compile
SHAPE = 8, 8, 1


# What a file may be.
def _fifo(path):
  os.mkfifo(path)


def _device(path):
  os.symlink('/dev/zero', path)


def _text(text):
  return lambda path: path.write_text(text)


def _sparse(size, head=b''):
  def make(path):
    path.write_bytes(head)
    os.truncate(path, size)
  return make


_DEEP = _text('[' * 100_000)
_NESTED = _text('{"a":' * 400 + '1' + '}' * 400)
_WIDE = _text('[' + ','.join(['[]'] * 2**24) + ']')
_ANY = {'a FIFO': _fifo, 'a device': _device, 'a folder': lambda path: path.mkdir(), 'empty': _text('')}


# Arrays.
def _header(shape, dtype='<f4', fortran=False, version=1, more=''):
  text = repr({'descr': dtype, 'fortran_order': fortran, 'shape': shape}) + more
  return (b'\x93NUMPY' + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, 'little')
          + text.encode('latin1'))


def _zeros(shape, **options):
  head = _header(shape, **options)
  return _sparse(len(head) + 4 * int(np.prod(shape)), head)


def _bytes(content):
  return lambda path: path.write_bytes(content)


def _npz(members, method=zipfile.ZIP_DEFLATED):
  """path -> writes {name: bytes, or (head, how many zeros follow)} as a .npz file."""
  def make(path):
    with zipfile.ZipFile(path, 'w', method, compresslevel=1) as archive:
      for name, content in members.items():
        head, zeros = content if isinstance(content, tuple) else (content, 0)
        with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
          file.write(head)
          for start in range(0, zeros, 2**24):
            file.write(bytes(min(2**24, zeros - start)))
  return make


def _few(n=2):
  return _header((n, *SHAPE)) + bytes(4 * 64 * n)


_LARGE = 2**28 // 64 + 1   # images of just above 1 GiB in float32
INPUTS = {
    **_ANY, 'text': _text('no'), 'a pickle': _bytes(pickle.dumps([1])),
    'objects': lambda path: np.save(path.open('wb'), np.array([{}] * 2), allow_pickle=True),
    'more than its file': _bytes(_header((10**9, *SHAPE))), 'of 1 GiB': _zeros((_LARGE, *SHAPE)),
    'of 2^60': _bytes(_header((2**60, *SHAPE))), 'negative': _bytes(_header((-1, *SHAPE)) + bytes(512)),
    'a long header': _bytes(_header((2, *SHAPE), version=2, more=' ' * 10**6)),
    'a header of 4 GiB': _sparse(2**33, b'\x93NUMPY\2\0\xff\xff\xff\xff'),
    'another version': _bytes(_header((2, *SHAPE), version=9)), 'code': _bytes(
        b'\x93NUMPY\1\0\x20\0' + b'__import__("os").abort()'.ljust(32)),
    'NaN': _bytes(_header((1, *SHAPE)) + np.full(64, np.nan, np.float32).tobytes()),
    'infinite': _bytes(_header((1, *SHAPE)) + np.full(64, np.inf, np.float32).tobytes()),
}
ZIPPED = {
    'x of 1 GiB': _npz({'x': (_header((_LARGE, *SHAPE)), 2**30 + 256)}),
    'many labels': _npz({'x': _few(), 'labels': (_header((2**26,)), 2**28)}),
    'labels that are objects': _npz({'x': _few(), 'labels': _header((2,), '|O')}),
    'by LZMA': _npz({'x': _few()}, zipfile.ZIP_LZMA), 'by BZ2': _npz({'x': _few()}, zipfile.ZIP_BZIP2),
    'x that ends early': _npz({'x': _header((9, *SHAPE))}), 'no x': _npz({'y': _few()}),
    'cut': lambda path: (_npz({'x': _few()})(path), os.truncate(path, 100)),
    # Its table of members has 6 MB: a name may have 65,535 bytes.
    'long names': _npz({'x': _few()} | {f'{i:060000}': b'' for i in range(100)}),
}
UNUSED = _npz({'x': _few(), 'unused': (_header((3 * 2**28,)), 3 * 2**30)})


# Weights.
def _weights(values=0.0, header=None, size=None):
  def make(path):
    safetensors.save_file({'pos_embed': np.full((1, 4, 16), values, np.float32)}, path)
    content = path.read_bytes()
    if header is not None:
      content = header.to_bytes(8, 'little') + content[8:]
    path.write_bytes(content[:size])
  return make


def _long_header(path):
  text = b'{' + b','.join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i
                          for i in range(10**6)) + b'}'
  path.write_bytes(len(text).to_bytes(8, 'little') + text)


WEIGHTS = {
    **_ANY, 'text': _text('no'), 'a pickle': _bytes(pickle.dumps([1])), 'cut': _weights(size=100),
    'a header of 2^60 bytes': _weights(header=2**60), 'a header of 60 MB': _long_header,
    'a sparse header': _sparse(2**33, (2**32).to_bytes(8, 'little'))}


def _finite(value):
  """Loads the weights of a DiT in which one number is `value`."""
  def run(folder):
    # It computes with JAX when it is imported, after which a process must not be copied.
    from tests.interop.test_dit import TINY, _state
    state = _state()
    state['final_layer.linear.bias'][0] = value
    safetensors.save_file(state, folder / 'w.safetensors')
    _load(folder, **TINY)
  return run


def _load(folder, **options):
  try:
    interop.load(folder / 'w.safetensors', **{'input_size': 4, 'num_heads': 2} | options)
  except (ValueError, OSError) as error:
    main.reject(error)


# Data, and the folder of a run.
def _pictures(make, name):
  def create(folder):
    paint(folder / 'data')
    make(folder / 'data' / name)
  return create


def _clothing(make):
  def create(folder):
    _clothes(folder / 'data')
    path = folder / 'data/train-images-idx3-ubyte.gz'
    path.unlink()
    make(path)
  return create


def _zipped(path, head, zeros):
  # The members of a gzip file are unpacked one after the other.
  path.write_bytes(gzip.compress(head) + gzip.compress(bytes(2**27)) * (zeros >> 27))


def _paired(make, name):
  def create(folder):
    _draw(folder / 'data')
    (folder / 'data' / name).unlink()
    make(folder / 'data' / name)
  return create


def _prepared(make, name):
  def create(folder):
    _prepare(folder / 'data')
    path = folder / 'data/digits/1.0.0' / name
    path.unlink()
    make(path)
  return create


def _in_run(make, name):
  def create(folder):
    paint(folder / 'data')
    (folder / 'run').mkdir()
    make(folder / 'run' / name)
  return create


def _rows(shape, value):
  return _bytes(_header(shape) + np.full(shape, value, np.float32).tobytes())


FOLDER, DIGITS, CLOTHES, PAIRS = ('folder.py', ''), ('digits.py', ''), ('fashion_mnist.py', ''), (
    'toy.py', "--config.data.name=pairs --config.loss.coupling={'name':'pairs'}")
# {case: (config and flags, how the files are made, whether it may train)}
TRAININGS = {
    'a FIFO among pictures': (FOLDER, _pictures(_fifo, 'a/x.png'), True),
    'a device among pictures': (FOLDER, _pictures(_device, 'a/x.png'), True),
    'a sparse picture of 1 TB': (FOLDER, _pictures(_sparse(2**40, b'BM'), 'a/x.bmp'), True),
    'clothes that are a bomb': (CLOTHES, _clothing(lambda path: _zipped(
        path, struct.pack('>BBBB3I', 0, 0, 8, 3, 2**24, 28, 28), 10 * 2**30)), False),
    'clothes of 2^96': (CLOTHES, _clothing(lambda path: _zipped(
        path, struct.pack('>BBBB3I', 0, 0, 8, 3, *[2**32 - 1] * 3), 0)), False),
    'clothes of rank 255': (CLOTHES, _clothing(lambda path: _zipped(
        path, b'\0\0\x08\xff' + b'\0\0\0\1' * 255 + b'\0', 0)), False),
    'clothes that are a FIFO': (CLOTHES, _clothing(_fifo), True),
    **{f'pairs.json: {name}': (PAIRS, _paired(make, 'pairs.json'), False) for name, make in (
        ('a FIFO', _fifo), ('nested', _NESTED), ('deep', _DEEP), ('8 GB', _sparse(2**33)),
        ('a list', _text('[]')), ('wide', _WIDE))},
    **{f'x.npy of pairs: {name}': (PAIRS, _paired(make, 'x.npy'), False) for name, make in (
        ('a FIFO', _fifo), ('a device', _device), ('of 2^60', _bytes(_header((2**60, 2)))),
        ('objects', _bytes(_header((9, 2), '|O'))), ('NaN', _rows((9, 2), np.nan)),
        ('a zip file', _npz({'x': _few()})), ('a pickle', _bytes(pickle.dumps([1]))))},
    **{f'dataset_info.json: {name}': (DIGITS, _prepared(make, 'dataset_info.json'), False)
       for name, make in (('a FIFO', _fifo), ('text', _text('no')))},
    'records of TFDS that are a FIFO': (DIGITS, _prepared(
        _fifo, 'digits-train.array_record-00000-of-00001'), False),
    **{f'{file}: {name}': (FOLDER, _in_run(make, file), False)
       for file in ('config.json', 'data.json') for name, make in (
           ('a FIFO', _fifo), ('nested', _NESTED), ('8 GB', _sparse(2**33)), ('a list', _text('[]')))},
}
TINY = ('--config.model.width=16 --config.model.depth=1 --config.model.heads=2').split()


def _command(folder, *argv):
  sys.argv = ['eqflow.main', *argv]
  app.run(main.main, argv=sys.argv, flags_parser=main.parse)


def _train(given, create):
  name, more = given
  def run(folder):
    create(folder)
    small = TINY if name != 'toy.py' else TINY[:2]
    classes = ['--config.data.shape=(4, 6, 3)'] if name == 'folder.py' else []
    with configs.nothing_compiled():
      try:
        _command(folder, f'--config={ROOT}/configs/{name}', f'--workdir={folder}/run', *small, *classes,
                 f'--config.data.dir={folder}/data', *more.split())
      except configs.Accepted:
        os._exit(TRAINS)
  return run


def _denoise(make, name):
  def run(folder):
    make(folder / name)
    _command(folder, f'--config={ROOT}/configs/digits.py', f'--workdir={folder}/run', '--mode=denoise',
             f'--inputs={folder / name}', *TINY)
  return run


def _loaded(make):
  def run(folder):
    make(folder / 'w.safetensors')
    _load(folder)
  return run


def _configured(make, name):
  def run(folder):
    make(folder / name)
    _command(folder, f'--config={folder / name}', f'--workdir={folder}/run')
  return run


# {case: (what is run, the exit codes that are right, what its last line says)}
CASES: dict[str, tuple[Callable, tuple[int, ...], str]] = {
    **{f'inputs: {name}': (_denoise(make, 'x.npy'), (2,), 'x.npy|/dev/zero')
       for name, make in INPUTS.items()},
    **{f'inputs: {name}': (_denoise(make, 'x.npz'), (2,), 'x.npz') for name, make in ZIPPED.items()},
    # These can be used, but a run to use them with is missing.
    'inputs: 3 GiB that are not used': (_denoise(UNUSED, 'x.npz'), (2,),
                                        'contains no checkpoint|labels'),
    **{f'weights: {name}': (_loaded(make), (2,), 'w.safetensors') for name, make in WEIGHTS.items()},
    **{f'weights: {value}': (_finite(value), (2,), 'NaN or infinite') for value in (np.nan, np.inf)},
    **{name: (_train(given, create), (2, TRAINS) if trains else (2,), '') for name, (
        given, create, trains) in TRAININGS.items()},
    **{f'config: {name}': (_configured(make, 'c.py'), (2,), '') for name, make in (
        *_ANY.items(), ('a parenthesis', _text('(')), ('deep', _DEEP), ('memory', _text(
            'get_config = lambda: bytes(2**40)')))},
    **{f'a config in JSON: {name}': (_configured(make, 'c.json'), (2,), '') for name, make in (
        ('nested', _NESTED), ('8 GB', _sparse(2**33)), ('a list', _text('[]')))},
}


def _child(run, folder):
  """Runs a case in this process, and leaves it with the exit code of the program."""
  code = 1
  try:
    with (folder / 'said').open('wb') as said:
      os.dup2(said.fileno(), 1)
      os.dup2(said.fileno(), 2)
    flags.FLAGS.unparse_flags()
    os.environ['HOME'] = str(folder)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    run(folder)
    code = 0
  except SystemExit as end:
    code = end.code if isinstance(end.code, int) else int(bool(end.code))
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def case(folder: pathlib.Path, name: str) -> dict[str, int | float | str]:
  """{'what', 'cases', 'tracebacks', 'over', 'hung', 'idle', 'slowest' in s} of one hostile file.

  over: the peak of memory exceeds 3 GiB, or the system ended it; hung: it did not end in time; idle: an
  exit code that says that the work was done, or no line that names the file.
  """
  run, right, expected = CASES[name]
  folder.mkdir()
  clock = time.perf_counter()
  pid = os.fork()
  if not pid:
    _child(run, folder)
  hung = False
  while not (ended := os.wait4(pid, os.WNOHANG))[0]:
    time.sleep(0.02)
    if not hung and time.perf_counter() - clock > SECONDS:
      hung = True
      os.kill(pid, signal.SIGKILL)
  _, status, used = ended
  said, code = (folder / 'said').read_text(errors='replace'), os.waitstatus_to_exitcode(status)
  lines = [line for line in said.splitlines() if line.startswith('eqflow: ')]
  told = code == TRAINS or len(lines) == 1 and re.search(expected, lines[0])
  found = dict(tracebacks=int('Traceback' in said), hung=int(hung),
               idle=int(code not in right or not told),
               over=int(1024 * used.ru_maxrss > MOST or code == -signal.SIGKILL and not hung))
  if any(found.values()):
    print(name, code, found, said[-1500:], flush=True)
  shutil.rmtree(folder)
  return dict(what='hostile files', cases=1, **found, slowest=round(time.perf_counter() - clock, 1))


def cases(folder: pathlib.Path, first: int, count: int) -> list[dict[str, int | float | str]]:
  """The rows of `count` cases from number `first` on, measured by another process."""
  done = subprocess.run(
      [sys.executable, '-W', 'ignore', '-m', 'tests.faults.hostile', str(folder), str(first),
       str(count)],
      cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
  return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]


if __name__ == '__main__':
  place, start, number = sys.argv[1:]
  for each in list(CASES)[int(start):][:int(number)]:
    print(json.dumps(case(pathlib.Path(place) / 'hostile', each)), flush=True)
