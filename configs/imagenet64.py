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

from eqflow.models import edm2

RECIPE = edm2.RECIPES['64']
# A preset's name comes first; what follows it changes the sampling of that preset. The scale is the
# paper's for FID [Karras+ 2406.02507]; the widths of its averages are not known to us.
VARIANTS = {
    **{name.removeprefix('64-'): {} for name in edm2.PRESETS if name.startswith('64-')},
    's_autoguided': dict(sample=dict(
        scale=1.70, guide=dict(workdir='runs/imagenet64-xs', params='0.1'))),
}


def get_config(variant: str = 's') -> ml_collections.ConfigDict:
  """The config of one preset; raises ValueError for a name that is none."""
  if variant not in VARIANTS:
    raise ValueError(f'configs/imagenet64.py:{variant}: choose from {sorted(VARIANTS)}')
  config, preset = ml_collections.ConfigDict(BASE), f'64-{variant.partition("_")[0]}'
  config.model.name = f'EDM2-{preset}'
  config.optimizer.rate = edm2.PRESETS[preset]['rate']
  config.train.num_examples = edm2.PRESETS[preset]['million'] * 2**20
  config.update(ml_collections.ConfigDict(VARIANTS[variant]))
  return config


BASE = dict(
    seed=0,
    data=dict(name='folder', split='all', dir='', shape=(64, 64, 3), num_classes=1000, flip=False,
              workers=8),
    # Attention, widths of levels and balances are the network's own defaults, dropout the preset's.
    model=dict(name='', dtype='bfloat16', remat=False, remat_policy='nothing',
               scale_input=dict(name='unit_variance', sigma_data=0.5),
               label_noise=dict(name='quarter_log_sigma')),
    process=dict(name='edm'),
    output=dict(name='edm', sigma_data=0.5),
    loss=dict(space='', weight=dict(name='ones'),
              density=dict(name='lognormal', mean=RECIPE['mean'], std=RECIPE['std']),
              stratified=False, coupling=dict(name='independent'), at_data=0.0, dispersive=0.0,
              uncertainty=128),
    energy=dict(name='none'),
    mesh=dict(data=-1, fsdp=1, tensor=1),
    train=dict(
        batch=2048, accumulate=1, num_examples=1, drop_label=0.0, log_examples=2**17,
        sample_examples=2**23, checkpoint_examples=2**25, keep_checkpoints=2, max_skipped=0,
        stuck_seconds=600.0),
    # The paper's loss is a sum over the pixels, ours a mean: Adam's epsilon is as much smaller.
    optimizer=dict(
        rate=0.0, b1=0.9, b2=0.99, eps=1e-8 / (64 * 64 * 3), weight_decay=0.0, clip=0.0,
        warmup_examples=0, schedule=dict(
            name='inverse_square_root', decay_examples=RECIPE['decay_batches'] * 2048,
            rampup_examples=10_000_000)),
    ema=dict(decays=(), stds=(0.05, 0.1), snapshot_examples=2**23, snapshot_dtype='float32'),
    sample=dict(params='0.1', batch=512, threshold=0.0, scale=1.0, rescale=0.0,
                interval=dict(name='always'), guide=dict(workdir='', params=''),
                solver=dict(name='heun'), num_steps=32,
                grid=dict(name='karras', sigma_min=0.002, sigma_max=80.0, rho=7.0)),
    evaluate=dict(split='all', num_samples=50_000),
)
