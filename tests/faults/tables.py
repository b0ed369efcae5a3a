"""python -m tests.faults.tables: updates the table in README.md from results/."""

import pathlib

from tests.faults import results

README = pathlib.Path(__file__).parent / 'README.md'
BEGIN, END = '<!-- results -->', '<!-- end of results -->'
# Measurements, the names of their cases, and the counts that should be zero.
ROWS = {
    'kills': ('killed {}', 'killed', ('lost', 'other', 'unsaved', 'regressed')),
    'points': ('killed {}', 'killed', ('lost', 'other', 'unsaved', 'regressed')),
    'signals': ('asked to stop while {}', 'stopped', ('lost', 'other', 'unsaved', 'regressed')),
    'damages': ('a file of the newest checkpoint {}', 'cases', ('silent',)),
    'configs': ('mutated configs, {}', 'cases', ('accepted',)),
    'nans': ('not finite: {}', 'cases', ('unclean',)),
    'disk': ('{}', 'cases', ('unreported', 'broken', 'other')),
    'public': ('every public function, {}', 'cases', ('wrong',)),
    'records': ('records, killed while read', 'killed', (
        'lost', 'repeated', 'misplaced', 'processes left', 'files left')),
    'logs': ('the log of a run that is {} at random', 'interrupted', ('changed',)),
    'paths': ('a run in a folder with an odd name, {}', 'cases', ('lost', 'other', 'unnamed')),
    'commands': ('mutated {}', 'cases', ('tracebacks', 'unclear')),
    'startup': ('{}', 'cases', ()),
    'streams': ('{}', 'cases', ('stopped', 'other', 'unsaid', 'unreported')),
    'datasets': ('data changed between stop and resume: {}', 'cases', (
        'unequal', 'accepted', 'unnamed')),
    'images': ('odd {}', 'cases', ('tracebacks', 'unnamed', 'over', 'wrong')),
    'hostile': ('{}, 4 GiB allowed', 'cases', ('tracebacks', 'over', 'hung', 'idle')),
    'stuck': ('one of two processes {}', 'stopped', ('late', 'misnamed', 'not ended', 'stackless')),
}


def lines() -> list[str]:
  """The rows of the table: what, number of cases, what went wrong."""
  found = ['| what | cases | went wrong |', '|---|---|---|']
  for name, (label, counted, bad) in ROWS.items():
    rows = results.summed(results.read(name))
    if not rows:
      found.append(f'| {label.replace("{}", "...")} | not run | |')
    for what, row in rows.items():
      # Older cases lack some counts, which are not reported as 0.
      wrong = ', '.join(f'{key} {row[key]:,}' for key in bad if key in row)
      more = f'; slowest {row["slowest"]:g} s' if 'slowest' in row else ''
      more += f'; {row["epochs"]:,} epochs' if 'epochs' in row else ''
      more += f'; {row["lines"]:,} lines' if 'lines' in row else ''
      found.append(f'| {label.format(what)} | {row.get(counted, 0):,} | {wrong}{more} |')
  return found


def filled(text: str) -> str:
  """The README, its table filled from the stored results."""
  head, _, rest = text.partition(BEGIN)
  _, _, tail = rest.partition(END)
  return '\n'.join([head + BEGIN, *lines(), END]) + tail


if __name__ == '__main__':
  README.write_text(filled(README.read_text()))
