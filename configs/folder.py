"""Your own pictures: a folder of images, one subfolder for each class, or images without classes.

paper    flow matching [Lipman+ 2210.02747]; Equilibrium Matching [Wang & Du 2510.02300]
command  python -m eqflow.main --config=configs/folder.py --config.data.dir=PICTURES --workdir=runs/mine
         rectangles and other sizes: --config.data.shape='(48, 64, 3)', height, width, channels (1 to 4)
variants flow (default), eqm: --config=configs/folder.py:eqm
cost     not yet measured
result   not yet run on more than the pictures of the tests

The classes and the numbers of samples come from the folder, the patch from the shape. Give any of them
to change it.
"""

from collections.abc import Callable
import functools
import math
import pathlib
from typing import NamedTuple

import ml_collections
from ml_collections import config_dict

from eqflow.config import defaults
from eqflow.data import folder


class _Of(NamedTuple):
  """function(*values of references), computed when a config is read, after its flags."""
  fn: Callable
  args: tuple


def get_config(variant: str = 'flow') -> ml_collections.ConfigDict:
  """The config of one variant. Raises ValueError for an unknown one."""
  config = defaults.config(BASE, defaults.variant(VARIANTS, variant))
  place, shape = config.data.get_ref('dir'), config.data.get_ref('shape')
  derived = lambda function, reference: config_dict.FieldReference(
      0, field_type=int, op=_Of(lambda _, value: function(value), (reference,)))
  config.data.num_classes = derived(lambda place: found(place)[1], place)
  config.model.patch = derived(patch, shape)
  # Multiples of 8, for up to 8 devices.
  config.sample.batch = derived(lambda place: min(104, 8 + found(place)[0] // 8 * 8), place)
  config.evaluate.num_samples = derived(lambda place: min(1_000, max(8, found(place)[0])), place)
  return config


@functools.cache
def found(place: str) -> tuple[int, int]:
  """(images, classes) of a folder; zeros for a folder that training will reject, and say why."""
  if not place:
    return 0, 0
  root = pathlib.Path(place).expanduser()
  try:
    paths, _ = folder.find(root)
    classes = folder.classes_of(root, paths)
  except (OSError, ValueError):
    return 0, 0
  return len(paths), len(classes) if classes != [''] else 0


def patch(shape: tuple[int, ...]) -> int:
  """The side of a patch that divides both sides of the images, for close to 64 patches."""
  height, width = shape[:2]
  common = math.gcd(height, width)
  sides = [side for side in range(1, common + 1) if common % side == 0]
  return min(sides, key=lambda side: abs(math.log(height * width / side**2 / 64)))


BASE = dict(
    data=dict(name='folder', split='all', dir='', shape=(32, 32, 3), num_classes=0),
    model=dict(name='dit', patch=1, width=128, depth=4, heads=4, dtype='float32', remat=False,
               remat_policy='nothing', final_scale=0.0),
    # Without labels in a tenth of the examples, so that --config.sample.scale can guide by class.
    train=dict(batch=64, num_examples=256_000, log_examples=6_400, sample_examples=32_000,
               checkpoint_examples=32_000, drop_label=0.1),
    optimizer=dict(rate=1e-3, warmup_examples=6_400),
    sample=dict(batch=8),
    evaluate=dict(split='all', num_samples=8),
)

VARIANTS = {
    'flow': dict(output=dict(name='u'), model=dict(c_noise=dict(name='time')),
                 sample=dict(solver=dict(name='ddim'), num_steps=50,
                             grid=dict(name='uniform', start=1.0, end=0.0))),
    'eqm': dict(output=dict(name='equilibrium', decay=dict(name='truncated', start=0.8, gain=4.0)),
                model=dict(c_noise=dict(name='none')),
                sample=dict(solver=dict(name='gradient_descent', step_size=0.003), num_steps=130)),
}
