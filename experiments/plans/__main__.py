"""What DiT-XL/2 and EDM2-XXL need of TPU slices and H100s, and their cost by the number of chips.

  python -m experiments.plans [--only=v5e] [--levers]   compiles missing results, draws, writes tables
  python -m experiments.plans --draw                    only draws and writes the tables

Needs the extra aot and no accelerator: minutes of one core a row, most of an hour for EDM2-XXL.
"""

import argparse
import json
import pathlib

from configs import imagenet512, imagenet_dit
from eqflow.commands import plan
from experiments.plans import tables

FOLDER = pathlib.Path(__file__).parent
MODELS = {'dit-xl-2-256': (imagenet_dit, 'eqm_256'), 'dit-xl-2-512': (imagenet_dit, 'eqm_512'),
          'edm2-xxl': (imagenet512, 'xxl')}
# topology: size of the fsdp axis. On H100s the GPUs of a host, on TPUs a side of the slice.
SLICES = {'v5e:4x4': 16, 'v5e:16x16': 16, 'v5p:2x2x2': 8, 'v5p:4x4x4': 8, 'h100:1x1x8': 8,
          'h100:1x2x8': 8, 'h100:1x4x8': 8, 'h100:1x8x8': 8}
# Further changes of some rows: without them, their activations do not fit.
REMAT = dict(model=dict(remat=True))
CHANGES = {
    ('dit-xl-2-512', 'v5e:4x4'): REMAT,
    ('edm2-xxl', 'v5e:4x4'): REMAT | dict(train=dict(accumulate=16)),
    ('edm2-xxl', 'v5e:16x16'): REMAT,
    ('edm2-xxl', 'v5p:2x2x2'): REMAT | dict(train=dict(accumulate=4)),
    ('edm2-xxl', 'h100:1x1x8'): REMAT | dict(train=dict(accumulate=4)),
    ('edm2-xxl', 'h100:1x2x8'): REMAT | dict(train=dict(accumulate=2)),
    ('edm2-xxl', 'h100:1x4x8'): REMAT,
}


def rows():
  """{name of the result: (model, topology, changes of its config)}, the cheapest to compile first."""
  found = {}
  for model in MODELS:
    for topology, fsdp in SLICES.items():
      changes = dict(mesh=dict(data=-1, fsdp=fsdp)) | CHANGES.get((model, topology), {})
      found[f'{model}-{topology.replace(":", "-")}'] = model, topology, changes
  # No width of DiT-XL/2 divides by 256: some parameters stay whole.
  found['dit-xl-2-256-v5e-16x16-fsdp-256'] = 'dit-xl-2-256', 'v5e:16x16', dict(
      mesh=dict(data=1, fsdp=256))
  return found


def made(model, topology, changes, levers):
  """The plan of a row."""
  configs, variant = MODELS[model]
  config = plan.with_changes(configs.get_config(variant), **changes)
  return dict(model=model) | plan.plan(config, topology=topology, levers=levers)


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--only', default='', help='only rows with this in their name')
  parser.add_argument('--levers', action='store_true', help='compile what makes a row fit')
  parser.add_argument('--draw', action='store_true', help='compile nothing')
  flags = parser.parse_args()
  for name, (model, topology, changes) in rows().items():
    path = FOLDER / f'results/{name}.json'
    if flags.draw or flags.only not in name or path.exists():
      continue
    print(f'\n{name}', flush=True)
    found = made(model, topology, changes, flags.levers)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + '\n')
    tables.write(FOLDER, FOLDER / 'results/plans.png')
  tables.write(FOLDER, FOLDER / 'results/plans.png')


if __name__ == '__main__':
  main()
