"""python -m tests.peers.record [folder]: the trajectories of diffusers' schedulers with an exact model.

The model is E[output | z] of a Gaussian mixture in numpy float64, written here without eqflow and
passed on in float32. Every case becomes arrays in one file, trajectories.npz, which
`tests/peers/test_peers.py` reads, so that only recording needs torch:
  i/states [n + 1, b, d]    the state before the first step and after each, float32
  i/noise [n, b, d]         the noise of the steps, float32; only where they are stochastic
  i/timesteps, i/sigmas     the scheduler's own lists; DDIM and DDPM have no sigmas
  i/table                   the name of its alphas_cumprod, a float32 array [1000] of this file
  cases                     JSON: [{name, scheduler, config, num_steps, eta}], row i for case i; config
                            is the whole configuration, with diffusers' defaults
  mixture, versions         JSON: means, stds, weights; of diffusers and torch
"""

import json
import pathlib
import sys
from unittest import mock

import numpy as np

FILE = pathlib.Path(__file__).parent / 'trajectories.npz'
SHAPE = 4, 3
MIXTURE = dict(means=[[-1.0, 0.5, 0.3], [0.8, -0.3, -1.2], [0.2, 1.0, 0.6]],
               stds=[0.35, 0.25, 0.4], weights=[0.3, 0.45, 0.25])

STABLE = dict(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012)
COSINE = dict(beta_schedule='squaredcos_cap_v2')
EPS, V, X = (dict(prediction_type=name) for name in ('epsilon', 'v_prediction', 'sample'))
LEADING, LINSPACE, TRAILING = (
    dict(timestep_spacing=name) for name in ('leading', 'linspace', 'trailing'))
ZERO_SNR = dict(rescale_betas_zero_snr=True)
OFFSET = dict(steps_offset=1)
MIDPOINT, HEUN = dict(solver_type='midpoint'), dict(solver_type='heun')
TO_SIGMA_MIN, NO_LOWER_FINAL, EULER_FINAL = (
    dict(final_sigmas_type='sigma_min'), dict(lower_order_final=False), dict(euler_at_final=True))
SDE = dict(algorithm_type='sde-dpmsolver++')
KARRAS = dict(use_karras_sigmas=True)


def case(scheduler, num_steps, *configs, eta=0.0):
  """{name, scheduler, config, num_steps, eta}, config being the configs in one."""
  config = {key: value for one in configs for key, value in one.items()}
  parts = [value if isinstance(value, str) else f'{key}={value}'
          for key, value in config.items() if key not in ('beta_start', 'beta_end', 'clip_sample')]
  name = ' '.join([scheduler, str(num_steps), *parts] + [f'eta={eta}'] * (eta > 0))
  return dict(name=name, scheduler=scheduler, config=config, num_steps=num_steps, eta=eta)


def cases():
  """Every case, scheduler by scheduler."""
  return [*ddim_cases(), *ddpm_cases(), *dpm_solver_cases(), *unipc_cases(), *sigma_cases(),
          *flow_cases()]


def ddim_cases():
  """The three outputs by the three spacings, other tables, both ends, zero SNR, and noise."""
  ddim = lambda *a, **k: case('DDIM', *a, dict(clip_sample=False), **k)
  one, first = dict(set_alpha_to_one=True), dict(set_alpha_to_one=False)
  for output in EPS, V, X:
    for spacing in LEADING, LINSPACE, TRAILING:
      yield ddim(10, output, spacing)
  yield ddim(20, STABLE, EPS, LEADING, OFFSET, first)
  yield ddim(20, STABLE, V, LEADING, OFFSET, one)
  yield ddim(15, X, LEADING, first)
  yield ddim(15, STABLE, EPS, TRAILING, first)
  yield ddim(15, COSINE, V, TRAILING)
  yield ddim(20, COSINE, EPS, LEADING)
  yield ddim(10, STABLE, V, TRAILING, ZERO_SNR)
  yield ddim(20, X, TRAILING, ZERO_SNR)
  yield ddim(15, STABLE, V, LINSPACE, ZERO_SNR)
  yield ddim(10, EPS, LEADING, OFFSET, eta=1.0)
  yield ddim(20, STABLE, EPS, LEADING, first, eta=0.5)
  yield ddim(15, STABLE, V, LINSPACE, eta=1.0)
  yield ddim(10, STABLE, X, TRAILING, eta=0.3)


def ddpm_cases():
  """Both variances. With fixed_large, a list must end at entry 0, or samples end in noise."""
  ddpm = lambda variance, *a: case('DDPM', *a, dict(variance_type=variance, clip_sample=False))
  yield ddpm('fixed_small', 10, EPS, LEADING)
  yield ddpm('fixed_small', 20, STABLE, V, TRAILING)
  yield ddpm('fixed_small', 15, X, LINSPACE)
  yield ddpm('fixed_small', 10, STABLE, V, TRAILING, ZERO_SNR)
  yield ddpm('fixed_large', 10, EPS, LEADING)
  yield ddpm('fixed_large', 20, STABLE, V, LINSPACE)
  yield ddpm('fixed_large', 15, COSINE, X, LEADING)


def dpm_solver_cases():
  """Orders 2 and 3 and the SDE. lower_order_final counts below 15 steps only.

  The SDE of order 3 is left out: the last term of its step has -1/2 where the step of the ODE, with
  2h for h, has +1/2 (diffusers 0.42.1).
  """
  dpm = lambda order, *a: case('DPMSolverMultistep', *a, dict(solver_order=order))
  for order in 2, 3:
    yield dpm(order, 10, EPS, LINSPACE, MIDPOINT)
    yield dpm(order, 10, EPS, LINSPACE, HEUN)
    yield dpm(order, 20, STABLE, V, LINSPACE, MIDPOINT)
    yield dpm(order, 10, EPS, LEADING, OFFSET, MIDPOINT, TO_SIGMA_MIN)
    yield dpm(order, 10, EPS, LEADING, OFFSET, HEUN, TO_SIGMA_MIN)
    yield dpm(order, 10, X, TRAILING, MIDPOINT, TO_SIGMA_MIN, NO_LOWER_FINAL)
    yield dpm(order, 12, STABLE, EPS, LINSPACE, MIDPOINT, NO_LOWER_FINAL)
    yield dpm(order, 20, STABLE, V, TRAILING, MIDPOINT, TO_SIGMA_MIN)
    yield dpm(order, 20, STABLE, EPS, LINSPACE, MIDPOINT, TO_SIGMA_MIN, EULER_FINAL)
    yield dpm(order, 12, COSINE, V, LINSPACE, MIDPOINT, TO_SIGMA_MIN, NO_LOWER_FINAL, EULER_FINAL)
    yield dpm(order, 10, STABLE, V, TRAILING, MIDPOINT, ZERO_SNR)
  for kind in MIDPOINT, HEUN:
    yield dpm(2, 10, EPS, LINSPACE, kind, SDE)
    yield dpm(2, 20, STABLE, V, TRAILING, kind, SDE, TO_SIGMA_MIN)


def unipc_cases():
  """Orders 2 and 3, both B(h); with bh1 its step to sigma 0 is NaN."""
  unipc = lambda order, kind, *a: case(
      'UniPCMultistep', *a, dict(solver_order=order, solver_type=kind))
  for order in 2, 3:
    yield unipc(order, 'bh2', 10, EPS, LINSPACE)
    yield unipc(order, 'bh2', 20, STABLE, V, TRAILING)
    yield unipc(order, 'bh2', 10, STABLE, V, TRAILING, ZERO_SNR)
    yield unipc(order, 'bh2', 10, STABLE, EPS, LINSPACE, TO_SIGMA_MIN, NO_LOWER_FINAL)
    for kind in 'bh1', 'bh2':
      yield unipc(order, kind, 15, STABLE, X, LEADING, TO_SIGMA_MIN)
      yield unipc(order, kind, 12, V, TRAILING, TO_SIGMA_MIN)


def sigma_cases():
  """Schedulers that run on a list of sigmas, interpolated between the table's or of their own."""
  for scheduler in 'EulerDiscrete', 'HeunDiscrete':
    yield case(scheduler, 10, EPS, LINSPACE)
    yield case(scheduler, 20, STABLE, V, LEADING, OFFSET)
    yield case(scheduler, 15, STABLE, X, TRAILING)
    yield case(scheduler, 10, STABLE, EPS, LINSPACE, KARRAS)
  yield case('EulerDiscrete', 10, STABLE, EPS, LEADING, TO_SIGMA_MIN)


def flow_cases():
  """Flow matching, with and without shift, and with all noise replaced at every step."""
  yield case('FlowMatchEulerDiscrete', 10)
  for num_steps in 10, 20:
    yield case('FlowMatchEulerDiscrete', num_steps, dict(shift=3.0))
  yield case('FlowMatchEulerDiscrete', 10, dict(shift=3.0, stochastic_sampling=True))


def exact(prediction, z, alpha, sigma):
  """E[output | z] at z = alpha x + sigma eps, for x from the mixture, float64."""
  means, stds, weights = (np.array(MIXTURE[key]) for key in ('means', 'stds', 'weights'))
  variance = alpha**2 * stds**2 + sigma**2
  offset = z[:, None] - alpha * means
  log_weight = (np.log(weights) - np.square(offset).sum(-1) / (2 * variance)
               - z.shape[1] / 2 * np.log(variance))
  weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
  weight /= weight.sum(1, keepdims=True)
  x = np.einsum('bk,bkd->bd', weight, means + (alpha * stds**2 / variance)[:, None] * offset)
  eps = np.einsum('bk,bkd->bd', weight, (sigma / variance)[:, None] * offset)
  return {'sample': x, 'epsilon': eps, 'v_prediction': alpha * eps - sigma * x,
          'flow': eps - x}[prediction]


def trajectory(scheduler, case):
  """The arrays of one case, the scheduler being diffusers'."""
  import torch

  name, config = case['scheduler'], scheduler.config
  flow = name.startswith('Flow')
  by_sigma = name in ('EulerDiscrete', 'HeunDiscrete')
  scheduler.set_timesteps(case['num_steps'])
  count = len(scheduler.timesteps)
  # RandomState's stream is frozen.
  draw = np.random.RandomState(0).standard_normal
  first, noise = draw(SHAPE).astype(np.float32), draw((count,) + SHAPE).astype(np.float32)
  options = dict(eta=case['eta']) if name == 'DDIM' else {}
  z = torch.from_numpy(first) * getattr(scheduler, 'init_noise_sigma', 1.0)
  states, calls = [z.numpy()], []
  for i, t in enumerate(scheduler.timesteps):
    if flow:
      shown, sigma = z, float(scheduler.sigmas[i])
      alpha = 1 - sigma
    else:
      shown = scheduler.scale_model_input(z, t)
      bar = (1 / (1 + float(scheduler.sigmas[i]) ** 2) if by_sigma
             else float(scheduler.alphas_cumprod[t]))
      alpha, sigma = bar**0.5, (1 - bar) ** 0.5
    y = exact('flow' if flow else config.prediction_type, shown.double().numpy(), alpha, sigma)

    def randn(*args, **kwargs):
      calls.append(i)
      return torch.from_numpy(noise[i])

    with mock.patch(f'{type(scheduler).__module__}.randn_tensor', randn, create=True):
      z = scheduler.step(torch.from_numpy(y).float(), t, z, **options).prev_sample
    # Heun's scheduler is called twice a step, except for the last one.
    if getattr(scheduler, 'state_in_first_order', True) or i == count - 1:
      states.append(z.numpy())
  found = dict(states=np.array(states), timesteps=scheduler.timesteps.numpy())
  if hasattr(scheduler, 'sigmas'):
    found['sigmas'] = scheduler.sigmas.numpy()
  if calls:
    found['noise'] = noise
  if not flow:
    found['table'] = scheduler.alphas_cumprod.numpy()
  return found


def record(folder):
  """Every case into folder/trajectories.npz; its path."""
  import diffusers
  import torch

  arrays, tables, listed = {}, {}, []
  for i, made in enumerate(cases()):
    scheduler = getattr(diffusers, made['scheduler'] + 'Scheduler')(**made['config'])
    config = {key: value for key, value in scheduler.config.items() if not key.startswith('_')}
    listed.append(dict(made, config=config))
    found = trajectory(scheduler, made)
    if 'table' in found:
      # Few differ: each is stored once.
      table = found.pop('table')
      found['table'] = tables.setdefault(table.tobytes(), f'table{len(tables)}')
      arrays[found['table']] = table
    arrays.update({f'{i}/{key}': value for key, value in found.items()})
  path = pathlib.Path(folder) / FILE.name
  versions = dict(diffusers=diffusers.__version__, torch=torch.__version__)
  np.savez_compressed(path, cases=json.dumps(listed), mixture=json.dumps(MIXTURE),
                      versions=json.dumps(versions), **arrays)
  return path


if __name__ == '__main__':
  written = record(sys.argv[1] if sys.argv[1:] else FILE.parent)
  print(f'{written}: {written.stat().st_size / 1000:.0f} kB')
