"""Every process and output with numbers bound: the rows that the laws run over."""

from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np

from eqflow import outputs, processes
from eqflow.processes import tables


def _stretch(t):
  return 1 + t * t


PROCESSES = {
    'linear': processes.linear,
    'cosine': processes.cosine,
    'variance_preserving': Partial(processes.variance_preserving, beta_min=0.1, beta_max=20.0),
    'edm': processes.edm,
    'scaled': Partial(processes.scaled, process=processes.cosine, scale=Partial(_stretch)),
    'sub_vp': Partial(processes.sub_vp, beta_min=0.1, beta_max=20.0),
    'discrete': Partial(processes.discrete, angles=processes.table_angles(
        tables.zero_terminal_snr(tables.scaled_linear()))),
    'logsnr_shifted': Partial(processes.logsnr_shifted, process=processes.cosine, shift=-1.5),
    'shifted': Partial(processes.shifted, process=processes.linear, shift=3.0),
}

DECAYS = {
    'constant': Partial(outputs.constant_decay, gain=2.0),
    'linear': Partial(outputs.linear_decay, gain=1.0),
    'truncated': Partial(outputs.truncated_decay, start=0.8, gain=4.0),
    'piecewise': Partial(outputs.piecewise_decay, start=0.8, height=1.4, gain=4.0),
}

OUTPUTS = {
    'x': outputs.x,
    'eps': outputs.eps,
    'v': outputs.v,
    'u': outputs.u,
    'displacement': outputs.displacement,
    'score': outputs.score,
    'edm': Partial(outputs.edm, sigma_data=0.5),
    **{f'equilibrium_{name}': Partial(outputs.equilibrium, decay=decay)
       for name, decay in DECAYS.items()},
}


def times(process_name, n, dtype):
  """n times over the range in which every output sees: [0.001, 0.999], or sigma in [0.002, 80]."""
  if process_name == 'edm':
    return jnp.asarray(np.geomspace(0.002, 80, n), dtype)
  if process_name == 'discrete':
    # Between the entries, at which the velocity jumps.
    return jnp.asarray((np.round(np.linspace(1, 998, n)) + 0.5) / 1000, dtype)
  return jnp.asarray(np.linspace(0.001, 0.999, n), dtype)
