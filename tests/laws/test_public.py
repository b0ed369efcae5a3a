"""Laws of every public function of levels 1 to 3: batches, dtypes, keys, labels, arguments and help.

A public function without a row makes a test red.
"""

from collections.abc import Callable, Iterator
import functools
import importlib
import inspect
import pkgutil
import pydoc
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import jaxtyping
import numpy as np
import pytest

from eqflow import (
    arrays, densities, descent, fields, likelihood, mix, ood, outputs, processes, samplers, weights)
from eqflow.processes import tables
from tests.test_house import LEVELS

LINEAR, U = processes.linear, outputs.u
TABLE = processes.table_angles(tables.scaled_linear(8))
GRID = np.array([1.0, 0.6, 0.3, 0.0])


def _modules():
  for name in ' '.join(LEVELS[:3]).split():
    module = importlib.import_module(f'eqflow.{name}')
    yield module
    for inner in pkgutil.iter_modules(getattr(module, '__path__', ())):
      yield importlib.import_module(f'eqflow.{name}.{inner.name}')


# {'samplers.ddim': the function or type}, by the module that a user imports it from.
PUBLIC = {}
for _module in _modules():
  for _name, _value in vars(_module).items():
    _own = getattr(_value, '__module__', '').startswith('eqflow') and _value not in PUBLIC.values()
    if not _name.startswith('_') and (inspect.isfunction(_value) or inspect.isclass(_value)) and _own:
      PUBLIC[f'{_module.__name__.removeprefix("eqflow.")}.{_name}'] = _value


class Example(NamedTuple):
  """Arguments for b examples of one dtype."""
  z: Any        # [b, 2, 3]
  t: Any        # [b], float32 or wider
  keys: Any
  labels: Any


def example(b: int, dtype: Any) -> Example:
  wide = jnp.promote_types(dtype, jnp.float32)
  z = jnp.asarray(np.random.default_rng(0).normal(size=(b, 2, 3)), dtype)
  return Example(z, jnp.linspace(0.2, 0.8, b, dtype=wide), jax.random.split(jax.random.key(0), b),
                 jnp.arange(b) % 3)


def _field(z, t):
  return jax.tree.map(lambda a: a / 2, z)


def _network(z, t, condition):
  condition = jnp.zeros(1) if condition is None else jnp.asarray(condition)
  return z * (1 + condition.reshape((-1, 1, 1))).astype(z.dtype)


def _energy(z, t, condition=None):
  return arrays.square_norm(z)


def _weight(process, t):
  return t


def _logsnr(e):
  return dict(logsnr=e.t)


def _formula(**numbers):
  """A function of t, or of (process, t)."""
  return lambda e, names: dict(t=e.t, **dict(process=LINEAR) if 'process' in names else {}) | numbers


def _same(**given):
  return lambda e, names: given


def row(of: Callable) -> Callable:
  return lambda e, names: of(e)


ADAPTIVE = densities.adaptive(process=LINEAR, low=-5.0, high=5.0)
PLANE = _same(process=LINEAR, output=U)
MIX = lambda e: mix.Mix(1 - e.t, e.t)
BASIC = dict(process=LINEAR, output=U)
# {name: (example, names of the arguments) -> the arguments}. What a factory makes is called too.
ROWS = {
    'arrays.expand': row(lambda e: dict(coef=e.t, like=e.t)),
    'arrays.where': row(lambda e: dict(condition=e.t > 0.5, tree=e.z, other=-e.z)),
    'arrays.floating': row(lambda e: dict(a=e.z)),
    'arrays.wide': row(lambda e: dict(t=e.t)),
    'arrays.inverse': row(lambda e: dict(f=jnp.sin, value=e.t, low=0.0, high=1.5)),
    'arrays.noise_like': row(lambda e: dict(keys=e.keys, z=e.z)),
    'arrays.example_keys': row(lambda e: dict(seed=3, index=e.labels)),
    'arrays.fold': row(lambda e: dict(keys=e.keys, stream=arrays.Stream.NOISE)),
    'arrays.fold_number': row(lambda e: dict(keys=e.keys, number=e.labels)),
    'arrays.square_norm': row(lambda e: dict(z=e.z)),
    'arrays.inner': row(lambda e: dict(a=e.z, b=e.z)),
    'arrays.rows': row(lambda e: dict(a=e.z)),
    'arrays.forward_only': row(lambda e: dict(name='it', tree=e.z)),
    'mix.det': row(lambda e: dict(p=MIX(e), q=mix.Mix(e.t, e.t))),
    'mix.mix': row(lambda e: dict(to=MIX(e), x=e.z, eps=e.z)),
    'mix.remix': row(lambda e: dict(to=MIX(e), state=MIX(e), out=mix.Mix(-1, 1), z=e.z, y=e.z)),
    'mix.gain': row(lambda e: dict(to=MIX(e), state=MIX(e), out=mix.Mix(-1, 1))),
    **{f'processes.{name}': _formula() for name in (
        'linear', 'cosine', 'edm', 'rate', 'noise_to_signal', 'logsnr', 'logsnr_rate')},
    **{f'processes.{name}': _formula(beta_min=0.1, beta_max=20.0) for name in (
        'variance_preserving', 'sub_vp')},
    'processes.scaled': row(lambda e: dict(t=e.t, process=LINEAR, scale=jnp.cos)),
    'processes.shifted': _formula(shift=3.0),
    'processes.logsnr_shifted': _formula(shift=3.0),
    'processes.time_of_logsnr': row(lambda e: dict(process=LINEAR, value=e.t)),
    'processes.base.root': row(lambda e: dict(a=e.t)),
    'processes.transport': _same(process_a=LINEAR, process_b=processes.cosine),
    'processes.discrete': _formula(angles=TABLE),
    'processes.table': _same(alphas_cumprod=tables.linear(8)),
    'processes.sde.drift': _formula(),
    'processes.sde.square_diffusion': _formula(),
    'processes.sde.process': row(lambda e: dict(t=e.t, drift=jnp.negative, square_diffusion=jnp.cos)),
    **{f'outputs.{name}': _formula() for name in ('x', 'eps', 'v', 'u', 'displacement', 'score')},
    'outputs.edm': _formula(sigma_data=0.5),
    'outputs.equilibrium': _formula(decay=outputs.linear_decay),
    'outputs.transported': _formula(output=U, process_a=LINEAR, time=jnp.square),
    'outputs.constant_decay': row(lambda e: dict(gamma=e.t)),
    'outputs.linear_decay': row(lambda e: dict(gamma=e.t)),
    'outputs.truncated_decay': row(lambda e: dict(gamma=e.t, start=0.5)),
    'outputs.piecewise_decay': row(lambda e: dict(gamma=e.t, start=0.5, height=2.0)),
    'densities.uniform_on': _same(low=0.1, high=0.9),
    'densities.logit_normal': _same(mean=0.0, std=1.0),
    'densities.lognormal': _same(mean=0.0, std=1.0),
    'densities.mode': _same(scale=0.5),
    'densities.with_data': _same(density=densities.cosmap, share=0.25),
    'densities.adaptive': _same(process=LINEAR, low=-5.0, high=5.0),
    'densities.draw': row(lambda e: dict(keys=e.keys)),
    'densities.low_discrepancy': row(lambda e: dict(k=e.labels, offset=e.labels)),
    'weights.ones': _formula(),
    'weights.edm': _formula(sigma_data=0.5),
    'weights.on_logsnr': _formula(w=weights.elbo, density=densities.uniform),
    'weights.implied': _formula(density=densities.uniform, output=U),
    **{f'weights.{name}': row(_logsnr) for name in ('elbo', 'flow_matching', 'indi')},
    'weights.edm_logsnr': row(lambda e: dict(logsnr=e.t, mean=0.0, std=1.0, sigma_data=0.5)),
    'weights.sd3': row(lambda e: dict(logsnr=e.t, mean=0.0, std=1.0)),
    'weights.p2': row(lambda e: dict(logsnr=e.t, gamma=0.5)),
    'weights.min_snr': row(lambda e: dict(logsnr=e.t, gamma=5.0)),
    'weights.sigmoid': row(lambda e: dict(logsnr=e.t, bias=1.0)),
    'weights.monotone': row(lambda e: dict(logsnr=e.t, w=weights.flow_matching, peak=0.5)),
    **{f'fields.{name}': _formula() for name in (
        'unit', 'time', 'none', 'quarter_log_sigma', 'table_index')},
    'fields.unit_variance': _formula(sigma_data=0.5),
    'fields.conditioned': _same(network=_network, process=LINEAR, scale_input=fields.unit,
                                c_noise=fields.time),
    'fields.bind': row(lambda e: dict(network=_network, condition=e.labels)),
    'fields.at_rest': row(lambda e: dict(field=_field, z=e.z)),
    'fields.as_output': _same(predict=_field, **BASIC, to=outputs.x),
    'fields.transported': _same(predict=_field, transport=processes.transport(
        LINEAR, processes.cosine)),
    'guidance.guided': row(lambda e: dict(network=_network, condition=e.labels, null=e.labels,
                                          scale=3.0, rescale=0.5)),
    'guidance.composed': row(lambda e: dict(base=_field, predicts=[_field], scales=[e.t])),
    'guidance.autoguided': row(lambda e: dict(predict=_field, weak=_field, scale=e.t)),
    'guidance.added': row(lambda e: dict(predicts=[_field, _field], scales=[e.t, 2.0])),
    'guidance.on_interval': _same(inside=_field, outside=_field, process=LINEAR, low=0.1, high=0.5,
                                  measure=fields.time),
    'guidance.rescaled': row(lambda e: dict(y=e.z, toward=-e.z, phi=e.t)),
    'couplings.independent': row(lambda e: dict(keys=e.keys, x=e.z)),
    'couplings.given': row(lambda e: dict(keys=e.keys, x=e.z, eps=e.z)),
    'couplings.optimal_transport': row(lambda e: dict(keys=e.keys, x=e.z, group=np.array(e.labels))),
    'couplings.sinkhorn': row(lambda e: dict(keys=e.keys, x=e.z, regularization=9.0,
                                             group=np.array(e.labels))),
    'couplings.straightness': row(lambda e: dict(path=jnp.stack(4 * [e.z]), grid=GRID)),
    **{f'energies.{name}': _same(network=_network) for name in (
        'dot', 'squared_norm', 'negative_squared_norm')},
    'energies.energy_gradient': _same(energy=_energy),
    'oracles.gaussian': row(lambda e: dict(
        z=e.z[:, 0], t=e.t, **BASIC, mean=np.zeros(3), cov=np.eye(3))),
    'oracles.mixture': row(lambda e: dict(
        z=e.z[:, 0], t=e.t, **BASIC, means=np.eye(3), stds=np.ones(3), weights=np.ones(3) / 3)),
    'oracles.finite': row(lambda e: dict(z=e.z, t=e.t, **BASIC, data=np.ones((4, 2, 3)))),
    'losses.matching_loss': row(lambda e: dict(keys=e.keys, predict=_field, x=e.z, **BASIC, u=e.t,
                                               density=densities.uniform)),
    'samplers.sample': row(lambda e: dict(solver=samplers.ddim(LINEAR, U, churn=0.5), predict=_field,
                                          z=e.z, times=GRID, keys=e.keys)),
    'samplers.run': row(lambda e: dict(solver=samplers.ddim(LINEAR, U, churn=0.5), predict=_field,
                                       z=e.z, times=GRID, keys=e.keys)),
    'samplers.sample_path': row(lambda e: dict(solver=samplers.ddim(LINEAR, U, churn=0.5),
                                               predict=_field, z=e.z, times=GRID, keys=e.keys)),
    **{f'samplers.{name}': PLANE for name in (
        'adams_bashforth', 'adaptive', 'ancestral', 'ddim', 'dpmpp_2m', 'dpmpp_3m', 'euler', 'heun',
        'sde', 'unipc')},
    'samplers.edm': _same(process=processes.edm, output=U, num_steps=3, churn=0.5),
    **{f'samplers.last_{name}': row(lambda e: dict(drifted=e.z, x=e.z, flowed=e.z)) for name in (
        'mean', 'tweedie', 'euler')},
    **{f'samplers.diffusions.{name}': _formula() for name in (
        'constant', 'sigma', 'linear', 'decreasing', 'increasing_decreasing', 'sbdm')},
    'samplers.runge_kutta.integrate': row(lambda e: dict(field=_field, y=e.z, start=0.0, end=1.0,
                                                         rtol=1e-2, atol=1e-2, max_steps=9)),
    'descent.at_start': row(lambda e: dict(z=e.z)),
    **{f'descent.{name}': row(lambda e: dict(descent=descent.langevin(0.1, 0.1), field=_field, z=e.z,
                                             num_steps=2, keys=e.keys))
       for name in ('descend', 'descend_path')},
    'descent.descend_until': row(lambda e: dict(descent=descent.langevin(0.1, 0.1), field=_field, z=e.z,
                                                max_steps=2, threshold=e.t, keys=e.keys)),
    'descent.descend_refilled': row(lambda e: dict(
        descent=descent.langevin(0.1, 0.1), network=_network, z=e.z, condition=e.labels, slots=2,
        max_steps=2, threshold=e.t, keys=e.keys)),
    'descent.gradient_descent': _same(step_size=0.1),
    'descent.heun': _same(step_size=0.1),
    'descent.langevin': _same(step_size=0.1, temperature=0.1),
    'descent.nesterov': _same(step_size=0.1, momentum=0.3),
    'descent.cosine': row(lambda e: dict(k=e.labels, num_steps=3)),
    'descent.harmonic': row(lambda e: dict(k=e.labels, half=3.0)),
    'likelihood.rademacher': row(lambda e: dict(keys=e.keys, z=e.z)),
    'likelihood.log_likelihood': row(lambda e: dict(predict=_field, x=e.z, **BASIC, keys=e.keys)),
    'likelihood.dequantize': row(lambda e: dict(keys=e.keys, image=e.z.astype(jnp.uint8))),
    'likelihood.bits_per_dimension': row(lambda e: dict(log_p=e.t, num_dims=6)),
    'ood.gradient_norm': row(lambda e: dict(field=_field, z=e.z)),
    'ood.descent_drop': row(lambda e: dict(field=_field, z=e.z, step_size=0.1, num_steps=2)),
    'ood.energy_at': row(lambda e: dict(energy=_energy, z=e.z)),
    'ood.over_classes': row(lambda e: dict(score=ood.gradient_norm, network=_network, z=e.z,
                                           num_classes=2)),
}
# Results that do not depend on examples: numbers and tables of the host, checks, types, files; and what
# one step of a solver is made of, which the rows of the solvers run.
NO_BATCH = {
    'arrays': 'combine batch_size check_alike check_floating check_functions check_keys check_labels '
              'check_numbers check_rows check_scalars is_number is_traced name_of num_elements pytree '
              'Static Stream',
    'mix': 'Mix',
    'files': 'check_regular opened read read_json replacing replacing_folder resolved shown sync '
             'write_text',
    'processes': 'Transport table_angles',
    'processes.tables': 'check cosine linear scaled_linear zero_terminal_snr',
    'densities': 'Adaptive Density', 'grids': 'karras leading linspace logsnr trailing uniform',
    'blind_spots': 'any_grid check_grid check_training needs_along needs_conditioning needs_diffusion '
                   'needs_falling needs_num_steps needs_velocity needs_x',
    'fields': 'Model', 'guidance': 'check_interval', 'losses': 'dispersive',
    'samplers': 'Solver Traits contributions evaluations no_state',
    'samplers.base': 'calls check_num_steps check_velocity plane',
    'samplers.multistep': 'Corrected History kept_by_churn one_number renewed step_ratio',
    'samplers.noise': 'kept_by_eta root', 'samplers.runge_kutta': 'Count',
    'descent': 'Descent State constant evaluations from_optax', 'likelihood': 'Latent',
    'ema': 'PowerAverage PowerState averaged checked_std first_bad init is_std power_average '
           'power_from_std power_rate std_from_power update warmed',
    'posthoc_ema': 'expected_error inner_product reconstruct solve'}
# They need POT, and values instead of shapes.
ON_HOST = {'couplings.optimal_transport', 'couplings.sinkhorn'}
# Data in float32 or wider for data of any dtype, and numbers that keep their own dtype.
WIDER = {'likelihood.log_likelihood', 'likelihood.dequantize'}
OWN = {'arrays.rows', 'densities.draw', 'densities.low_discrepancy'}
# What a user calls with functions, numbers and keys. Formulas of t trust their arguments.
DOORS = {'densities', 'fields', 'guidance', 'couplings', 'energies', 'losses', 'samplers', 'descent',
         'likelihood', 'ood'}
FORMULAS = {name for name in PUBLIC if name.startswith('samplers.diffusions')} | {
    'fields.at_rest', 'fields.unit_variance', 'descent.cosine', 'descent.harmonic',
    'densities.low_discrepancy', 'samplers.runge_kutta.integrate', 'likelihood.bits_per_dimension',
    'guidance.rescaled',
    *(f'fields.{name}' for name in ('unit', 'time', 'none', 'quarter_log_sigma', 'table_index'))}


def called(name: str, e: Example, **changes: Any) -> Any:
  """The result of a public function on e; what a factory makes is called on e too."""
  function = PUBLIC[name]
  made = function(**(ROWS[name](e, inspect.signature(function).parameters) | changes))
  match made:
    case samplers.Solver():
      return samplers.sample(made, _field, e.z, GRID, e.keys)
    case descent.Descent():
      return descent.descend(made, _field, e.z, num_steps=2, keys=e.keys)
    case densities.Density():
      return made.quantile(e.t), made.pdf(e.t)
    case densities.Adaptive():
      return made.density(made.start).quantile(e.t), made.density(made.start).pdf(e.t)
    case processes.Transport():
      return made.time(e.t), made.scale(e.t)
    case Partial():
      kind = inspect.signature(function).return_annotation
      given = dict(Predict=(e.z, e.t), Process=(e.t,)).get(kind, (e.z, e.t, e.labels))
      return made(*given)
  return made


def untyped(function: Callable, *given: Any, **named: Any) -> Any:
  """The call as a user makes it: only tests check types at the door."""
  jaxtyping.config.update('jaxtyping_disable', True)
  try:
    return function(*given, **named)
  finally:
    jaxtyping.config.update('jaxtyping_disable', False)


def shapes(name: str, b: int, dtype: Any) -> Any:
  """The leaves of a result, or only their shapes and dtypes."""
  e = example(b, dtype)
  return called(name, e) if name in ON_HOST else jax.eval_shape(Partial(called, name), e)


def test_every_public_function_has_a_row():
  missing = set(PUBLIC) - set(ROWS) - {f'{module}.{name}' for module, names in NO_BATCH.items()
                                       for name in names.split()}
  assert len(PUBLIC) > 150 and not missing, f'give {sorted(missing)} a row'
  assert set(ROWS) <= set(PUBLIC), f'{set(ROWS) - set(PUBLIC)} are not public'


SLOW = ON_HOST | {'samplers.runge_kutta.integrate', 'likelihood.log_likelihood'}


@pytest.mark.parametrize('dtype', [
    jnp.bfloat16, *(pytest.param(dtype, marks=pytest.mark.long)
                    for dtype in (jnp.float16, jnp.float32, jnp.float64))], ids=lambda d: d.__name__)
@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.long) if name in SLOW else name for name in ROWS])
def test_results_follow_the_batch_down_to_none_and_the_dtype(name, dtype):
  with jax.enable_x64(dtype == jnp.float64):
    none, one = (jax.tree.leaves(shapes(name, b, dtype)) for b in (0, 1))
  assert len(none) == len(one) > 0
  for empty, leaf in zip(none, one):
    # No other axis of an example has length 1.
    assert empty.shape == tuple(n if n != 1 else 0 for n in leaf.shape) and empty.dtype == leaf.dtype
    assert leaf.dtype == right_dtype(name, leaf, dtype), f'{leaf.dtype} {leaf.shape} for {dtype}'
  assert any(0 in leaf.shape for leaf in none), 'no result has a batch axis'


def right_dtype(name: str, leaf: Any, dtype: Any) -> Any:
  """Data keep the dtype of z; numbers are float32, or wider where z is."""
  if not jnp.issubdtype(leaf.dtype, jnp.floating) or name in OWN:
    return leaf.dtype
  is_data = leaf.shape[-3:] == (1, 2, 3) or name in ('oracles.gaussian', 'oracles.mixture')
  wide = jnp.promote_types(dtype, jnp.float32)
  return dtype if is_data and name not in WIDER else jnp.promote_types(leaf.dtype, wide)


@pytest.mark.long
@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16, jnp.float32], ids=lambda d: d.__name__)
@pytest.mark.parametrize('name', ROWS)
def test_one_example_is_computed_as_one_of_two(name, dtype):
  one, two = (called(name, example(b, dtype)) for b in (1, 2))
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
    assert jnp.shape(a) != jnp.shape(b) and jnp.result_type(a) == jnp.result_type(b)
    if jnp.issubdtype(jnp.result_type(a), jnp.floating) and name not in ON_HOST:
      assert jnp.isfinite(a).all()


def _parameters(name):
  return inspect.signature(PUBLIC[name]).parameters


E = example(2, jnp.float32)
LEGACY = jax.random.split(jax.random.PRNGKey(0), 2)
WRONG_KEYS = {
    'legacy': (LEGACY, TypeError, r'keys is uint32 \(2, 2\): .*wrap_key_data'),
    'one legacy': (LEGACY[0], TypeError, r'keys is uint32 \(2,\): .*wrap_key_data'),
    'a seed': (0, TypeError, r'keys is .*: .*jax.random.split'),
    'one': (E.keys[0], ValueError, r'keys has shape \(\)'),
    'a table': (E.keys[None], ValueError, r'keys has shape \(1, 2\)'),
    'too few': (E.keys[:1], ValueError, r'keys has shape \(1,\) for 2 examples')}


def keys_given() -> Iterator[tuple[str, str]]:
  """(name, kind) of wrong keys. A function of keys alone has as many results as keys."""
  for name in ROWS:
    if 'keys' in _parameters(name):
      alone = not {'z', 'x', 'image'} & set(_parameters(name))
      yield from ((name, kind) for kind in WRONG_KEYS if not (alone and kind == 'too few'))


@pytest.mark.parametrize('name,kind', list(keys_given()))
def test_keys_are_typed_and_one_for_each_example(name, kind):
  keys, error, message = WRONG_KEYS[kind]
  with pytest.raises(error, match=message):
    untyped(called, name, E, keys=keys)


def test_legacy_keys_are_accepted_after_they_are_wrapped():
  wrapped = jax.random.wrap_key_data(LEGACY)
  np.testing.assert_array_equal(*(densities.draw(keys) for keys in (wrapped, E.keys)))


WRONG_LABELS = {
    'float': np.zeros(2), 'nan': np.array([0, np.nan]), 'bool': np.array([True, False]), 'scalar': 0,
    'too many': np.zeros(3, int), 'pairs': np.zeros((2, 2), int), 'strings': np.array(['a', 'b'])}


LABELLED = [name for name in ROWS if 'group' in _parameters(name)]


@pytest.mark.parametrize('kind', WRONG_LABELS)
@pytest.mark.parametrize('name', LABELLED)
def test_labels_are_integers_one_for_each_example(name, kind):
  with pytest.raises(ValueError, match='^group has (shape|dtype) '):
    untyped(called, name, E, group=WRONG_LABELS[kind])


@pytest.mark.parametrize('dtype', [np.int8, np.uint8, np.int64, jnp.int32])
def test_labels_of_any_integer_type_are_in_range(dtype):
  arrays.check_labels('label', np.array([0, 9], dtype), 2, num_classes=10)
  arrays.check_labels('label', [0, 9], 2, num_classes=10)
  jax.eval_shape(lambda label: arrays.check_labels('label', label, 2, 10), np.array([0, 99], dtype))
  for wrong in (10, 127, *([-1] if np.issubdtype(dtype, np.signedinteger) else [])):
    with pytest.raises(ValueError, match=rf'label contains \[{wrong}\]: give 0 to 9'):
      arrays.check_labels('label', np.array([3, wrong], dtype), 2, num_classes=10)


@pytest.mark.parametrize('name', [name for name in ROWS if 'condition' in _parameters(name)
                                  and name.split('.')[0] in DOORS])
@pytest.mark.parametrize('condition', [0, np.zeros(3, int), np.zeros((1, 2), int)], ids=str)
def test_a_condition_has_a_row_for_each_example(name, condition):
  more = dict(null=condition) if 'null' in _parameters(name) else {}
  with pytest.raises(ValueError, match=r'condition has a leaf of shape .* for 2 examples'):
    untyped(called, name, E, condition=condition, **more)


KINDS = {'function': callable, 'number': lambda value: isinstance(value, (int, float))}


def arguments(kind: str) -> Iterator[tuple[str, str]]:
  """(name, argument) of every argument of a door that is a function, or a number, in its row."""
  for name, made in ROWS.items():
    if name.split('.')[0] in DOORS and name not in FORMULAS | ON_HOST:
      for argument, value in made(E, _parameters(name)).items():
        if KINDS[kind](value):
          yield name, argument


@pytest.mark.parametrize('name,argument', list(arguments('function')))
def test_a_string_for_a_function_is_rejected_by_its_name(name, argument):
  with pytest.raises(TypeError, match=f"{argument} is the str 'linear': give a function"):
    untyped(called, name, E, **{argument: 'linear'})


@pytest.mark.parametrize('name,argument', list(arguments('number')))
def test_a_config_for_a_number_is_rejected_by_its_name(name, argument):
  for wrong in ({'name': 'linear'}, '0.1', None):
    if wrong is None and argument == 'num_steps':
      continue   # Any number of steps.
    with pytest.raises(TypeError, match=f'{argument} is the {type(wrong).__name__} .*: give a number'):
      untyped(called, name, E, **{argument: wrong})


@pytest.mark.parametrize('name', ['samplers.sample', 'samplers.run', 'samplers.sample_path',
                                  'descent.descend', 'descent.descend_until'])
def test_a_name_for_a_method_is_rejected(name):
  argument = 'solver' if name.startswith('samplers') else 'descent'
  with pytest.raises(TypeError, match="'ddim' is a str, but only a"):
    untyped(called, name, E, **{argument: 'ddim'})


# Where the number of steps depends on the samples: no reverse mode.
FORWARD = ['samplers.adaptive', 'samplers.runge_kutta.integrate', 'likelihood.log_likelihood',
           'descent.descend_until', 'descent.descend_refilled', 'ood.descent_drop']


@pytest.mark.parametrize('name', [
    name if name in ('likelihood.log_likelihood', 'descent.descend_refilled', 'ood.descent_drop')
    else pytest.param(name, marks=pytest.mark.long) for name in FORWARD])
def test_loops_of_unknown_length_have_forward_mode_and_say_that_they_have_no_other(name):
  def of(z):
    return sum(jnp.sum(a) for a in jax.tree.leaves(called(name, E._replace(z=z)))
               if jnp.issubdtype(a.dtype, jnp.floating))
  jax.eval_shape(lambda z: jax.jvp(of, (z,), (z,)), E.z)
  with pytest.raises(ValueError, match='forward mode only.* use jax.jvp or jax.jacfwd'):
    jax.eval_shape(jax.grad(of), E.z)


@pytest.mark.long
def test_a_likelihood_on_a_fixed_grid_has_both_modes():
  density = lambda shift: likelihood.log_likelihood(
      _field, E.z + shift, process=LINEAR, output=U, times=[0.1, 0.5, 1.0])[0].sum()
  np.testing.assert_allclose(jax.grad(density)(0.0), jax.jvp(density, (0.0,), (1.0,))[1], rtol=1e-4)


def test_everything_public_has_a_short_signature_and_a_docstring_of_its_own():
  for name, value in PUBLIC.items():
    doc = inspect.getdoc(value)
    # The docstring that Python makes for a NamedTuple.
    assert doc and doc != f'{value.__name__}({", ".join(getattr(value, "_fields", "-"))})', name
    if not issubclass(type(value), type(arrays.Stream)):
      assert len(str(inspect.signature(value))) <= 200, f'{name}{inspect.signature(value)}'
    longest = max(pydoc.plain(pydoc.render_doc(value)).splitlines(), key=len)
    assert len(longest) <= 200, longest


def test_help_is_of_the_name_that_was_asked_for():
  # A partial has the help of functools.partial.
  for module in _modules():
    for name, value in vars(module).items():
      if not name.startswith('_') and isinstance(value, (functools.partial, type(jax.jit(jnp.sin)))):
        assert value in (), f'{module.__name__}.{name} is a {type(value).__name__}'
  for function in (processes.cosine, outputs.u, weights.ones, samplers.ddim):
    lines = pydoc.plain(pydoc.render_doc(function)).splitlines()
    assert lines[0].startswith(f'Python Library Documentation: function {function.__name__} in module')
