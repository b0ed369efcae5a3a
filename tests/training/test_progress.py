"""A word before each long silence, on stderr."""

import sys

from eqflow.training import progress


def test_elsewhere_than_on_a_terminal_progress_is_lines(capsys, monkeypatch):
  assert list(progress.counted(iter('abc'), 3, 'letters')) == ['a', 'b', 'c']
  progress.say('compiling')
  assert capsys.readouterr() == ('', 'compiling\n'), 'nothing takes ten seconds'
  monkeypatch.setattr(progress, '_SECONDS', -1.0)
  assert list(progress.counted(iter('abc'), 3, 'letters')) == ['a', 'b', 'c']
  assert capsys.readouterr() == ('', 'letters: 1 of 3\nletters: 2 of 3\n')


def test_on_a_terminal_progress_is_a_bar(capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
  assert list(progress.counted(iter('abc'), 3, 'letters')) == ['a', 'b', 'c']
  assert 'letters:   0%' in capsys.readouterr().err


def test_of_several_processes_one_speaks(capsys, monkeypatch):
  monkeypatch.setattr(progress.jax, 'process_index', lambda: 1)
  progress.say('compiling')
  assert list(progress.counted(range(2), 2, 'steps')) == [0, 1] and not any(capsys.readouterr())
