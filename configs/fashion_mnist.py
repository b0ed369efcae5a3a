"""Fashion-MNIST, 28x28: Equilibrium Matching beside flow matching at the scale of two CPU cores.

paper    Equilibrium Matching [Wang & Du 2510.02300]
command  python -m eqflow.main --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist
         after Debian's dataset-fashion-mnist is installed, or TFDS has prepared the data:
         python -m eqflow.data.prepare --name=fashion_mnist --data_dir=~/.cache/eqflow/data
variants eqm (default), flow, blind_flow: --config=configs/fashion_mnist.py:flow
cost     256,000 examples (4,000 steps of 64): 7 to 10 min of training on one CPU core
result   not yet run; experiments/equilibrium_matching holds what is measured
"""

import ml_collections


def get_config(variant: str = 'eqm') -> ml_collections.ConfigDict:
  """The config of one variant; raises ValueError for a name that is none."""
  if variant not in VARIANTS:
    raise ValueError(f'configs/fashion_mnist.py:{variant}: choose from {sorted(VARIANTS)}')
  config = ml_collections.ConfigDict(BASE)
  config.update(ml_collections.ConfigDict(VARIANTS[variant]))
  return config


BASE = dict(
    seed=0,
    data=dict(
        name='fashion_mnist', split='train', dir='~/.cache/eqflow/data', shape=(28, 28, 1),
        num_classes=10, flip=False, workers=0),
    model=dict(
        name='dit', patch=7, width=96, depth=3, heads=4, dtype='float32', remat=False,
        remat_policy='nothing', final_scale=0.0, scale_input=dict(name='unit')),
    process=dict(name='linear'),
    loss=dict(space='', weight=dict(name='ones'), density=dict(name='uniform'), stratified=True,
              coupling=dict(name='independent'), at_data=0.0, dispersive=0.0,
              uncertainty=0),
    energy=dict(name='none'),
    mesh=dict(data=-1, fsdp=1, tensor=1),
    train=dict(
        batch=64, accumulate=1, num_examples=256_000, drop_label=0.0,
        log_examples=6_400, sample_examples=64_000, checkpoint_examples=64_000,
        keep_checkpoints=2, max_skipped=0, stuck_seconds=600.0),
    optimizer=dict(
        rate=2e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=0.0, warmup_examples=6_400,
        schedule=dict(name='cosine')),
    ema=dict(decays=(0.999,), stds=(), snapshot_examples=0, snapshot_dtype='float32'),
    sample=dict(params='0.999', batch=200, threshold=0.0, scale=1.0, rescale=0.0,
                interval=dict(name='always'), guide=dict(workdir='', params='')),
    # Precision and recall hold every record against every other, so not all 60,000.
    evaluate=dict(split='test', num_samples=1_000),
)

ODE = dict(solver=dict(name='ddim'), num_steps=50,
           grid=dict(name='uniform', start=1.0, end=0.0))


def _variant(output, label_noise, sample):
  return dict(output=output, model=dict(label_noise=dict(name=label_noise)), sample=sample)


VARIANTS = {
    'eqm': _variant(dict(name='equilibrium', decay=dict(name='truncated', start=0.8, gain=4.0)),
                    'none', dict(solver=dict(name='gradient_descent', step_size=0.003),
                                 num_steps=130)),
    'flow':       _variant(dict(name='u'), 'time', ODE),
    'blind_flow': _variant(dict(name='u'), 'none', ODE),
}
