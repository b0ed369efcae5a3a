"""One loss: every training objective of the field is a call of it, and oracles have its minimum."""

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import densities, fields, losses, oracles, outputs, processes, weights
from eqflow.mix import remix
from tests import rows

KEYS = jax.random.split(jax.random.key(3), 256)
X = np.random.default_rng(1).normal(size=(256, 4, 3)).astype(np.float32)


def _draws(process, u):
  """t, eps and z of matching_loss: recovered by asking for eps on data 0 and reading the target."""
  seen = {}
  def spy(z, t):
    seen.update(z=z, t=t)
    return jnp.zeros_like(z)
  losses.matching_loss(KEYS, spy, X, process=process, output=outputs.u, density=densities.uniform, u=u)
  state = process(seen['t'])
  eps = (seen['z'] - np.asarray(state.x)[:, None, None] * X) / np.asarray(state.eps)[:, None, None]
  return np.asarray(seen['t']), np.asarray(seen['z']), eps


def _network(z, t):
  return jnp.sin(2 * z) + t[:, None, None]


U = jnp.asarray(np.random.default_rng(2).uniform(0.2, 0.8, 256), jnp.float32)


def test_flow_matching_is_the_mean_square_of_y_minus_eps_plus_x():
  t, z, eps = _draws(processes.linear, U)
  loss, aux = losses.matching_loss(KEYS, _network, X, process=processes.linear, output=outputs.u,
                                   density=densities.uniform, u=U)
  expected = np.mean((_network(z, t) - (eps - X)) ** 2, axis=(1, 2))
  np.testing.assert_allclose(loss, expected, rtol=1e-4)
  np.testing.assert_allclose(aux['logsnr'], 2 * np.log((1 - t) / t), rtol=1e-5)
  np.testing.assert_allclose(aux['error'], expected, rtol=1e-4)


def test_equilibrium_matching_is_the_truncated_multiple_of_eps_minus_x():
  t, z, eps = _draws(processes.linear, U)
  loss, _ = losses.matching_loss(KEYS, _network, X, process=processes.linear, density=densities.uniform,
                                 output=rows.OUTPUTS['equilibrium_truncated'], u=U)
  c = 4 * np.minimum(1, 5 * t)[:, None, None]
  np.testing.assert_allclose(loss, np.mean((_network(z, t) - (eps - X) * c) ** 2, axis=(1, 2)),
                             rtol=1e-4)


def test_edms_loss_is_lambda_times_the_denoisers_error():
  # [Karras+ 2206.00364, eq. 2 and table 1]: lambda = (s^2 + sd^2)/(s sd)^2, D = c_skip z + c_out F.
  sd, density = 0.5, densities.lognormal(-1.2, 1.2)
  loss, aux = losses.matching_loss(
      KEYS, _network, X, process=processes.edm, output=Partial(outputs.edm, sigma_data=sd),
      density=density, u=U)
  s = np.asarray(aux['t'])[:, None, None]
  np.testing.assert_allclose(aux['t'], density.quantile(U))
  noise = jax.vmap(lambda k: jax.random.normal(
      jax.random.fold_in(jax.random.fold_in(k, 1), 0), (4, 3)))(KEYS)
  z = X + s * noise
  f = _network(z, s[:, 0, 0])
  n = np.sqrt(s**2 + sd**2)
  denoised = sd**2 / n**2 * z + s * sd / n * f
  expected = np.mean((s**2 + sd**2) / (s * sd) ** 2 * (denoised - X) ** 2, axis=(1, 2))
  np.testing.assert_allclose(loss, expected, rtol=2e-4)


def test_edms_weight_on_x_equals_the_unweighted_loss_of_its_output():
  sd = 0.5
  edm = Partial(outputs.edm, sigma_data=sd)
  call = lambda **kw: losses.matching_loss(
      KEYS, _network, X, process=processes.edm, output=edm, density=densities.lognormal(-1.2, 1.2),
      u=U, **kw)[0]
  weighted = call(space=outputs.x, weight=Partial(weights.edm, sigma_data=sd))
  np.testing.assert_allclose(weighted, call(), rtol=1e-4)


@pytest.mark.parametrize('source', ['v', 'u', 'x', 'edm', 'equilibrium_truncated'])
@pytest.mark.parametrize('space', ['x', 'eps', 'v'])
def test_the_loss_in_another_space_equals_the_loss_of_the_converted_prediction(source, space):
  process, output, to = processes.cosine, rows.OUTPUTS[source], rows.OUTPUTS[space]
  t, z, eps = _draws(process, U)
  loss, _ = losses.matching_loss(KEYS, _network, X, process=process, output=output,
                                 density=densities.uniform, u=U, space=to)
  state, out, target = (f[:] for f in (process(t), output(process, t), to(process, t)))
  # Solve the 2x2 system for x and eps element by element, then form the vector `space`.
  y = np.asarray(_network(z, t))
  matrix = np.stack([np.stack(np.broadcast_arrays(*state, t)[:2], -1),
                     np.stack(np.broadcast_arrays(*out, t)[:2], -1)], axis=1)
  known = np.stack([z, y], axis=1).reshape(256, 2, -1)
  x_hat, eps_hat = np.moveaxis(np.linalg.solve(matrix.astype(np.float64), known), 1, 0)
  a, b = (np.broadcast_to(c, t.shape)[:, None] for c in target)
  expected = np.mean((a * x_hat + b * eps_hat - a * X.reshape(256, -1)
                      - b * eps.reshape(256, -1)) ** 2, axis=1)
  np.testing.assert_allclose(loss, expected, rtol=2e-3)


def test_the_mean_is_over_all_elements_of_all_leaves():
  x = {'a': X, 'b': X[:, 0, :2]}
  predict = lambda z, t: jax.tree.map(jnp.zeros_like, z)
  loss, _ = losses.matching_loss(KEYS, predict, x, process=processes.linear, output=outputs.x,
                                 density=densities.uniform)
  expected = (np.square(x['a']).sum((1, 2)) + np.square(x['b']).sum(1)) / 14
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_uncertainty_weighs_and_regularizes():
  call = lambda **kw: losses.matching_loss(KEYS, _network, X, process=processes.linear,
                                           output=outputs.u, density=densities.uniform, u=U,
                                                    **kw)[0]
  np.testing.assert_allclose(call(uncertainty=lambda t: 2 * t), np.exp(-2 * U) * call() + 2 * U,
                             rtol=1e-5)


def test_aux_has_the_unweighted_error():
  call = lambda **kw: losses.matching_loss(KEYS, _network, X, process=processes.linear,
                                           output=outputs.u, density=densities.uniform, u=U, **kw)
  _, plain = call()
  _, aux = call(weight=lambda process, t: 3 * t, uncertainty=lambda t: 2 * t)
  np.testing.assert_allclose(aux['error'], plain['error'], rtol=1e-6)


def test_losses_that_are_not_one_number_for_each_example_are_rejected():
  call = lambda **kw: losses.matching_loss(KEYS, _network, X, process=processes.linear,
                                           output=outputs.u, density=densities.uniform, **kw)
  with pytest.raises(ValueError, match=r'weighted loss .*\(256, 256\)'):
    call(uncertainty=lambda t: t[:, None])


def test_the_loss_of_an_example_depends_on_its_own_key_only():
  call = lambda keys, x: losses.matching_loss(keys, _network, x, process=processes.linear,
                                              output=outputs.u, density=densities.uniform)[0]
  together, alone = call(KEYS, X), call(KEYS[7:9], X[7:9])
  np.testing.assert_allclose(alone, together[7:9], rtol=1e-6)


@pytest.mark.parametrize('output', [
    'v', 'edm', 'equilibrium_truncated',
    *(pytest.param(name, marks=pytest.mark.long) for name in ('x', 'eps', 'u'))])
def test_the_exact_predictor_has_the_minimum_loss(output):
  # x ~ N(m, s^2): Var[x | z] = s^2 sigma^2/(alpha^2 s^2 + sigma^2), and an error e in x, with
  # eps = (z - alpha x)/sigma, is an error e det(state, out)/sigma in the output.
  n, m, s, t = 40_000, 0.5, 0.3, 0.6
  x = m + s * np.random.default_rng(1).normal(size=(n, 1)).astype(np.float32)
  process, out = processes.cosine, rows.OUTPUTS[output]
  exact = Partial(oracles.gaussian, process=process, output=out, mean=jnp.array([m]),
                  cov=jnp.array([[s * s]]))
  loss, worse = jax.jit(lambda keys: [losses.matching_loss(
      keys, predict, x, process=process, output=out, density=densities.uniform, u=jnp.full(n, t))[0]
      for predict in (exact, lambda z, t: exact(z, t) + 0.3)])(jax.random.split(jax.random.key(0), n))
  alpha, sigma = np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t)
  a, b = map(float, jax.jit(lambda t: out(process, t))(jnp.float32(t)))
  floor = s**2 * sigma**2 / (alpha**2 * s**2 + sigma**2) * ((alpha * b - sigma * a) / sigma) ** 2
  # The loss is chi-square with one degree of freedom: its mean has relative spread sqrt(2/n).
  assert abs(loss.mean() / floor - 1) < 5 * np.sqrt(2 / n), (
      f'{output}: loss {loss.mean()} for a floor of {floor}')
  np.testing.assert_allclose(worse.mean() - loss.mean(), 0.09, atol=0.02)


@pytest.mark.parametrize('name', ['linear', 'cosine', 'shifted'])
@pytest.mark.parametrize('density', [densities.uniform, densities.logit_normal(0.3, 1.2)])
def test_a_weight_on_log_snr_gives_the_same_loss_for_any_density(name, density, x64):
  # With eps errors of 1, the loss is int w dlambda: 8 for a sigmoid is softplus at its ends.
  process = rows.PROCESSES[name]
  weight = Partial(weights.on_logsnr, w=Partial(weights.sigmoid, bias=1.0), density=density)

  @jax.jit
  def weighed(u):
    t = density.quantile(u)
    return processes.logsnr(process, t), weight(process, t)

  value, each = map(np.asarray, weighed((np.arange(200_000) + 0.5) / 200_000))
  found = np.mean(np.where(abs(value) < 6, each, 0))
  expected = np.logaddexp(0, 7) - np.logaddexp(0, -5)
  np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_min_snr_is_the_clipped_ratio_on_the_cosine_process(x64):
  t = rows.times('cosine', 33, 'float64')
  weight = weights.on_logsnr(processes.cosine, t, density=densities.uniform,
                             w=Partial(weights.min_snr, gamma=5.0))
  snr = (np.cos(np.pi / 2 * t) / np.sin(np.pi / 2 * t)) ** 2
  # |d lambda/dt| = 2 pi/sin(pi t), and sech(lambda/2) = sin(pi t): their product is 2 pi.
  np.testing.assert_allclose(weight, 2 * np.pi * np.minimum(snr, 5) / snr, rtol=1e-9)


def test_predictions_of_another_shape_are_rejected():
  with pytest.raises(ValueError, match=r'predict returned \(256, 4, 1\) for z \(256, 4, 3\)'):
    losses.matching_loss(KEYS, lambda z, t: z[..., :1], X, process=processes.linear,
                         output=outputs.u, density=densities.uniform)


def test_integer_data_are_rejected():
  with pytest.raises(TypeError, match=r'x is uint8'):
    losses.matching_loss(KEYS, _network, np.zeros((256, 4, 3), np.uint8),
                         process=processes.linear, output=outputs.u, density=densities.uniform)


def test_a_low_precision_network_is_compared_in_full_precision():
  seen = []
  def predict(z, t):
    seen.append(z.dtype)
    return z.astype(jnp.bfloat16)
  loss, _ = losses.matching_loss(KEYS, predict, X.astype(jnp.bfloat16), process=processes.linear,
                                 output=outputs.u, density=densities.uniform)
  assert seen == [jnp.float32] and loss.dtype == jnp.float32


# Alike enough to another row for the long tests alone; a new row runs in all.
ALIKE = ('x', 'eps', 'u', 'displacement', 'equilibrium_constant', 'equilibrium_linear',
         'equilibrium_piecewise')


@pytest.mark.parametrize('source', [
    pytest.param(name, marks=[pytest.mark.long] * (name in ALIKE)) for name in rows.OUTPUTS])
def test_the_loss_in_a_space_does_not_depend_on_the_output(source, x64):
  # One guess of the noise, said as each output: in each space its error is a (x' - x) + b (eps' - eps).
  process, density = processes.cosine, densities.uniform_on(0.1, 0.9)
  keys, x = KEYS[:16], np.random.default_rng(4).normal(size=(16, 3))
  eps = np.random.default_rng(5).normal(size=(16, 3))
  guess = lambda z, t: jnp.sin(2 * z) + t[:, None]
  output = rows.OUTPUTS[source]
  predict = fields.as_output(guess, process=process, output=outputs.eps, to=output)
  t = density.quantile(U[:16].astype(float))
  alpha, sigma = np.cos(np.pi / 2 * t)[:, None], np.sin(np.pi / 2 * t)[:, None]
  z = alpha * x + sigma * eps
  eps_off = np.sin(2 * z) + t[:, None] - eps
  x_off = -sigma / alpha * eps_off
  for name, space in rows.OUTPUTS.items():
    loss, _ = losses.matching_loss(
        keys, predict, x, process=process, output=output, space=space, density=density,
        u=U[:16].astype(float), coupling=lambda keys, x: jnp.asarray(eps))
    a, b = (np.broadcast_to(c, t.shape)[:, None] for c in space(process, t))
    expected = np.mean((a * x_off + b * eps_off) ** 2, axis=1)
    np.testing.assert_allclose(loss, expected, rtol=1e-9, err_msg=f'{source} in {name}')


# Three records in one dimension, three times, and noise on an even grid, where the trapezoid rule gives
# expectations exact to rounding.
RECORDS, AT = np.array([-1.1, 0.2, 0.9]), np.array([0.3, 0.5, 0.8])
GRID = np.linspace(-9, 9, 361)


def _expected(theta, process, output, target):
  """E[loss] over time, record and noise, of a network with three parameters."""
  t, x, eps = (a.ravel() for a in np.meshgrid(AT, RECORDS, GRID, indexing='ij'))
  mass = np.exp(-eps**2 / 2) / np.sqrt(2 * np.pi) * (GRID[1] - GRID[0]) / len(AT) / len(RECORDS)
  predict = lambda z, t: theta[0] * jnp.sin(2 * z) + theta[1] * z * t[:, None] + theta[2]
  loss, _ = losses.matching_loss(
      jax.random.split(jax.random.key(0), len(t)), predict, x[:, None], process=process,
      output=output, density=densities.uniform, u=jnp.asarray(t), target=target,
      coupling=lambda keys, x: jnp.asarray(eps)[:, None])
  return loss @ jnp.asarray(mass)


@pytest.mark.parametrize('output', ['u', 'score'])
@pytest.mark.parametrize('process', ['linear', 'cosine'])
def test_marginal_and_conditional_matching_have_the_same_gradient(
    process, output, x64):
  # Flow matching and conditional flow matching, and score matching and denoising score matching
  # [Lipman+ 2210.02747, theorem 2; Vincent 2011].
  process, output = rows.PROCESSES[process], rows.OUTPUTS[output]
  marginal = Partial(oracles.finite, process=process, output=output, data=RECORDS[:, None])
  both = lambda theta: jnp.stack([_expected(theta, process, output, to) for to in (None, marginal)])
  values = jax.jit(lambda theta: (both(theta), jax.jacrev(both)(theta)))
  constants = []
  for theta in np.random.default_rng(0).normal(size=(3, 3)):
    (conditional, explicit), gradients = values(theta)
    constants.append(conditional - explicit)
    assert np.abs(gradients[0]).min() > 1e-2, 'a gradient to speak of'
    np.testing.assert_allclose(*gradients, rtol=1e-10, atol=1e-12)
  assert constants[0] > 0.05, 'conditional targets vary about the marginal one'
  np.testing.assert_allclose(constants, constants[0], rtol=1e-10)


def test_the_marginal_score_is_the_gradient_of_the_log_density(x64):
  z, t = np.linspace(-2, 2, 9), 0.4
  alpha, sigma = np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t)
  score = Partial(oracles.finite, process=processes.cosine, output=outputs.score,
                  data=RECORDS[:, None])
  found = jax.jit(score)(z[:, None], np.full(9, t))[:, 0]
  # log p(z) = logsumexp_i -(z - alpha x_i)^2/(2 sigma^2) + a constant, differentiated in the plain.
  likelihood = np.exp(-((z[:, None] - alpha * RECORDS) ** 2) / (2 * sigma**2))
  slopes = -(z[:, None] - alpha * RECORDS) / sigma**2
  np.testing.assert_allclose(found, (likelihood * slopes).sum(1) / likelihood.sum(1), rtol=1e-12)


@pytest.mark.parametrize('process', ['linear', 'cosine', 'variance_preserving'])
def test_velocity_and_score_convert_as_mit_writes_them(process, x64):
  # [MIT 6.S184]: time r from noise to data, x_r = a z + b eps, so a(r) = alpha(1 - r), and velocities
  # change sign. u = (b^2 a'/a - b' b) s + (a'/a) x and s = (a u - a' x)/(b^2 a' - a b' b).
  process = rows.PROCESSES[process]

  @jax.jit
  def converted(t, x, y):
    state, score, velocity = process(t), outputs.score(process, t), outputs.u(process, t)
    given = dict(state=state, z=x, y=y)
    return (*state, *processes.rate(process, t), -remix(velocity, out=score, **given),
            remix(score, out=velocity, **given))

  x, y = np.random.default_rng(0).normal(size=(2, 3))
  a, b, *rates, u, s = map(np.asarray, converted(np.array([0.2, 0.5, 0.9]), x, y))
  a_rate, b_rate = np.negative(rates)
  np.testing.assert_allclose(u, (b**2 * a_rate / a - b_rate * b) * y + a_rate / a * x, rtol=1e-11)
  np.testing.assert_allclose(s, (a * -y - a_rate * x) / (b**2 * a_rate - a * b_rate * b), rtol=1e-11)


@pytest.mark.parametrize('temperature', [1.0, 0.3])
def test_dispersion_is_the_log_mean_of_a_gaussian_kernel_over_all_pairs(
    temperature, x64):
  # As the reference code has it: pairs twice, the diagonal's zeros once, distances over coordinates.
  h = np.random.default_rng(6).normal(size=(7, 2, 5)) + 30
  flat = h.reshape(7, -1)
  pairs = [np.sum((flat[i] - flat[j]) ** 2) / 10 for i in range(7) for j in range(i)]
  kernel = np.exp(-np.array(pairs + pairs + [0.0] * 7) / temperature)
  dispersive = jax.jit(Partial(losses.dispersive, temperature=temperature))
  found = dispersive(h)
  np.testing.assert_allclose(found, np.log(kernel.mean()), rtol=1e-11)
  # It falls as activations spread, from 0 where all are one.
  assert dispersive(2 * h) < found < 0
  np.testing.assert_allclose(dispersive(h[:1].repeat(7, 0)), 0, atol=1e-12)


def test_a_penalty_is_added_to_the_loss_but_not_to_the_error():
  call = lambda predict, **more: losses.matching_loss(
      KEYS, predict, X, process=processes.linear, output=outputs.u, density=densities.uniform, u=U,
      **more)
  plain, aux = call(_network)
  both = lambda z, t: (_network(z, t), z[:, 0])
  loss, same = call(both, penalty=lambda h: 3 * h[:, 0])
  z = _draws(processes.linear, U)[1]
  np.testing.assert_allclose(loss, plain + 3 * z[:, 0, 0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(call(both, penalty=lambda h: 2.0)[0], plain + 2, rtol=1e-5)
  np.testing.assert_array_equal(same['error'], aux['error'])
