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
# Lines that coincide are a wide one below and dashes above.
OUTPUTS = {
    'x': outputs.x,
    'eps': outputs.eps,
    'v': outputs.v,
    'u': outputs.u,
    'displacement': outputs.displacement,
    'score': outputs.score,
    'edm (sigma_data 0.5)': Partial(outputs.edm, sigma_data=0.5),
    'equilibrium, truncated .8, gain 1': Partial(outputs.equilibrium, decay=TRUNCATED),
}
STYLES = [
    dict(color=colours.BLUE), dict(color=colours.RED), dict(color=colours.GREEN),
    dict(color=colours.PINK, linewidth=5, alpha=0.5), dict(color=colours.GREY, linewidth=2.6),
    dict(color=colours.ORANGE, linestyle=(0, (1, 1))),
    dict(color=colours.SKY, linestyle=(0, (3, 1, 1, 1))),
    dict(color=colours.BLACK, linestyle=(0, (3, 4)))]

TARGETS = {'x': outputs.x, 'eps': outputs.eps}


def main():
  t = jnp.asarray(np.linspace(0.001, 0.999, 999))
  figure, axes = plt.subplots(2, 3, figsize=(11, 6), sharex=True, sharey=True, layout='constrained')
  for row, (target, to) in zip(axes, TARGETS.items()):
    for axis, (title, process) in zip(row, PROCESSES.items()):
      for (name, output), style in zip(OUTPUTS.items(), STYLES):
        stretch = gain(to(process, t), state=process(t), out=output(process, t))
        axis.plot(t, abs(stretch), label=name, **dict(linewidth=1.8) | style)
      axis.set(title=title if target == 'x' else '', yscale='log', ylim=(1e-3, 1e3), xlim=(0, 1))
      axis.grid(alpha=0.25)
    row[0].set_ylabel(f'|gain({target} ← output)|')
  for axis in axes[1]:
    axis.set_xlabel('t   (0 data, 1 noise)')
  figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=4,
                frameon=False)
  figure.savefig(PATH, dpi=100)
  print(PATH)


if __name__ == '__main__':
  main()
