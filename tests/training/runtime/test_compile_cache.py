"""Compiled programs are kept on disk and read by the next start."""

import os
import subprocess
import sys

PROGRAM = '''
import sys
import jax
from jax import monitoring, numpy as jnp
from eqflow.training.runtime import compile_cache
hits = []
monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith('cache_hits')))
compile_cache._WORTH = 0.0
compile_cache.use(sys.argv[1])
print(jax.jit(lambda x: jnp.sin(x).sum())(jnp.arange(8.0)), sum(hits))
'''


def _started(folder):
  environment = {name: value for name, value in os.environ.items() if 'CACHE' not in name}
  return subprocess.run([sys.executable, '-c', PROGRAM, str(folder)], env=environment, check=True,
                        capture_output=True, text=True).stdout


def test_the_second_start_reads_what_the_first_compiled(tmp_path):
  first, second = _started(tmp_path).split(), _started(tmp_path).split()
  assert first[0] == second[0] and int(first[1]) == 0 < int(second[1])


def test_a_folder_that_cannot_be_written_is_reported_once_and_not_used(tmp_path):
  file = tmp_path / 'file'
  file.touch()
  said, found = _started(file).splitlines()
  assert f'config.train.compile_cache={file}' in said and found.endswith(' 0')
