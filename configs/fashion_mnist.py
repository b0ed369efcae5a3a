"""Fashion-MNIST, 28x28: Equilibrium Matching and flow matching at the scale of two CPU cores.

paper    Equilibrium Matching [Wang & Du 2510.02300]
command  python -m eqflow.main --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist
         after Debian's dataset-fashion-mnist is installed, or TFDS has prepared the data:
         python -m eqflow.data.prepare --name=fashion_mnist --data_dir=~/.cache/eqflow/data
variants eqm (default), flow, blind_flow: --config=configs/fashion_mnist.py:flow
cost     256,000 examples (4,000 steps of 64): 7 to 10 min of training on one CPU core
result   not yet run; experiments/equilibrium_matching holds what is measured
"""

import ml_collections

from eqflow.config import defaults


def get_config(variant: str = 'eqm') -> ml_collections.ConfigDict:
  """The config of one variant. Raises ValueError for an unknown one."""
  return defaults.config(BASE, defaults.variant(VARIANTS, variant))


BASE = dict(
    data=dict(name='fashion_mnist', split='train', dir='~/.cache/eqflow/data', shape=(28, 28, 1),
              num_classes=10),
    model=dict(name='dit', patch=7, width=96, depth=3, heads=4, dtype='float32', remat=False,
               remat_policy='nothing', final_scale=0.0),
    train=dict(batch=64, num_examples=256_000, log_examples=6_400, sample_examples=64_000,
               checkpoint_examples=64_000),
    optimizer=dict(rate=2e-3, warmup_examples=6_400),
    sample=dict(batch=200),
    # Precision and recall compare all pairs of records, so not all 60,000.
    evaluate=dict(split='test', num_samples=1_000),
)

ODE = dict(solver=dict(name='ddim'), num_steps=50,
           grid=dict(name='uniform', start=1.0, end=0.0))


def _variant(output, c_noise, sample):
  return dict(output=output, model=dict(c_noise=dict(name=c_noise)), sample=sample)


VARIANTS = {
    'eqm': _variant(dict(name='equilibrium', decay=dict(name='truncated', start=0.8, gain=4.0)),
                    'none', dict(solver=dict(name='gradient_descent', step_size=0.003),
                                 num_steps=130)),
    'flow':       _variant(dict(name='u'), 'time', ODE),
    'blind_flow': _variant(dict(name='u'), 'none', ODE),
}
