"""Traffic of programs written out as text."""

from eqflow.planning import _collectives, _hlo


def test_an_asynchronous_collective_counts_once_with_all_of_its_tuple():
  text = '''ENTRY %main (p: f32[8], q: bf16[4]) -> (f32[8], bf16[4]) {
  %p = f32[8]{0} parameter(0)
  %q = bf16[4]{0:T(256)(128)(2,1)S(1)} parameter(1)
  %s = (f32[8]{0}, /*index=1*/bf16[4]{0:T(256)(128)(2,1)}) all-reduce-start(%p, %q), replica_groups={}
  ROOT %d = (f32[8]{0}, bf16[4]{0}) all-reduce-done(%s)
}'''
  [one] = _collectives.found(_hlo.parse(text), dict(data=2))
  assert (one.kind, one.size) == ('all-reduce', 8 * 4 + 4 * 2)
  assert _hlo.traffic(_hlo.parse(text)) == 2 * one.size
  assert _hlo.traffic(_hlo.parse(text), 'S(1)') == 2 * one.size - 4 * 2


def test_the_workspace_of_a_library_call_does_not_count_as_traffic():
  text = '''
ENTRY %main {
  %a = f32[4,8]{1,0} parameter(0)
  %b = s8[8,16]{1,0} parameter(1)
  %dot = (f32[4,16]{1,0}, s8[33554432]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul"
  %own = (f32[4,16]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="mine"
}'''
  read, made = 4 * 4 * 8 + 8 * 16, 4 * 4 * 16
  assert _hlo.traffic(_hlo.parse(text)) == 2 * (read + made) + 64
