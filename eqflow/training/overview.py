"""What a training starts with: its parameters as a table, and how they are sharded."""

import pathlib
import re

from clu import parameter_overview
import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from eqflow import files
from eqflow.models import embed
from eqflow.training import sharding


def table(params: PyTree) -> str:
  """One row a module of the network, with its number of parameters; blocks of one size share a row."""
  alike = {}
  for name, tree in params.items():
    kind, number = re.fullmatch(r'(.*?)(\d*)', name).groups()
    total, _ = embed.count({name: tree})
    alike.setdefault((kind, total) if number else (name, total), []).append(number)
  rows = []
  for (kind, total), numbers in alike.items():
    count = len(numbers)
    name = f'{kind}{numbers[0]}..{numbers[-1]}' if count > 1 else kind + numbers[0]
    rows.append((name, f'x{count}' if count > 1 else '', f'{count * total:,}'))
  widths = [max(map(len, column)) for column in zip(*rows)]
  return '\n'.join(f'{name:<{widths[0]}}  {count:<{widths[1]}}  {total:>{widths[2]}}'
                   for name, count, total in rows)


def describe(params: PyTree, mesh: Mesh, rules: sharding.Rules, path: pathlib.Path) -> str:
  """`table`, totals, and leaves that cannot be sharded by the rules; lists all parameters in `path`."""
  files.write_text(
      path, parameter_overview.get_parameter_overview(params, include_stats=False) + '\n')
  total, trainable = embed.count(params)
  axes = ', '.join(f'{name} {size}' for name, size in mesh.shape.items())
  lines = [table(params), f'{total:,} parameters, {trainable:,} of them trainable, on '
           f'{mesh.size} {jax.devices()[0].platform} device(s) ({axes}); listed in {path}']
  lines += [f'{name} is not sharded over {", ".join(lost)}: no size of it is divisible'
            for name, lost in sharding.undivided(params, rules, mesh).items()]
  return '\n'.join(lines)
