"""The seven levels, and what travels through them: docs/architecture.png. Run it from anywhere."""

import pathlib

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch

PATH = pathlib.Path(__file__).with_suffix('.png')

# From the bottom up: title, what it is, rooms, colour.
LEVELS = [
    ('1  ground', 'jax, numpy', ['arrays', 'mix', 'files'], '#dcebf7'),
    ('2  the plane', 'vectors, times, fields', [
        'processes/', 'outputs', 'weights', 'densities', 'grids', 'blind_spots', 'fields', 'guidance',
        'couplings', 'energies', 'oracles'], '#d3e8ee'),
    ('3  methods', 'loss and samplers', [
        'losses', 'samplers/', 'descent/', 'likelihood', 'ood', 'ema', 'posthoc_ema'], '#d6ebdf'),
    ('4  machinery', 'flax, optax, orbax', [
        'models/', 'data/', 'training/', 'evaluation/', 'interop/', 'planning/'], '#e6efd3'),
    ('5  config', 'names to functions', ['config/'], '#f7efd0'),
    ('6  runs', 'one folder, one run', ['runs/'], '#fbe4cf'),
    ('7  program', 'flags, modes', ['main', 'commands/'], '#f9dcd9'),
]
# What travels, and where it stops: {level: name of the stop}, read from the top down.
LANES = [
    ('config', '#c0392b', {
        7: 'main\nparses --config', 6: 'Run(config,\nworkdir, ...)',
        5: 'recipe(config)\nto pure functions'}),
    ('params', '#8e44ad', {
        7: 'commands/sample', 6: 'restore.models:\na Model, or two',
        5: 'Sampling\n.generate(models)',
        2: 'bind, guided: then\npredict(z, t)'}),
    ('z', '#1f618d', {
        6: 'generate: batches\nover the mesh', 5: 'noise at the first\ntime, then integrate',
        3: 'Solver.step, or\nDescent.step', 1: 'remix, combine'}),
    ('x', '#117a65', {
        4: 'pipeline, fit,\ntrain_step', 3: 'matching_loss', 2: 'process(t),\noutput(process, t)',
        1: 'mix, combine'}),
    ('keys', '#7d6608', {
        6: 'sampling:\nseed, index', 5: 'fold: START,\nSOLVER',
        1: 'noise_like'}),
    ('keys', '#7d6608', {
        4: 'training:\nseed, index', 3: 'matching_loss:\nNOISE',
        1: 'noise_like'}),
]
LEFT, WIDTH = 8.75, 22.4


def draw_level(axis, level, title, what, rooms, colour):
  bottom = (level - 1)
  axis.add_patch(FancyBboxPatch((0, bottom + 0.04), WIDTH, 0.92, facecolor=colour,
                                edgecolor='none', boxstyle='round,pad=0,rounding_size=.08'))
  axis.text(0.15, bottom + 0.66, title, fontsize=12, fontweight='bold', va='center')
  axis.text(0.15, bottom + 0.34, what, fontsize=9, color='#444444', va='center')
  per_row = 4
  rows = [rooms[i:i + per_row] for i in range(0, len(rooms), per_row)]
  for i, row in enumerate(rows):
    y = bottom + 0.92 - 0.84 * (i + 0.5) / len(rows)
    for j, room in enumerate(row):
      bold = room.endswith('/')
      axis.text(2.6 + 1.55 * j, y, room, fontsize=8.7, va='center', family='monospace',
                fontweight='bold' if bold else 'normal')


def draw_lane(axis, x, name, colour, stops):
  levels = sorted(stops, reverse=True)
  at = [(level - 0.5) for level in levels]
  axis.text(x, at[0] + 0.31, name, fontsize=12.5, fontweight='bold', color=colour, ha='center',
            family='monospace')
  axis.annotate('', (x, at[-1] + 0.08), (x, at[0] + 0.26), arrowprops=dict(
      arrowstyle='-|>,head_width=.25,head_length=.5', color=colour, linewidth=3, shrinkA=0, shrinkB=0))
  for y, level in zip(at, levels):
    axis.plot(x, y, 'o', color='white', markeredgecolor=colour, markersize=9, markeredgewidth=2.5)
    axis.text(x + 0.17, y, stops[level], fontsize=9.2, va='center', linespacing=1.15)


def main():
  figure, axis = plt.subplots(figsize=(17.6, 7.6))
  for level, row in enumerate(LEVELS, 1):
    draw_level(axis, level, *row)
  for i, lane in enumerate(LANES):
    draw_lane(axis, LEFT + 0.4 + 2.26 * i, *lane)
  axis.axvline(LEFT, 0.01, 0.935, color='white', linewidth=4)
  axis.text(0.15, 7.2, 'A file imports its own level and lower numbers.', fontsize=11.5)
  axis.set(xlim=(-0.05, WIDTH + 0.05), ylim=(-0.02, 7.5))
  axis.axis('off')
  figure.savefig(PATH, dpi=90, bbox_inches='tight', pad_inches=0.08)
  print(PATH)


if __name__ == '__main__':
  main()
