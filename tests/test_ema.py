"""Averages of the parameters: the recursion, its warm-up, several at once."""

from jax import numpy as jnp
import numpy as np

from eqflow import ema


def test_each_average_follows_its_own_decay():
  path = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
  emas = ema.init({'w': jnp.asarray(path[0])}, ['fast', 'slow'])
  keep = {'fast': 0.5, 'slow': 0.9}
  for p in path[1:]:
    emas = ema.update(emas, {'w': jnp.asarray(p)}, keep)
  for name, decay in keep.items():
    # sum_i (1 - decay) decay^(n - i) p_i, the first with weight decay^n.
    weight = (1 - decay) * decay ** np.arange(49)[::-1]
    expected = decay**49 * path[0] + weight @ path[1:]
    np.testing.assert_allclose(emas[name]['w'], expected, rtol=1e-4, atol=1e-6)


def test_warm_up_forgets_the_start():
  held = np.prod([float(ema.warmed(0.999, n)) for n in range(3000)])
  assert held < 1e-6, f'after 3,000 updates {held:.1e} of the start is left'
  assert 0.999**3000 > 0.04, 'which without warm-up would be 5 %'
  assert float(ema.warmed(0.999, 10**7)) == np.float32(0.999)


def test_averages_do_not_alias_the_parameters():
  params = {'w': jnp.ones(2)}
  mean = ema.init(params, ['a'])['a']['w']
  assert mean.unsafe_buffer_pointer() != params['w'].unsafe_buffer_pointer()
