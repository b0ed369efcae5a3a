"""The training loop."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from eqflow.training.runtime import multihost, preemption
from eqflow.training import train_state


class Due(NamedTuple):
  """What is to be done after one step."""
  log: bool
  snapshot: bool
  save: bool
  preview: bool


class Cadence(NamedTuple):
  """Numbers of steps between two logs, snapshots of the EMAs, saves and previews; 0: never."""
  log: int
  snapshot: int
  save: int
  preview: int

  def at(self, n: int, *, last: bool) -> Due:
    """What is due after step n. The last step is logged and saved, and a preview comes after a save."""
    log, snapshot, save, preview = (bool(every) and n % every == 0 for every in self)
    return Due(log=log or last, snapshot=snapshot or (last and self.snapshot > 0),
               save=save or preview or last, preview=preview and not last)


class Actions(NamedTuple):
  """What the loop does between steps."""
  check: Callable      # ((n, health) or None) -> None; raises for step n, or for a save that failed
  log: Callable        # (n, state)
  snapshot: Callable   # (state)
  save: Callable       # (state, wait); with wait it returns when the checkpoint is on disk
  preview: Callable    # (state)


def fit(state: train_state.TrainState, step: Callable, batches: Iterator[dict[str, Any]], until: int,
        cadence: Cadence, actions: Actions,
        stop: preemption.Stop | multihost.Agreement) -> train_state.TrainState:
  """Trains from state.step to `until` steps; state is donated.

  A state is written only if its last update was finite. After the step in which a signal came, saves
  the state and raises Stopped. Raises what `actions.check` does.
  """
  pending = None
  for n in range(int(state.step) + 1, until + 1):
    state, health = step(state, next(batches))
    actions.check(pending)              # One step late: the device never waits for the host.
    pending = n, health
    due, stopping = cadence.at(n, last=n == until), stop.agreed()
    if any(due) or stopping:
      actions.check(pending)            # Now: the state may be written.
      pending = None
    if due.log:
      actions.log(n, state)
      state = train_state.logged(state)
    if due.snapshot:                    # Before the checkpoint: a resumed run would not write it again.
      actions.snapshot(state)
    if due.save or stopping:
      actions.save(state, wait=stopping or n == until)
    if stopping:
      stop.leave()
    if due.preview:
      actions.preview(state)
  return state
