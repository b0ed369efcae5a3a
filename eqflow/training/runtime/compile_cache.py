"""Programs that XLA compiled, kept on disk: the next start reads them."""

import contextlib
import hashlib
import pathlib
import platform
import tempfile

import jax

from eqflow import files

# Seconds. JAX stores programs from one second on by default; a run compiles many that take less.
_WORTH = 0.05


def use(folder: str) -> None:
  """Keeps compiled programs in `folder`, and reads them from there; an empty string keeps none.

  If JAX already has a folder, from JAX_COMPILATION_CACHE_DIR, it is used instead. If the folder cannot
  be written, a line says so, and programs are compiled at every start.
  """
  if not folder or jax.config.jax_compilation_cache_dir:
    return
  place = files.resolved(folder) / _machine()
  try:
    place.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=place).close()
  except OSError as error:
    print(f'config.train.compile_cache={folder} cannot be written ({error}): programs are compiled at '
          "every start; choose another folder, or '' for none", flush=True)
    return
  jax.config.update('jax_compilation_cache_dir', str(place))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', _WORTH)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)


def _machine():
  """A name for the instructions of this CPU: XLA compiles for them, and machines may share a home."""
  known = platform.machine()
  with contextlib.suppress(OSError):
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    known = next((line for line in lines if line.startswith(('flags', 'Features'))), known)
  return f'{platform.machine()}-{hashlib.sha256(known.encode()).hexdigest()[:8]}'
