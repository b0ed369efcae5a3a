"""Every error in a config raises before anything compiles, and names its key."""

import ast

import pytest

from tests import config_file
from tests.faults import configs, mutations

SHORT, ALL = 60, 600


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('rejected')


@pytest.mark.parametrize('first,count', [
    (0, SHORT), pytest.param(SHORT, ALL - SHORT, marks=pytest.mark.long)])
def test_every_mutated_config_is_rejected_by_its_key(folder, first, count):
  chosen = mutations.drawn(ALL, seed=0)[first:first + count]
  assert len(set(map(str, chosen))) == count, 'two mutations are equal'
  with configs.nothing_compiled():
    found = {str(mutation): configs.judged(mutation, folder) for mutation in chosen}
  wrong = {name: said for name, said in found.items() if said != 'rejected'}
  assert not wrong, f'{len(wrong)} of {count} were not rejected: {wrong}'


def test_mutations_reach_every_key_of_every_config():
  reached = {path for mutation in mutations.drawn(ALL, seed=0) for path, _ in mutation.changes}
  every = {path for name, variants in mutations.CONFIGS.items()
           for variant in variants or config_file(name).VARIANTS
           for path, _ in mutations.leaves(config_file(name).get_config(variant))}
  assert every <= reached, f'no mutation changes {sorted(every - reached)}'


def test_an_unchanged_config_is_accepted(folder):
  with configs.nothing_compiled():
    whole = mutations.Mutation('digits', 'eqm', (), ())
    assert configs.judged(whole, folder / 'whole') == 'accepted'


def test_the_repr_of_a_mutation_is_python():
  # It is written into a config file for the command line.
  for mutation in mutations.drawn(ALL, seed=0):
    ast.parse(repr(mutation))


@pytest.mark.long
def test_the_command_line_rejects_mutations_in_one_line(folder):
  found = configs.reject_by_command(folder, 8, seed=1)
  assert found['rejected'] == found['cases'] == 8
