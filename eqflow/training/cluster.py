"""One run in several processes: how they find each other, agree, and part."""

from collections.abc import Callable
import json
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Makes this process one of several: their devices are then `jax.devices()` of each.

  What is None is found by JAX, from the variables of SLURM, Open MPI, Kubernetes or a TPU pod. Comes
  before anything that asks for devices. Raises ValueError where it is neither given nor found.
  """
  given = dict(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id)
  try:
    jax.distributed.initialize(**given)
  except (ValueError, RuntimeError) as error:
    raise ValueError(f'--distributed with --coordinator={coordinator}, --num_processes='
                     f'{num_processes}, --process_id={process_id}: {error}') from error


def part() -> None:
  """Waits until every process is done; does nothing in a process that is alone.

  The first process serves the others, and they are ended by JAX where it has gone.
  """
  if jax.process_count() > 1:
    jax.distributed.shutdown()


def told(find: Callable[[], Any]) -> Any:
  """find() of the first process, on all; what it returns is written as JSON.

  Processes that look at a folder one after another may find different things, and would then wait for
  each other in different places.
  """
  if jax.process_count() == 1:
    return find()
  text = np.frombuffer(json.dumps(find()).encode(), np.uint8) if jax.process_index() == 0 else b''
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  said = np.zeros(size, np.uint8)
  if jax.process_index() == 0:
    said[:] = text
  return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(said))))
