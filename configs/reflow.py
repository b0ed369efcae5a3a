"""Reflow: a flow trained on the pairs of noise and sample of another, so that its paths are straight.

paper    Rectified Flow [Liu+ 2209.03003]
command  three of them, here for moons (the default); for digits read digits.py:flow, reflow.py:digits
         python -m eqflow.main --config=configs/toy.py --workdir=runs/moons
         python -m eqflow.main --config=configs/toy.py --workdir=runs/moons --mode=pairs \\
             --num_samples=50000 --out=runs/moons_pairs
         python -m eqflow.main --config=configs/reflow.py --workdir=runs/moons_reflow
variants moons, digits; to reflow once more, draw pairs from this run and give --config.data.dir
cost     768,000 examples of moons: seconds, after the first flow and its 50,000 pairs
result   2026-11-21, moons, one DDIM step: Fréchet .188 (the flow: 131; its 50 steps: .157), paths
         .0001 from straight (.4450); digits: .269 (the flow: 5.97; its 50 steps: .152):
         experiments/reflow
"""

import ml_collections

from eqflow.config import defaults


def get_config(variant: str = 'moons') -> ml_collections.ConfigDict:
  """The config of one variant. Raises ValueError for an unknown one."""
  return defaults.config(BASE, defaults.variant(VARIANTS, variant))


BASE = dict(
    # The samples are compared with what the first model was trained on, not with the pairs.
    data=dict(name='pairs', split='train'),
    output=dict(name='u'),
    loss=dict(coupling=dict(name='pairs')),
    sample=dict(solver=dict(name='ddim'), num_steps=1,
                grid=dict(name='uniform', start=1.0, end=0.0)),
)

VARIANTS = {
    # The networks and budgets of configs/toy.py and configs/digits.py.
    'moons': dict(
        data=dict(dir='runs/moons_pairs', shape=(2,), num_classes=0),
        model=dict(name='mlp', width=128, depth=3, dtype='float32', final_scale=0.0,
                   c_noise=dict(name='time')),
        train=dict(batch=256, num_examples=768_000, log_examples=25_600, sample_examples=256_000,
                   checkpoint_examples=256_000),
        optimizer=dict(rate=2e-3, warmup_examples=25_600),
        sample=dict(batch=2_000),
        evaluate=dict(split='heldout', num_samples=2_000)),
    'digits': dict(
        data=dict(dir='runs/digits_pairs', shape=(8, 8, 1), num_classes=10),
        model=dict(name='dit', patch=2, width=64, depth=3, heads=4, dtype='float32', remat=False,
                   remat_policy='nothing', final_scale=0.0, c_noise=dict(name='time')),
        train=dict(batch=64, num_examples=384_000, log_examples=6_400, sample_examples=64_000,
                   checkpoint_examples=64_000),
        optimizer=dict(rate=3e-3, warmup_examples=6_400),
        sample=dict(batch=600),
        evaluate=dict(split='all', num_samples=1_797)),
}
