"""Two-dimensional toys: a field or a flow on moons in seconds.

command  python -m eqflow.main --config=configs/toy.py --workdir=runs/moons
variants flow (default), eqm, v, adaptive; other data: --config.data.name=checkerboard, rings, mixture
cost     768,000 examples (3,000 steps of 256): seconds on two CPU cores
result   2026-11-21, moons, 2,000 samples against 10,000 held-out points; distance in random features,
         precision, recall: flow .249 .955 .968   adaptive .293 .964 .960   eqm 1.99 .793 .703 (a flat
         field in the plane is harder than in pixels)   two halves of the data .015 .980 .979   v not
         yet run
"""

import ml_collections

from eqflow.config import defaults


def get_config(variant: str = 'flow') -> ml_collections.ConfigDict:
  """The config of one variant. Raises ValueError for an unknown one."""
  return defaults.config(BASE, defaults.variant(VARIANTS, variant))


BASE = dict(
    data=dict(name='moons', split='train', dir='', shape=(2,), num_classes=0),
    model=dict(name='mlp', width=128, depth=3, dtype='float32', final_scale=0.0),
    train=dict(batch=256, num_examples=768_000, log_examples=25_600, sample_examples=256_000,
               checkpoint_examples=256_000),
    optimizer=dict(rate=2e-3, warmup_examples=25_600),
    sample=dict(batch=2_000),
    evaluate=dict(split='heldout', num_samples=2_000),
)

ODE = dict(solver=dict(name='ddim'), num_steps=50, grid=dict(name='uniform', start=1.0, end=0.0))

VARIANTS = {
    'flow': dict(output=dict(name='u'), model=dict(c_noise=dict(name='time')), sample=ODE),
    'v':    dict(output=dict(name='v'), model=dict(c_noise=dict(name='time')), sample=ODE),
    # v, weighed by a sigmoid of log-SNR, where the loss is.
    'adaptive': dict(
        output=dict(name='v'), model=dict(c_noise=dict(name='time')), sample=ODE,
        loss=dict(
            space='eps', weight=dict(name='on_logsnr', w=dict(name='sigmoid', bias=2.0)),
            density=dict(name='adaptive', low=-10.0, high=12.0, bins=100, keep=0.999))),
    'eqm':  dict(
        output=dict(name='equilibrium', decay=dict(name='truncated', start=0.8, gain=4.0)),
        model=dict(c_noise=dict(name='none')),
        sample=dict(solver=dict(name='gradient_descent', step_size=0.003), num_steps=100)),
}
