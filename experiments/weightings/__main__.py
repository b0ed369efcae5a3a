"""w(lambda) of common objectives, and their densities of training times: results/weightings.png.

Above: the formula of each objective (wide and pale) and the weight implied by density, output and
weight of its loss (dashed); they coincide. Below: the density over log-SNR of each density of times;
the adaptive one is learned on Gaussian data.
"""

import pathlib

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
import numpy as np

from eqflow import densities, outputs, processes, weights
from experiments import colours

PATH = pathlib.Path(__file__).parent / 'results/weightings.png'
LOGSNR = np.linspace(-12, 12, 481)

EDM = Partial(outputs.edm, sigma_data=0.5)
EDM_LOGSNR = Partial(weights.edm_logsnr, mean=-1.2, std=1.2, sigma_data=0.5)
# EDM's weight is largest at this log-SNR.
PEAK = float(LOGSNR[np.argmax(EDM_LOGSNR(jnp.asarray(LOGSNR)))])


def _adapted():
  """The adaptive density for the sigmoid weighting on Gaussian data of std 0.5, learned exactly."""
  adaptive = densities.adaptive(process=processes.edm, low=-12.0, high=12.0, bins=48)
  middles = np.linspace(-12, 12, 97)[1::2]
  error = 1 / (1 + np.exp(-middles) / 0.5**2)
  loss = weights.sigmoid(middles, bias=2.0) * error
  return adaptive.density(1e6 * jnp.stack([loss, jnp.ones(48)]))


def _of_snr(weight):
  return lambda process, t: weight(jnp.exp(processes.logsnr(process, t)))


# title: (process, {objective: (w, (density, output, weight) of its loss)}, {name: density})
PANELS = {
    'linear: flow matching': (processes.linear, {
        'flow matching (u)': (
            weights.flow_matching, (densities.uniform, outputs.u, weights.ones)),
        'InDI (x)': (weights.indi, (densities.uniform, outputs.x, weights.ones)),
        'Stable Diffusion 3 (u, logit-normal)': (
            Partial(weights.sd3, mean=0.0, std=1.0),
            (densities.logit_normal(0.0, 1.0), outputs.u, weights.ones)),
    }, {
        'uniform': densities.uniform, 'logit-normal': densities.logit_normal(0.0, 1.0),
        'mode 0.8': densities.mode(0.8), 'cosmap': densities.cosmap,
    }),
    'cosine: variance preserving': (processes.cosine, {
        'v (the same as flow matching)': (
            lambda value: 2 / np.pi * weights.flow_matching(value),
            (densities.uniform, outputs.v, weights.ones)),
        'ε, unweighted': (
            lambda value: weights.p2(value, gamma=0.0) / (2 * np.pi),
            (densities.uniform, outputs.eps, weights.ones)),
        'P2, γ = 1': (
            lambda value: weights.p2(value, gamma=1.0) / (2 * np.pi),
            (densities.uniform, outputs.eps, _of_snr(lambda snr: 1 / (1 + snr)))),
        'min-SNR, γ = 5': (
            lambda value: weights.min_snr(value, gamma=5.0) / (2 * np.pi),
            (densities.uniform, outputs.eps, _of_snr(lambda snr: jnp.minimum(snr, 5) / snr))),
    }, {'uniform': densities.uniform}),
    'EDM, and weights defined in log-SNR': (processes.edm, {
        'EDM (F, log-normal)': (EDM_LOGSNR, (densities.lognormal(-1.2, 1.2), EDM, weights.ones)),
        'monotone EDM': (Partial(weights.monotone, w=EDM_LOGSNR, peak=PEAK), None),
        'sigmoid, bias 2': (Partial(weights.sigmoid, bias=2.0), None),
        'ELBO': (weights.elbo, None),
    }, {
        'log-normal (EDM)': densities.lognormal(-1.2, 1.2),
        'adaptive, for sigmoid': _adapted(),
    }),
}


def pale(colour: str) -> tuple[float, ...]:
  """The colour mixed with white, opaque: lines that cross keep their colours."""
  return tuple(1 - 0.45 * (1 - c) for c in to_rgb(colour))


def main():
  figure, axes = plt.subplots(2, 3, figsize=(13, 7.2), sharex=True, sharey='row',
                              layout='constrained', height_ratios=(3, 2))
  value = jnp.asarray(LOGSNR)
  with jax.enable_x64(True):
    for column, (title, (process, objectives, densities)) in enumerate(PANELS.items()):
      t = processes.time_of_logsnr(process, jnp.asarray(LOGSNR), high=1e3 if process is processes.edm
                                   else 1.0)
      above, below = axes[:, column]
      # Each is narrower than the one below it: both are visible where they coincide.
      for (name, (w, loss)), colour, width in zip(objectives.items(), colours.CYCLE, (9, 6.5, 4.5, 3)):
        above.plot(value, w(value), color=pale(colour), linewidth=width, label=name,
                   solid_capstyle='butt')
        if loss:
          density, output, weight = loss
          found = weights.implied(process, t, density=density, output=output, weight=weight)
          above.plot(value, found, color=colour, linewidth=1.4, linestyle=(0, (4, 3)))
      for (name, density), colour in zip(densities.items(), colours.CYCLE):
        p = weights.implied(process, t, density=density, output=outputs.eps)
        below.plot(value, p, color=colour, linewidth=1.8, label=name)
      above.set(title=title, yscale='log', ylim=(1e-4, 1e3))
      below.set(xlabel='log-SNR λ   (noise left, data right)', xlim=(-12, 12), ylim=(0, 0.3))
      for axis, corner in ((above, 'upper right'), (below, 'upper left')):
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=9, loc=corner)
  axes[0, 0].set_ylabel('w(λ) of the squared error of ε:\nformula (wide), implied (dashed)')
  axes[1, 0].set_ylabel('density of λ in training')
  figure.savefig(PATH, dpi=95)
  print(PATH)


if __name__ == '__main__':
  main()
