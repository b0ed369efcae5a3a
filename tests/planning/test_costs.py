"""Time on links against arithmetic by hand, and errors of compilers that run out of memory."""

import jax
import numpy as np
import pytest

from eqflow.planning import _collectives, chips, costs, report


@pytest.mark.parametrize('hosts,expected', [
    (1, 2 * 1e9 * 7 / 8 / 450e9),
    # Each of a host's 8 devices sends its eighth of the host's sum, twice, to 15 of 16 hosts.
    (16, 2 * 1e9 / 8 * 15 / 16 / 50e9)])
def test_only_the_reduced_sum_of_a_host_crosses_to_other_hosts(hosts, expected):
  one = _collectives.Collective('all-reduce', 10**9, np.arange(8 * hosts)[None], ('data',), 1)
  host_of = np.arange(8 * hosts) // 8
  assert costs.link_seconds(one, chips.CHIPS['h100'], host_of) == pytest.approx(expected)
  linked = costs.link_seconds(one, chips.CHIPS['v5p'], host_of)
  assert linked == _collectives.moved('all-reduce', 10**9, 8 * hosts) / 600e9


@pytest.mark.parametrize('said', [
    'Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.',
    'E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries '
    '(20.50G) exceeds available HBM (15.75G). HLO module: jit_step.'])
def test_out_of_memory_errors_give_the_missing_bytes(said):
  found = dict(topology='v5e:2x2', devices=4, mesh=dict(data=4, fsdp=1, tensor=1), batch=8,
               accumulate=1, remat=False, undivided={}, chip=chips.CHIPS['v5e']._asdict(),
               state=dict(parameters=2**30, optimizer=2**31, averages=2**30, other=0))
  found |= costs.out_of_memory(jax.errors.JaxRuntimeError(said), 2**32) | dict(
      flops=dict(formula=10**12, compiler=None))
  assert found['bytes']['total'] == 20.5 * 2**30 and not found['fits']
  assert found['bytes']['activations'] == 16.5 * 2**30
  assert 'does not fit, by 4.75 GiB' in report.text(found)
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    costs.out_of_memory(jax.errors.JaxRuntimeError('INTERNAL: else'), 1)
