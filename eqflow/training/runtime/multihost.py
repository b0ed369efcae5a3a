"""One run in several processes: how they find each other, agree, and part."""

from collections.abc import Callable
import json
import re
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

# Seconds that a process which is done waits for the first, which writes, compares and draws alone.
LONGEST = 7 * 86_400


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Makes this process one of several: their devices are then `jax.devices()` of each.

  What is None is found by JAX, from the variables of SLURM, Open MPI, Kubernetes or a TPU pod. Comes
  before anything that asks for devices. Raises ValueError where it is neither given nor found.
  """
  if coordinator is not None and not re.fullmatch(r'.+:[0-9]+', coordinator):
    raise ValueError(f'--coordinator={coordinator}: give host:port of process 0, such as node1:12345')
  given = dict(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id)
  try:
    jax.distributed.initialize(**given, shutdown_timeout_seconds=LONGEST)
  except (ValueError, RuntimeError) as error:
    raise ValueError(f'--distributed with --coordinator={coordinator}, --num_processes='
                     f'{num_processes}, --process_id={process_id}: {error}') from error


def part() -> None:
  """Waits until every process is done; does nothing in a process that is alone.

  The first process serves the others, and they are ended by JAX where it has gone.
  """
  if jax.process_count() > 1:
    jax.distributed.shutdown()


def broadcast(find: Callable[[], Any]) -> Any:
  """find() of the first process, on all; what it returns is written as JSON. Where it raises, all do.

  Processes that look at a folder one after another may find different things, and would then wait for
  each other in different places.
  """
  if jax.process_count() == 1:
    return find()
  raised, text = None, b''
  if jax.process_index() == 0:
    try:
      answer = dict(found=find())
    except Exception as error:
      raised, answer = error, dict(raised=f'{type(error).__name__}: {error}')
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  said = np.zeros(size, np.uint8)
  if jax.process_index() == 0:
    said[:] = text
  heard = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(said))))
  if 'raised' in heard:
    raise raised or OSError(f'the first process could not go on: {heard["raised"]}')
  return heard['found']
