"""The solvers against diffusers' schedulers with one exact model: whole trajectories, float32.

tests/peers/trajectories.npz stores the trajectories of diffusers. With EQFLOW_PEERS=live (make peers)
they are recorded again, compared with the stored ones, and used in their place; torch then also writes
the checkpoints to convert and to reject.
"""

import argparse
import json
import os
import pathlib
import pickle
import sys
import tempfile
from unittest import mock

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import arrays, grids, oracles, outputs, processes, samplers
from eqflow.mix import Mix
from eqflow.processes import tables
from tests.peers import record

LIVE = os.environ.get('EQFLOW_PEERS') == 'live'
BOUND = 2e-5
T = 1000


def _read(path):
  with np.load(path) as stored:
    return {key: stored[key] for key in stored}


def _recorded_now():
  with tempfile.TemporaryDirectory() as folder:
    return _read(record.record(pathlib.Path(folder)))


STORED = _read(record.FILE)
FOUND = _recorded_now() if LIVE else STORED
CASES = list(enumerate(json.loads(str(FOUND['cases']))))
MIXTURE = {key: np.array(value) for key, value in json.loads(str(FOUND['mixture'])).items()}

ROWS = {'sample': outputs.x, 'epsilon': outputs.eps, 'v_prediction': outputs.v,
        'flow': outputs.displacement}


def _asked(process, t, *, which):
  """A row of the outputs, chosen by a number: one compilation serves all of them."""
  return Mix(*jnp.stack([jnp.stack(row(process, t)) for row in ROWS.values()])[which])


def _process(i, case):
  """The scheduler's process: its own table, sigma itself, or the linear one, shifted."""
  if case['scheduler'] == 'FlowMatchEulerDiscrete':
    return Partial(processes.shifted, process=processes.linear, shift=case['config']['shift'])
  if case['scheduler'] in ('EulerDiscrete', 'HeunDiscrete'):
    return processes.edm
  return Partial(processes.discrete, angles=processes.table_angles(FOUND[str(FOUND[f'{i}/table'])]))


def _steps(i, case):
  """(t, s) of every step: entry k of a table of T is t = (k + 1)/T, clean data 0."""
  name, config, num_steps = case['scheduler'], case['config'], case['num_steps']
  if name == 'FlowMatchEulerDiscrete':
    # Its last time has been shifted once before the list is made, and then again.
    last = config['shift'] / T / (1 + (config['shift'] - 1) / T)
    grid = np.append(np.linspace(1, last, num_steps), 0.0)
  elif name in ('EulerDiscrete', 'HeunDiscrete'):
    sigmas = FOUND[f'{i}/sigmas'].astype(float)
    # Heun's list has each sigma of an inner step twice.
    grid = np.concatenate([sigmas[:1], sigmas[1:-1:1 if name == 'EulerDiscrete' else 2], sigmas[-1:]])
  else:
    entries = FOUND[f'{i}/timesteps'].astype(int)
    if name == 'DDIM':
      # It steps to entry k - T//n, which is not always the next one of its list.
      reached = entries - T // num_steps
      last = 0 if config['set_alpha_to_one'] else 1
      return (entries + 1) / T, np.where(reached >= 0, reached + 1, last) / T
    last = 1 if config.get('final_sigmas_type') == 'sigma_min' else 0
    grid = np.append(entries + 1, last) / T
  return grid[:-1], grid[1:]


def _solver(case, process, output):
  """The eqflow solver of the scheduler's configuration."""
  name, config, num_steps = case['scheduler'], case['config'], case['num_steps']
  if name == 'DDIM':
    return samplers.ddim(process, output, eta=case['eta'])
  if name == 'DDPM':
    large = config['variance_type'] == 'fixed_large'
    return samplers.ancestral(process, output, variance=1.0 if large else 0.0)
  if name == 'EulerDiscrete':
    return samplers.euler(process, output)
  if name == 'HeunDiscrete':
    return samplers.heun(process, output)
  if name == 'FlowMatchEulerDiscrete':
    return samplers.ddim(process, output, churn=1.0 if config['stochastic_sampling'] else 0.0)
  # With an end that is never reached, solvers without an end share the compilation.
  never = 10**6
  if name == 'UniPCMultistep':
    return samplers.unipc(process, output, order=config['solver_order'],
                          bh1=config['solver_type'] == 'bh1',
                          num_steps=num_steps if config['lower_order_final'] else never)
  taper = config['lower_order_final'] and num_steps < 15
  options = dict(heun=config['solver_type'] == 'heun',
                 churn=0.5 if config['algorithm_type'] == 'sde-dpmsolver++' else 0.0,
                 num_steps=num_steps if taper or config['euler_at_final'] else never)
  if config['solver_order'] == 2:
    return samplers.dpmpp_2m(process, output, **options)
  return samplers.dpmpp_3m(process, output, taper=taper, curvature=0.5, **options)


@jax.jit
def _walked(solver, predict, z, t, s, noise):
  """`sample_path` with known noise, and with steps that need not start where the last one ended."""
  keys = jax.random.split(jax.random.key(0), len(z))
  at_all = lambda z, t: predict(z, jnp.broadcast_to(t, len(z)))

  def step(carry, now):
    t, s, eps = now
    with mock.patch.object(arrays, 'noise_like', lambda keys, z: eps):
      # As samplers.run does, which gives a solver no step of length zero.
      carry = jax.lax.cond(t != s, lambda: solver.step(at_all, *carry, t, s, keys), lambda: carry)
    return carry, carry[0]

  states = jax.lax.scan(step, (z, solver.init(z)), (t, s, noise))[1]
  return jnp.concatenate([z[None], states])


LONGEST = max(case['num_steps'] for _, case in CASES)


def _path(i, case):
  """eqflow's states for a case, starting from the scheduler's first state."""
  process, (t, s) = _process(i, case), _steps(i, case)
  prediction = case['config'].get('prediction_type', 'flow')
  output = Partial(_asked, which=list(ROWS).index(prediction))
  solver = _solver(case, process, output)
  predict = arrays.pytree(Partial(oracles.mixture, process=process, output=output, **MIXTURE))
  z, noise = jnp.asarray(FOUND[f'{i}/states'][0]), FOUND.get(f'{i}/noise')
  # Steps of length zero before the first one change nothing: one compilation serves all lengths.
  pad = LONGEST - len(t)
  if noise is None and (t[1:] == s[:-1]).all():
    grid = np.concatenate([np.full(pad, t[0]), t, s[-1:]])
    return np.asarray(samplers.sample_path(solver, predict, z, grid))[pad:]
  begin, end = (np.concatenate([np.full(pad, t[0]), a]).astype(np.float32) for a in (t, s))
  drawn = np.zeros((LONGEST,) + z.shape, np.float32)
  if noise is not None:
    drawn[pad:] = noise[:len(t)]
  return np.asarray(_walked(solver, predict, z, begin, end, drawn))[pad:]


# The last case of each scheduler; `make peers` and `make test-all` compare them all.
LAST = {case['scheduler']: i for i, case in CASES}


@pytest.mark.parametrize('i,case', [
    pytest.param(i, case, id=case['name'], marks=[pytest.mark.long] * (LAST[case['scheduler']] != i))
    for i, case in CASES])
def test_a_trajectory_equals_diffusers(i, case):
  expected, found = FOUND[f'{i}/states'], _path(i, case)
  assert found.shape == expected.shape and np.isfinite(expected).all()
  error = abs(found - expected).max((1, 2)) / abs(expected).max((1, 2))
  assert error.max() < BOUND, f'after {error.argmax()} of {case["num_steps"]} steps: {error}'


TABLES = {'linear': tables.linear, 'scaled_linear': tables.scaled_linear,
          'squaredcos_cap_v2': tables.cosine}


@pytest.mark.parametrize('name,zero_snr', [
    ('linear', False), ('linear', True), ('scaled_linear', False), ('scaled_linear', True),
    ('squaredcos_cap_v2', False)])
def test_a_table_equals_diffusers(name, zero_snr):
  # Of diffusers' DDIM: the multistep schedulers replace a last 0 by 2**-24.
  stored = next(FOUND[str(FOUND[f'{i}/table'])] for i, case in CASES
                if case['scheduler'] == 'DDIM' and case['config']['beta_schedule'] == name
                and case['config']['rescale_betas_zero_snr'] == zero_snr)
  found = tables.zero_terminal_snr(TABLES[name]()) if zero_snr else TABLES[name]()
  # diffusers multiplies a thousand factors in float32.
  np.testing.assert_allclose(np.sqrt(found), np.sqrt(stored), atol=2e-6)


GRIDS = {'leading': grids.leading, 'linspace': grids.linspace,
         'trailing': grids.trailing}


@pytest.mark.parametrize('spacing', GRIDS)
def test_a_grid_of_a_table_equals_diffusers(spacing):
  compared = 0
  for i, case in CASES:
    config, num_steps = case['config'], case['num_steps']
    if config.get('timestep_spacing') != spacing or 'Discrete' in case['scheduler']:
      continue
    offset = dict(offset=config['steps_offset']) if spacing == 'leading' else {}
    # The multistep schedulers compute one step more and leave the last one out.
    left_out = 'Multistep' in case['scheduler'] and spacing != 'trailing'
    grid = GRIDS[spacing](num_steps + left_out, **offset)[:num_steps]
    np.testing.assert_array_equal(grid, (FOUND[f'{i}/timesteps'] + 1) / T, err_msg=case['name'])
    compared += 1
  assert compared


def test_sigmas_equal_those_that_schedulers_list():
  sigma = jax.jit(processes.noise_to_signal)
  for i, case in CASES:
    if f'{i}/sigmas' not in FOUND or 'Discrete' in case['scheduler']:
      continue
    t, s = _steps(i, case)
    with jax.enable_x64(True):
      found = sigma(_process(i, case), np.append(t, s[-1]))
    np.testing.assert_allclose(found, FOUND[f'{i}/sigmas'], rtol=1e-6, err_msg=case['name'])


def test_flow_matchings_sigmas_are_those_of_the_shifted_process():
  for i, case in CASES:
    if case['scheduler'] == 'FlowMatchEulerDiscrete':
      t, _ = _steps(i, case)
      found = _process(i, case)(jnp.asarray(np.append(t, 0.0))).eps
      np.testing.assert_allclose(found, FOUND[f'{i}/sigmas'], atol=1e-7, err_msg=case['name'])


@pytest.mark.long
@pytest.mark.needs('diffusers')
@pytest.mark.parametrize('solver', ['DDIM', 'DPM-Solver++ 2M', 'Heun'])
def test_a_transformer_is_sampled_as_in_torch(solver):
  # 50 steps with the same weights; the speed comparison raises if samples differ.
  from experiments.speed import peers
  peers.runs(*peers.networks(64, 2), solver, batch=2)


@pytest.mark.long
@pytest.mark.needs('diffusers')
def test_the_stored_trajectories_are_up_to_date():
  recorded = FOUND if LIVE else _recorded_now()
  names = lambda found: [case['name'] for case in json.loads(str(found['cases']))]
  assert names(recorded) == names(STORED) and set(recorded) == set(STORED), (
      'the cases have changed: python -m tests.peers.record')
  for key, now in recorded.items():
    if now.dtype.kind == 'U':
      continue
    if key.startswith('table'):
      # At zero terminal SNR float32 roots are subtracted: the difference is exact to an ulp of .07.
      np.testing.assert_allclose(np.sqrt(now), np.sqrt(STORED[key]), rtol=1e-6, atol=8e-9,
                                 err_msg=f'{key} differs from the stored one')
      continue
    per_step = tuple(range(1, now.ndim))
    scale = np.maximum(abs(STORED[key]).max(per_step, keepdims=True), 1e-30)
    assert (abs(now - STORED[key]) / scale).max() < 2e-6, f'{key} differs from the stored one'


def _checkpoint():
  """A small checkpoint with the entries that the training of EqM and SiT writes."""
  import torch
  state = lambda start: {'pos_embed': torch.arange(start, start + 6.0).reshape(1, 2, 3).mT,
                         'half': torch.full((2,), start).bfloat16()}
  options = argparse.Namespace(model='EqM-B/2', lr=1e-4, ckpt=None, uncond=True)
  return {'model': state(0), 'ema': state(10), 'opt': {'state': {0: {'step': torch.tensor(3.0)}}},
          'args': options}


@pytest.mark.needs('torch')
@pytest.mark.parametrize('key, chosen', [('ema', None), ('ema', 'ema'), ('model', 'model'),
                                        (None, None)])
@pytest.mark.parametrize('zipped', [True, False])
def test_a_torch_file_becomes_safetensors(key, chosen, zipped, tmp_path):
  from safetensors.torch import load_file
  import torch

  from eqflow.interop import convert
  checkpoint = _checkpoint()
  state = checkpoint[key or 'model']
  torch.save(checkpoint if key else state, tmp_path / 'in.pt',
             _use_new_zipfile_serialization=zipped)
  assert convert.convert(tmp_path / 'in.pt', tmp_path / 'out', key=chosen) == key
  found = load_file(tmp_path / 'out')
  assert set(found) == set(state)
  for name, a in state.items():
    assert found[name].dtype == a.dtype and torch.equal(found[name], a)


class _Call:
  """A pickle that calls function(*args) when it is loaded."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


def _malice(name, canary):
  evil = _Call(os.system, f'touch {canary}')
  if name == 'in the options':
    return dict(_checkpoint(), args=argparse.Namespace(lr=evil))
  if name == 'a class other than Namespace':
    return dict(_checkpoint(), args=argparse.FileType('w'))
  return {'pos_embed': evil}


@pytest.mark.needs('torch')
@pytest.mark.parametrize('written', ['torch', 'torch before 1.6', 'pickle'])
@pytest.mark.parametrize('name', ['as a tensor', 'in the options', 'a class other than Namespace'])
def test_a_malicious_file_is_rejected_and_not_run(name, written, tmp_path, monkeypatch):
  import torch

  from eqflow.interop import convert
  path, canary = tmp_path / 'in.pt', tmp_path / 'canary'
  if written == 'pickle':
    path.write_bytes(pickle.dumps(_malice(name, canary), protocol=2))
  else:
    torch.save(_malice(name, canary), path, _use_new_zipfile_serialization=written == 'torch')
  # With this, torch.load without weights_only opens any pickle.
  monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
  # Globals that others allow are not allowed within `convert`, and are allowed again afterwards.
  with torch.serialization.safe_globals([os.system, argparse.FileType]):
    allowed = set(torch.serialization.get_safe_globals())
    with pytest.raises(ValueError, match='in.pt '):
      convert.convert(path, tmp_path / 'out')
    assert set(torch.serialization.get_safe_globals()) == allowed
  assert not canary.exists() and not (tmp_path / 'out').exists()
  if 'class' not in name and written != 'torch before 1.6':
    torch.load(path, weights_only=False) if written == 'torch' else pickle.loads(path.read_bytes())
    assert canary.exists(), 'the file would have been harmless'


@pytest.mark.needs('torch')
@pytest.mark.parametrize('start, named', [
    (['in.pt', 'out'], "out: 'ema' of in.pt"), (['in.pt', 'in.pt'], 'in.pt exists'),
    (['in.pt', 'out', '--key', 'opt'], r"'opt'.*--key.* \['model'"),
    (['none.pt', 'out'], 'No such file'), (['broken.pt', 'out'], 'broken.pt')])
def test_the_command_line_converts_or_names_the_fault(start, named, tmp_path, monkeypatch, capsys):
  import torch

  from eqflow.interop import convert
  monkeypatch.chdir(tmp_path)
  torch.save(_checkpoint(), 'in.pt')
  pathlib.Path('broken.pt').write_bytes(pathlib.Path('in.pt').read_bytes()[:700])
  monkeypatch.setattr(sys, 'argv', ['interop', *start])
  if named.startswith('out'):
    convert.main()
    assert named in capsys.readouterr().out
  else:
    with pytest.raises(SystemExit, match=named):
      convert.main()
