"""EDM2 on ImageNet at 512x512, in latents of 64x64x4 with standard deviation 0.5.

paper    Analyzing and Improving the Training Dynamics of Diffusion Models [Karras+ 2312.02696]
command  python -m eqflow.main --config=configs/imagenet512.py:s --workdir=runs/imagenet512-s
         eqflow has no data set of latents yet: config.data.name is rejected until it has
variants xxs, xs, s (default), m, l, xl, xxl; xs_classless, without classes
         and how these runs are sampled: xs_guided to xxl_guided, s_autoguided, xxl_autoguided,
         xxl_interval for the least FID; each with _fdd for the least distance in DINOv2. Give
         --config.sample.guide.workdir: a run of xs_classless, or an xs trained for 2**27 examples (s),
         an m for 2**28 (xxl). Averages come from --mode=reconstruct
cost     the paper's: 896 to 2,048 Mi examples, days on 32 A100
result   not run: traced by the tests
"""

import ml_collections

from eqflow.config import defaults
from eqflow.models import edm2

RECIPE = edm2.RECIPES['512']


def _guided(scale, guide, ours, theirs, **interval):
  """How a preset is sampled: the guidance scale, the guide, and the EMA of each."""
  return dict(sample=dict(params=ours, scale=scale, guide=dict(
      workdir=f'runs/imagenet512-{guide}', params=theirs), **interval))


def _between(low, high):
  return dict(interval=dict(name='noise_to_signal', low=low, high=high))


# A preset's name comes first; what follows changes its sampling, or removes its classes. By class:
# scale and std of both averages in [Karras+ 2312.02696]. By a worse self [Karras+ 2406.02507]: only
# the guide of s has a published EMA width, for the others we take those that training tracks. On steps
# 17 to 22, or 13 to 19, of 32 alone [Kynkäänniemi+ 2404.07724]: there both evaluations of such a step
# are guided, here the evaluations with sigma in between.
BY_CLASS = {
    'guided': {'xs': (1.4, '0.045'), 's': (1.4, '0.025'), 'm': (1.2, '0.03'), 'l': (1.2, '0.015'),
               'xl': (1.2, '0.02'), 'xxl': (1.2, '0.015')},
    'guided_fdd': {'xs': (1.7, '0.15'), 's': (1.9, '0.085'), 'm': (2.0, '0.015'), 'l': (1.7, '0.035'),
                   'xl': (1.7, '0.03'), 'xxl': (1.7, '0.015')}}
VARIANTS = {
    **{name.removeprefix('512-'): {} for name in edm2.PRESETS if name.startswith('512-')},
    'xs_classless': dict(data=dict(num_classes=0)),
    **{f'{name}_{kind}': _guided(scale, 'xs_classless', std, std)
       for kind, rows in BY_CLASS.items() for name, (scale, std) in rows.items()},
    's_autoguided': _guided(2.10, 'xs', '0.1', '0.125'),
    's_autoguided_fdd': _guided(2.45, 'xs', '0.1', '0.125'),
    'xxl_autoguided': _guided(2.05, 'm', '0.1', '0.1'),
    'xxl_autoguided_fdd': _guided(2.30, 'm', '0.1', '0.1'),
    'xxl_interval': _guided(2.0, 'xs_classless', '0.015', '0.015', **_between(0.28, 1.61)),
    'xxl_interval_fdd': _guided(2.9, 'xs_classless', '0.015', '0.015', **_between(0.84, 5.0)),
}


def get_config(variant: str = 's') -> ml_collections.ConfigDict:
  """The config of one preset. Raises ValueError for an unknown one."""
  changes, preset = defaults.variant(VARIANTS, variant), f'512-{variant.partition("_")[0]}'
  sizes = dict(
      model=dict(name=f'EDM2-{preset}'), optimizer=dict(rate=edm2.PRESETS[preset]['rate']),
      train=dict(num_examples=edm2.PRESETS[preset]['million'] * 2**20))
  return defaults.config(BASE, sizes, changes)


BASE = dict(
    data=dict(name='latents', split='all', dir='', shape=(64, 64, 4), num_classes=1000, workers=8),
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
        rate=0.0, b2=0.99, eps=1e-8 / (64 * 64 * 4), warmup_examples=0, schedule=dict(
            name='inverse_square_root', decay_examples=RECIPE['decay_batches'] * 2048,
            rampup_examples=10_000_000)),
    ema=dict(decays=(), stds=(0.05, 0.1), snapshot_examples=2**23),
    sample=dict(params='0.1', batch=512, solver=dict(name='heun'), num_steps=32,
                grid=dict(name='karras', sigma_min=0.002, sigma_max=80.0, rho=7.0)),
    evaluate=dict(split='all', num_samples=50_000),
)
