"""python -m tests.faults.tables: the README's table from what is stored in results/."""

import pathlib

from tests.faults import results

README = pathlib.Path(__file__).parent / 'README.md'
BEGIN, END = '<!-- results -->', '<!-- end of results -->'
# Measurements, what their cases are called, and the counts that are to be zero.
ROWS = {
    'kills': ('killed {}', 'killed', ('lost', 'other', 'without', 'anew')),
    'points': ('killed {}', 'killed', ('lost', 'other', 'without', 'anew')),
    'signals': ('asked to stop while {}', 'stopped', ('lost', 'other', 'without', 'anew')),
    'damages': ('a file of the newest checkpoint {}', 'cases', ('silent',)),
    'configs': ('mutated configs, {}', 'cases', ('accepted',)),
    'nans': ('not finite: {}', 'cases', ('unclean',)),
    'disk': ('{}', 'cases', ('unrefused', 'broken', 'other')),
    'records': ('records, killed while read', 'killed', (
        'lost', 'repeated', 'misplaced', 'processes left', 'files left')),
    'stuck': ('one of two processes {}', 'stopped', ('late', 'misnamed', 'not ended', 'stackless')),
}


def lines() -> list[str]:
  """The table's rows: what, how many cases, what went wrong in them."""
  found = ['| what | cases | went wrong |', '|---|---|---|']
  for name, (told, counted, bad) in ROWS.items():
    rows = results.summed(results.read(name))
    if not rows:
      found.append(f'| {told.replace("{}", "...")} | not run | |')
    for what, row in rows.items():
      # What a case that is older than a count does not tell is not said to be 0.
      wrong = ', '.join(f'{key} {row[key]:,}' for key in bad if key in row)
      more = f'; slowest {row["slowest"]:g} s' if 'slowest' in row else ''
      more += f'; {row["epochs"]:,} epochs' if 'epochs' in row else ''
      found.append(f'| {told.format(what)} | {row.get(counted, 0):,} | {wrong}{more} |')
  return found


def filled(text: str) -> str:
  """The README with its table made of what is stored."""
  head, _, rest = text.partition(BEGIN)
  _, _, tail = rest.partition(END)
  return '\n'.join([head + BEGIN, *lines(), END]) + tail


if __name__ == '__main__':
  README.write_text(filled(README.read_text()))
