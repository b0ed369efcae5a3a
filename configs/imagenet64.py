"""EDM2 on ImageNet at 64x64, in pixels.

paper    Analyzing and Improving the Training Dynamics of Diffusion Models [Karras+ 2312.02696]
command  python -m eqflow.main --config=configs/imagenet64.py:s --workdir=runs/imagenet64-s
         after config.data.dir is set to a folder of pictures, one subfolder a class
variants xs, s (default), m, l, xl
         s_autoguided: the same run as s, sampled with guidance: give --config.sample.guide.workdir
         and .params, of a shorter xs
cost     the paper's: 640 to 2,048 Mi examples, days on 32 A100
result   not run: traced by the tests
"""

import ml_collections

from eqflow.config import defaults
from eqflow.models import edm2

RECIPE = edm2.RECIPES['64']
# A preset's name comes first; what follows it changes its sampling. The scale is the paper's for FID
# [Karras+ 2406.02507]; the paper does not give the widths of these EMAs.
VARIANTS = {
    **{name.removeprefix('64-'): {} for name in edm2.PRESETS if name.startswith('64-')},
    's_autoguided': dict(sample=dict(
        scale=1.70, guide=dict(workdir='runs/imagenet64-xs', params='0.1'))),
}


def get_config(variant: str = 's') -> ml_collections.ConfigDict:
  """The config of one preset. Raises ValueError for an unknown one."""
  changes, preset = defaults.variant(VARIANTS, variant), f'64-{variant.partition("_")[0]}'
  sizes = dict(
      model=dict(name=f'EDM2-{preset}'), optimizer=dict(rate=edm2.PRESETS[preset]['rate']),
      train=dict(num_examples=edm2.PRESETS[preset]['million'] * 2**20))
  return defaults.config(BASE, sizes, changes)


BASE = dict(
    data=dict(name='folder', split='all', dir='', shape=(64, 64, 3), num_classes=1000, workers=8),
    # Attention, widths of levels and balances are the network's own defaults, dropout the preset's.
    model=dict(dtype='bfloat16', remat=False, remat_policy='nothing',
               scale_input=dict(name='unit_variance', sigma_data=0.5),
               c_noise=dict(name='quarter_log_sigma')),
    process=dict(name='edm'),
    output=dict(name='edm', sigma_data=0.5),
    loss=dict(density=dict(name='lognormal', mean=RECIPE['mean'], std=RECIPE['std']), stratified=False,
              uncertainty=128),
    train=dict(batch=2048, num_examples=1, log_examples=2**17, sample_examples=2**23,
               checkpoint_examples=2**25),
    # The paper's loss is a sum over the elements, ours a mean: Adam's epsilon is as much smaller.
    optimizer=dict(
        rate=0.0, b2=0.99, eps=1e-8 / (64 * 64 * 3), warmup_examples=0, schedule=dict(
            name='inverse_square_root', decay_examples=RECIPE['decay_batches'] * 2048,
            rampup_examples=10_000_000)),
    ema=dict(decays=(), stds=(0.05, 0.1), snapshot_examples=2**23),
    sample=dict(params='0.1', batch=512, solver=dict(name='heun'), num_steps=32,
                grid=dict(name='karras', sigma_min=0.002, sigma_max=80.0, rho=7.0)),
    evaluate=dict(split='all', num_samples=50_000),
)
