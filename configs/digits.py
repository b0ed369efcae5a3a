"""The 1,797 handwritten digits of scikit-learn, 8x8: a generative model in two minutes on a laptop.

paper    Equilibrium Matching [Wang & Du 2510.02300], at the scale of two CPU cores
command  python -m eqflow.main --config=configs/digits.py --workdir=runs/digits
variants eqm (default), flow, v, eps, x, blind_flow, edm, edm2: --config=configs/digits.py:flow
cost     384,000 examples (6,000 steps of 64): 1 min 50 s of training on two CPU cores
result   Fréchet distance in pixels, precision, recall; 1,797 samples
         eqm .171 .819 .798 (2026-11-30, make demo; .0372 in random features)
         2026-11-21, means of three sets of samples, one training each: experiments/digits
         eqm .163 .827 .811   flow .152 .784 .856   v .188 .699 .837   x .191 .778 .789
         blind_flow .295 .650 .849   eps 1.816 .666 .347   edm .108 .743 .904
         edm2 .148 .706 .896 (2026-11-27: 3,000 steps, 7 min 36 s of one core with its evaluation)
         another training changes them by a few hundredths
"""

import ml_collections

from eqflow.config import defaults


def get_config(variant: str = 'eqm') -> ml_collections.ConfigDict:
  """The config of one variant. Raises ValueError for an unknown one."""
  return defaults.config(BASE, defaults.variant(VARIANTS, variant))


BASE = dict(
    data=dict(name='digits', split='all', dir='~/.cache/eqflow/data', shape=(8, 8, 1), num_classes=10),
    model=dict(name='dit', patch=2, width=64, depth=3, heads=4, dtype='float32', remat=False,
               remat_policy='nothing', final_scale=0.0),
    train=dict(batch=64, num_examples=384_000, log_examples=6_400, sample_examples=64_000,
               checkpoint_examples=64_000),
    optimizer=dict(rate=3e-3, warmup_examples=6_400),
    sample=dict(batch=152),
    evaluate=dict(split='all', num_samples=1_797),
)

DESCENT = dict(solver=dict(name='gradient_descent', step_size=0.003), num_steps=130)
ODE = dict(solver=dict(name='ddim'), num_steps=50)
TO_NOISE = dict(name='uniform', start=1.0, end=0.0)
# eps is blind at pure noise, x at data.
SHORT = dict(name='uniform', start=0.999, end=0.0)


def _variant(output, c_noise, sample):
  return dict(output=output, model=dict(c_noise=dict(name=c_noise)), sample=sample)


VARIANTS = {
    'eqm': _variant(dict(name='equilibrium', decay=dict(name='truncated', start=0.8, gain=4.0)),
                    'none', DESCENT),
    'flow':       _variant(dict(name='u'),   'time', dict(**ODE, grid=TO_NOISE)),
    'v':          _variant(dict(name='v'),   'time', dict(**ODE, grid=TO_NOISE)),
    'eps':        _variant(dict(name='eps'), 'time', dict(**ODE, grid=SHORT)),
    'x':          _variant(dict(name='x'),   'time', dict(**ODE, grid=TO_NOISE)),
    'blind_flow': _variant(dict(name='u'),   'none', dict(**ODE, grid=TO_NOISE)),
    # The digits' standard deviation is 0.75.
    'edm': dict(
        process=dict(name='edm'), output=dict(name='edm', sigma_data=0.75),
        model=dict(scale_input=dict(name='unit_variance', sigma_data=0.75),
                   c_noise=dict(name='quarter_log_sigma')),
        loss=dict(density=dict(name='lognormal', mean=-0.4, std=1.2)),
        sample=dict(solver=dict(name='heun'), num_steps=18,
                    grid=dict(name='karras', sigma_min=0.002, sigma_max=80.0, rho=7.0))),
    # EDM2's recipe at this scale. Its decay after 35,000 or 70,000 steps of 2,048 is some 100 epochs of
    # ImageNet and longer than this whole run, in which its rate would never fall. So both are counted
    # in epochs of 1,797 records: the rate ramps up over two and decays after twenty. Not tuned.
    'edm2': dict(
        process=dict(name='edm'), output=dict(name='edm', sigma_data=0.75),
        model=dict(name='edm2', width=16, multipliers=(1, 2), blocks=1, attention=(4,), head_width=32,
                   dropout=0.1, dtype='float32', remat=False, remat_policy='nothing',
                   scale_input=dict(name='unit_variance', sigma_data=0.75),
                   c_noise=dict(name='quarter_log_sigma')),
        loss=dict(density=dict(name='lognormal', mean=-0.4, std=1.2), uncertainty=128),
        # Its loss is a sum over the 64 pixels, ours a mean.
        optimizer=dict(rate=1e-2, b1=0.9, b2=0.99, eps=1e-8 / 64, warmup_examples=0, schedule=dict(
            name='inverse_square_root', decay_examples=20 * 1_797, rampup_examples=2 * 1_797)),
        ema=dict(decays=(), stds=(0.05, 0.1), snapshot_examples=6_400),
        train=dict(num_examples=192_000),
        sample=dict(params='0.1', solver=dict(name='heun'), num_steps=18,
                    grid=dict(name='karras', sigma_min=0.002, sigma_max=80.0, rho=7.0))),
}
