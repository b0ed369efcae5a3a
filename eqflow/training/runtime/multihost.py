"""One run in several processes: how they join, agree on one answer, stop together and leave."""

from collections.abc import Callable
import json
import re
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
import numpy as np

from eqflow.training import sharding
from eqflow.training.runtime import preemption

# Seconds that a finished process waits for process 0, which alone writes, compares and draws.
LONGEST = 7 * 86_400


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Makes this process one of several: `jax.devices()` are then the devices of all of them.

  JAX finds what is None in the variables of SLURM, Open MPI, Kubernetes or a TPU pod. Call it before
  anything that asks for devices. Raises ValueError for what is neither given nor found.
  """
  if coordinator is not None and not re.fullmatch(r'.+:[0-9]+', coordinator):
    raise ValueError(f'--coordinator={coordinator}: give host:port of process 0, such as node1:12345')
  given = dict(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id)
  try:
    jax.distributed.initialize(**given, shutdown_timeout_seconds=LONGEST)
  except (ValueError, RuntimeError) as error:
    raise ValueError(f'--distributed with --coordinator={coordinator}, --num_processes='
                     f'{num_processes}, --process_id={process_id}: {error}') from error


def leave(seconds: float | None = None) -> None:
  """Waits until every process gets here, or for so many seconds; does nothing in a single process.

  JAX ends the other processes when process 0, which serves them, has gone.
  """
  if jax.distributed.is_initialized():
    thread = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    thread.start()
    thread.join(seconds)


def broadcast(function: Callable[[], Any]) -> Any:
  """Runs `function` on process 0; returns its JSON-serializable result, or raises, on every process.

  Processes that look at a folder one by one may see different things, and then wait for each other in
  different places.
  """
  if jax.process_count() == 1:
    return function()
  raised, text = None, b''
  if jax.process_index() == 0:
    try:
      answer = dict(result=function())
    except Exception as error:
      raised, answer = error, dict(raised=f'{type(error).__name__}: {error}')
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  sent = np.zeros(size, np.uint8)
  if jax.process_index() == 0:
    sent[:] = text
  received = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent))))
  if 'raised' in received:
    raise raised or OSError(f'process 0 failed: {received["raised"]}')
  return received['result']


class Agreement:
  """A `Stop` that all processes answer after the same step: signals reach them one by one."""

  def __init__(self, stop: preemption.Stop, mesh: Mesh):
    self._stop, self._mesh, self._before = stop, mesh, None
    self._any = jax.jit(jax.numpy.max, out_shardings=sharding.replicated(mesh))

  def agreed(self) -> bool:
    """Whether any process was asked to stop before its call before this one.

    The maximum over all devices is read one call late, so that no host waits for a device.
    """
    asked = self._any(sharding.of_each(float(self._stop.agreed()), self._mesh))
    before, self._before = self._before, asked
    return before is not None and float(before) > 0

  def leave(self) -> None:
    """Raises Stopped, once every process is here: JAX would end those that it had left waiting."""
    leave()
    self._stop.leave()
    raise preemption.Stopped('a signal to another process', self._stop.remedy)


def agreeing(stop: preemption.Stop, mesh: Mesh) -> preemption.Stop | Agreement:
  """`stop` itself in a single process, else the agreement of all processes."""
  return stop if jax.process_count() == 1 else Agreement(stop, mesh)
