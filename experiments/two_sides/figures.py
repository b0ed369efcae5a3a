"""The figures of colabs/two_sides.ipynb, drawn from numbers that the notebook computes.

A figure's label is the name of its file. Time runs from noise, left, to data, right, as
sampling does.
"""

import matplotlib
from matplotlib import pyplot as plt
import numpy as np
from scipy.stats import norm

from experiments.colours import BLACK, BLUE, GREEN, ORANGE, PINK, RED, SKY

TIME = 't   (1 noise, 0 data)'
STYLE = {
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.titlesize': 11, 'axes.grid': True,
    'grid.alpha': 0.25, 'figure.constrained_layout.use': True}


def panels(label, rows, columns, *, size, **shared):
  """(figure, axes [rows, columns]) with that label, cleared if it exists; None is a new figure."""
  with plt.rc_context(STYLE):
    return plt.subplots(rows, columns, num=label, clear=True, figsize=size, squeeze=False, **shared)


def density(process, t, z, *, means, stds, weights):
  """p(z_t) [z, t] for x ~ sum_k w_k N(mean_k, std_k^2), on a grid of z and t."""
  state = process(np.asarray(t))
  alpha, sigma = (np.asarray(c)[..., None] * np.ones(len(stds)) for c in state)
  spread = np.hypot(alpha * stds, sigma)
  return (weights * norm.pdf(z[:, None, None], alpha * np.ravel(means), spread)).sum(-1)


def background(axis, process, data, *, height):
  """Shades p(z_t) behind the paths, normalized to its peak at every time."""
  t, z = np.linspace(0, 1, 201), np.linspace(-height, height, 401)
  p = density(process, t, z, **data)
  axis.pcolormesh(t, z, np.sqrt(p / p.max(0)), cmap='Greys', vmin=0, vmax=2.2, shading='gouraud',
                  rasterized=True)
  axis.set(xlim=(1.02, -0.02), ylim=(-height, height))
  axis.grid(False)


def scaling(process, data, times, flow, here, *, blend):
  """Paths of DDIM and Euler on `process`, {name: states [n, b]}, and the ends of flow matching's."""
  figure, axes = panels('scaling', 1, len(here), size=(9.6, 3.9), sharey=True)
  for axis, (name, states) in zip(axes[0], here.items()):
    background(axis, process, data, height=2.6)
    for start, path in enumerate(states.T):
      axis.plot(times, path, '-', color=_of(start, states), linewidth=1.6, marker='o', markersize=3.5)
    for start, end in enumerate(flow[name][-1]):
      axis.plot(-0.06, end, marker='<', color=_of(start, states), markersize=8, clip_on=False,
                markeredgecolor='white', markeredgewidth=0.7)
    moved = abs(states[-1] - flow[name][-1]).max()
    ends = f'samples moved by {moved:.2f}' if moved > 1e-4 else 'same samples'
    axis.set(title=f'{name}: {ends}', xlabel=TIME, xlim=(1.02, -0.06))
  axes[0, 0].set_ylabel('z')
  figure.suptitle(
      f'{len(times) - 1} steps; flow matching, its state multiplied by $((1-t)^2 + t^2)^{{-b/2}}$ '
      f'with the blend $b = {blend:g}$\n◀ samples at $b = 0$;  grey: density of z, relative to its '
      'peak at t', fontsize=9.5)
  return figure


def _of(start, states):
  return matplotlib.colormaps['plasma'](0.08 + 0.8 * start / max(1, states.shape[1] - 1))


def gaussian_paths(rows, times, *, label=None):
  """Panels of {(process name, variance): (exact paths [n, b], ends of one Euler step [b])}."""
  names = list(dict.fromkeys(name for name, _ in rows))
  variances = list(dict.fromkeys(variance for _, variance in rows))
  across = len(variances) > 1
  size = (2.5 * len(variances) + 0.6, 4.6) if across else (9.6, 3.6)
  shape = (len(names), len(variances)) if across else (1, len(names))
  figure, axes = panels(label, *shape, size=size, sharex=True, sharey=True)
  for axis, ((name, variance), (paths, one)) in zip(axes.flat, rows.items()):
    axis.set(xlim=(1.02, -0.02), ylim=(-2.9, 2.9))
    axis.plot(times, paths, color=BLUE, linewidth=1.3)
    axis.plot([1, 0], np.stack([paths[0], one]), color=RED, linewidth=1, linestyle=(0, (4, 2)))
    miss = abs(one - paths[-1]).max() / abs(paths[0]).max()
    axis.text(0.97, 0.03, f'one step: error {miss:.2f} |z|', transform=axis.transAxes, ha='right',
              va='bottom', fontsize=8.5, color=RED)
    if not across or name == names[0]:
      data = f'data of variance {variance:g}'
      axis.set_title(data if across else f'{name}, {data}')
  for axis in axes[-1]:
    axis.set(xlabel=TIME, xticks=[1, 0.75, 0.5, 0.25, 0], xticklabels=['1', '', '0.5', '', '0'])
  for axis, name in zip(axes[:, 0], names):
    axis.set_ylabel(f'{name}\nz' if across else 'z')
  axes[0, 0].plot([], [], color=BLUE, label='exact paths')
  axes[0, 0].plot([], [], color=RED, linestyle=(0, (4, 2)), label='one Euler step')
  figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=2,
                frameon=False)
  return figure


def weightings(logsnr, falling, peaked, dots):
  """w(lambda): weights that decrease with log-SNR, on a log scale, and peaked ones, normalized."""
  figure, axes = panels('weightings', 1, 2, size=(10.4, 4.6))
  colours = [BLACK, BLUE, GREEN, ORANGE, PINK]
  for axis, rows in zip(axes[0], (falling, peaked)):
    for (name, w), colour in zip(rows.items(), colours):
      dash = (0, (4, 1.5)) if 'min-SNR' in name else '-'  # It lies on another line.
      axis.plot(logsnr, w, label=name, color=colour, linestyle=dash, linewidth=1.8)
  for axis, (name, (at, w)) in zip(axes[0], dots.items()):
    axis.plot(at, w, 'o', color=RED, markersize=4, markerfacecolor='white', label=name, zorder=3)
  axes[0, 0].set(title='not increasing: the loss is an ELBO of noised data', ylabel='w(λ),  1 at λ = 0',
                 yscale='log', ylim=(1e-3, 1e3))
  axes[0, 1].set(title='peaked: most of the loss at medium noise', ylim=(0, 1.03),
                 ylabel='w(λ) / its peak')
  for axis in axes[0]:
    axis.set(xlabel='λ = log α²/σ²   (noise left, data right)', xlim=(logsnr[0], logsnr[-1]),
             xticks=np.arange(-10, 11, 5))
    axis.legend(fontsize=9, frameon=False, loc='upper center', bbox_to_anchor=(0.5, -0.16), ncols=3,
                columnspacing=1.2)
  return figure


def contributions(times, weights, chosen):
  """-h_t over t by churn, {churn: h [n]}; the chosen one is in front."""
  figure, axes = panels('churn', 1, 1, size=(7.6, 4.2))
  axis, most = axes[0, 0], max(weights)
  for churn, h in weights.items():
    front = churn == chosen
    axis.plot(times[:-1], -h[:-1], color=matplotlib.colormaps['viridis'](0.9 - 0.85 * churn / most),
              linewidth=3 if front else 1.6, zorder=3 if front else 2,
              label=f'churn {churn:.1f}    {-h.sum():.4f}')
  axis.set(title=f'{len(times) - 1} steps of DDIM: sample = Σ h(t) v(t) + a term of the noise',
           xlim=(1.01, 0), ylim=(0, None), xlabel=TIME, ylabel='−h(t)')
  axis.legend(title='                         sum of −h', fontsize=9, title_fontsize=9,
              frameon=False)
  return figure


def marginals(process, data, times, paths, at):
  """Paths over p(z_t), {name: states [n, b]}, and histograms next to them at the times `at`."""
  ratios = dict(width_ratios=[4.5] + [1] * len(at))
  figure, axes = panels('marginals', len(paths), 1 + len(at), size=(11, 5.6), gridspec_kw=ratios,
                        sharex='col', sharey=True)
  z = np.linspace(-3, 3, 301)
  for row, (name, states) in zip(axes, paths.items()):
    background(row[0], process, data, height=3)
    spaced = np.linspace(0.05 * states.shape[1], 0.95 * states.shape[1], 7).astype(int)
    few = states[:, np.argsort(states[0])[spaced]]
    for start, path in enumerate(few.T):
      row[0].plot(times, path, color=_of(start, few), linewidth=1.2)
    row[0].set(ylabel='z', title=name)
    for axis, t in zip(row[1:], at):
      k = np.argmin(abs(times - t))
      axis.hist(states[k], bins=np.linspace(-3, 3, 61), density=True, orientation='horizontal',
                color=SKY, alpha=0.8)
      axis.plot(density(process, times[k:k + 1], z, **data)[:, 0], z, color=BLACK, linewidth=1.1)
      axis.set(xticks=[], title=f't = {times[k]:.1f}' if name == next(iter(paths)) else '')
      axis.grid(False)
      axis.spines['bottom'].set_visible(False)
      axis.tick_params(left=False)
  axes[-1, 0].set_xlabel(TIME)
  for axis in axes[-1, 1:]:
    axis.set_xlabel('density')
  return figure
