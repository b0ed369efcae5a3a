"""Mutated command lines: each is rejected in one line of ours, or is a command that runs.

Everything happens in this process; what is accepted stops before anything compiles.
"""

import collections
import contextlib
import io
import pathlib
import random
import sys
import traceback
from unittest import mock

from absl.testing import flagsaver

from eqflow import main
from eqflow.commands import options, plan
from eqflow.config import schema
from tests import ROOT
from tests.faults import configs

TOY = f'--config={ROOT}/configs/toy.py'
VALUES = (
    '', 'x', '-1', '0', '1e9', '1000000000000', 'nan', '-inf', '3,', ',', '3+', '+', '[1]', 'None',
    'yes', "{'a': 1}", "{'name': heun}", "{'name': 'heun'", '(1,', 'lambda: 3', '3 3', '=', '%s{0}',
    "__import__('os').getcwd()", 'a' * 3000, 'a\nb', '\udcff', '/dev/null', '/', '1' * 400, '((((',
    '0x10', '1_000', '"', '\\', '$HOME', '*')
# What a config file may do wrong, by name.
FILES = {
    'dict.py': 'def get_config():\n  return dict(seed=1)\n',
    'raises.py': 'def get_config():\n  raise RuntimeError("no GPU")\n',
    'value.py': 'def get_config():\n  raise ValueError("bad width")\n',
    'nothing.py': 'x = 3\n',
    'none.py': 'def get_config():\n  return None\n',
    'three.py': 'get_config = 3\n',
    'syntax.py': 'def get_config(:\n  return 3\n',
    'absent.py': 'import not_there\n\n\ndef get_config():\n  return 3\n',
    'name.py': 'def get_config():\n  return nmae\n',
    'exits.py': 'import sys\nsys.exit(0)\n',
    'recurses.py': 'def get_config():\n  return get_config()\n',
    'divides.py': 'def get_config():\n  return 1 / 0\n',
    'arguments.py': 'def get_config(a, b):\n  return 3\n',
    'typo.py': 'from configs import toy\n\n\ndef get_config():\n  config = toy.get_config().lock()\n'
               '  config.train.batc = 3\n  return config\n',
    'section.py': 'from configs import toy\n\n\ndef get_config():\n  config = toy.get_config()\n'
                  '  del config.loss\n  return config\n',
    'memory.py': 'def get_config():\n  raise MemoryError\n',
    'empty.json': '', 'list.json': '[1, 2]', 'cut.json': '{"seed": 1', 'deep.json': '[' * 100_000,
    'few.json': '{"seed": 1}', 'text.txt': 'seed = 1\n',
}


def drawn(count: int, seed: int, folder: pathlib.Path) -> list[list[str]]:
  """`count` command lines; the kinds of mutations in turn."""
  chance, workdir = random.Random(seed), f'--workdir={folder / "run"}'
  for name, text in FILES.items():
    (folder / name).write_text(text)
  flag = lambda: chance.choice([*options.OPTIONS, 'mode', 'workdir', 'config'])
  key = lambda: chance.choice([*schema.KEYS, *filter(None, schema.SECTIONS)])
  value, mode = lambda: chance.choice(VALUES), lambda: f'--mode={chance.choice(main.MODES)}'

  def misspelt(name):
    at = chance.randrange(len(name))
    return name[:at] + chance.choice(('', name[at] * 2, 'x', '.', '-')) + name[at + 1:]

  kinds = [
      lambda: [TOY, workdir, mode(), f'--{flag()}={value()}'],
      lambda: [TOY, workdir, mode(), f'--{flag()}', value()],
      lambda: [TOY, workdir, mode(), f'--{misspelt(flag())}={value()}'],
      lambda: [TOY, workdir, f'--config.{key()}={value()}'],
      lambda: [TOY, workdir, f'--config.{key()}={value()}', f'--config.{key()}={value()}'],
      lambda: [TOY, workdir, f'--config.{misspelt(key())}={value()}'],
      lambda: [TOY, workdir, f'--config.{key()}.{chance.choice(("x", "name", "0", ""))}={value()}'],
      lambda: [f'--config={folder / chance.choice(list(FILES))}', workdir, mode()],
      lambda: [f'--config={folder / chance.choice(list(FILES))}:{value()}', workdir],
      lambda: [f'{TOY}:{value()}', workdir],
      lambda: [f'--config={value()}', workdir, f'--config.{key()}={value()}'],
      lambda: [TOY, f'--workdir={value()}', '--mode=evaluate'],
      lambda: chance.sample([TOY, workdir, mode(), f'--config.{key()}={value()}', value()], 4),
      lambda: [TOY, workdir, f'--no{flag()}', f'-{flag()}={value()}', '--']]
  return [kinds[i % len(kinds)]() for i in range(count)]


def judged(argv: list[str]) -> str:
  """'rejected' or 'accepted', or what happened instead."""
  said, argv = io.StringIO(), ['eqflow.main', *argv]
  with (flagsaver.flagsaver(), mock.patch.object(sys, 'argv', argv), contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()), configs.nothing_compiled(),
        mock.patch.object(plan, 'compiled', configs.accept)):
    try:
      main.main(main.parse(argv))
      return 'ended without any work'
    except configs.Accepted:
      return 'accepted'
    except SystemExit as ended:
      code = ended.code
    except BaseException:
      return traceback.format_exc()[-600:]
  lines = [line for line in said.getvalue().splitlines() if line.startswith('eqflow: ')]
  text = '\n'.join(lines)
  if code != 2 or len(lines) != 1 or 'Traceback' in said.getvalue():
    return f'exit code {code}, {said.getvalue()[-600:]}'
  return f'unclear: {text}' if '<ast.' in text or 'object at 0x' in text else 'rejected'


def reject(folder: pathlib.Path, wanted: int, seed: int) -> dict[str, int | str]:
  """{'what', 'cases', 'rejected', 'tracebacks', 'unclear'} of `wanted` command lines."""
  found = collections.Counter(cases=0, rejected=0, tracebacks=0, unclear=0)
  for argv in drawn(wanted, seed, folder):
    said = judged(argv)
    good = said in ('rejected', 'accepted')
    found.update(cases=1, rejected=said == 'rejected', unclear=said.startswith('unclear'),
                 tracebacks=not good and not said.startswith('unclear'))
    if not good:
      print(ascii(argv)[:500], '->', ascii(said), flush=True)
  return {'what': 'command lines', **found}
