"""|gain(x <- output)| and |gain(eps <- output)| over t, on three processes: docs/gain.png.

An error of 1 in the output becomes an error of |gain| in x or in eps.
"""

from jax import numpy as jnp
from jax.tree_util import Partial
import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt
import numpy as np

from eqflow import outputs, processes
from eqflow.mix import gain
from experiments import ROOT, colours

PATH = ROOT / 'docs/gain.png'

PROCESSES = {
    'linear': processes.linear,
    'cosine': processes.cosine,
    'variance preserving': Partial(processes.variance_preserving, beta_min=0.1, beta_max=20.0),
}
TRUNCATED = Partial(outputs.truncated_decay, start=0.8, gain=1.0)
OUTPUTS = {
    'x': outputs.x,
    'eps': outputs.eps,
    'v': outputs.v,
    'u': outputs.u,
    'score': outputs.score,
    'edm (sigma_data 0.5)': Partial(outputs.edm, sigma_data=0.5),
    'equilibrium': Partial(outputs.equilibrium, decay=TRUNCATED),
}
# Dashes for lines that coincide.
DASHES = ['-', '-', '-', (0, (5, 2)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (7, 3))]

TARGETS = {'x': outputs.x, 'eps': outputs.eps}


def main():
  t = jnp.asarray(np.linspace(0.001, 0.999, 999))
  figure, axes = plt.subplots(2, 3, figsize=(11, 6), sharex=True, sharey=True, layout='constrained')
  for row, (target, to) in zip(axes, TARGETS.items()):
    for axis, (title, process) in zip(row, PROCESSES.items()):
      for (name, output), colour, dash in zip(OUTPUTS.items(), colours.CYCLE, DASHES):
        stretch = gain(to(process, t), state=process(t), out=output(process, t))
        axis.plot(t, abs(stretch), label=name, color=colour, linestyle=dash, linewidth=1.8)
      axis.set(title=title if target == 'x' else '', yscale='log', ylim=(1e-3, 1e3), xlim=(0, 1))
      axis.grid(alpha=0.25)
    row[0].set_ylabel(f'|gain({target} ← output)|')
  for axis in axes[1]:
    axis.set_xlabel('t   (0 data, 1 noise)')
  figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside right center', frameon=False)
  figure.savefig(PATH, dpi=110)
  print(PATH)


if __name__ == '__main__':
  main()
