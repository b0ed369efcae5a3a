"""DiT-XL/2 on ImageNet's latents: Equilibrium Matching, or flow matching as SiT trains it.

paper    Equilibrium Matching [Wang & Du 2510.02300]; SiT [Ma+ 2401.08740]; the transformer of DiT
         [Peebles+ 2212.09748]
command  python -m eqflow.main --config=configs/imagenet_dit.py:eqm_256 --workdir=runs/eqm-256
         eqflow has no data set of latents yet: config.data.name is rejected until it has. What a run
         would need of a cluster: --mode=plan --topology=v5e:16x16
variants eqm_256 (default), flow_256: 1,400 epochs in latents of 32x32x4; eqm_512, flow_512: as DiT's
         3 million steps in latents of 64x64x4; other sizes by --config.model.name=DiT-B/2
cost     0.71 TFLOP an image at 256, 3.1 at 512: experiments/plans
result   not run: traced by the tests. Published, 50,000 samples at 256: FID 1.90 (EqM, scale 1.5), 2.06
         (SiT). Theirs compute in float32 with TF32 and keep parameters as here
"""

import ml_collections

from eqflow.config import defaults


def get_config(variant: str = 'eqm_256') -> ml_collections.ConfigDict:
  """The config of one variant. Raises ValueError for an unknown one."""
  return defaults.config(BASE, defaults.variant(VARIANTS, variant))


BASE = dict(
    data=dict(name='latents', split='all', dir='', shape=(32, 32, 4), num_classes=1000, workers=8),
    # doubled: as in the published checkpoints, so that either's weights fit the other.
    model=dict(name='DiT-XL/2', dtype='bfloat16', remat=False, remat_policy='nothing', doubled=True),
    loss=dict(stratified=False),
    train=dict(batch=256, num_examples=1_400 * 1_281_167, drop_label=0.1, log_examples=25_600,
               sample_examples=2_560_000, checkpoint_examples=1_280_000),
    optimizer=dict(rate=1e-4, warmup_examples=0, schedule=dict(name='constant')),
    ema=dict(decays=(0.9999,)),
    # The published sampler guides the first three channels alone.
    sample=dict(params='0.9999', batch=256, scale=(1.5, 1.5, 1.5, 1.0)),
    evaluate=dict(split='all', num_samples=50_000),
)

# The published code counts its start as a step: 249 updates.
EQM = dict(
    output=dict(name='equilibrium', decay=dict(name='truncated', start=0.8, gain=4.0)),
    model=dict(c_noise=dict(name='none')),
    sample=dict(solver=dict(name='nesterov', step_size=0.0017, momentum=0.3), num_steps=249))
FLOW = dict(
    output=dict(name='u'), model=dict(c_noise=dict(name='time')),
    sample=dict(solver=dict(name='heun'), num_steps=125,
                grid=dict(name='uniform', start=1.0, end=0.0)))
AT_512 = dict(data=dict(shape=(64, 64, 4)), train=dict(num_examples=3_000_000 * 256))

VARIANTS = {
    'eqm_256': EQM,
    'flow_256': FLOW,
    'eqm_512': {**EQM, **AT_512},
    'flow_512': {**FLOW, **AT_512},
}
