"""A file is replaced as a whole or stays as it was; nothing else is left in its folder."""

import os
import socket
import subprocess
import sys

import pytest

from eqflow import files
from tests import ROOT


def test_a_folder_is_replaced_as_a_whole_or_stays_as_it_was(tmp_path):
  for content in ('first', 'second'):
    with files.replacing_folder(tmp_path / 'a') as new:
      files.write_text(new / content, content)
      assert content == 'first' or (tmp_path / 'a/first').exists()
  assert os.listdir(tmp_path) == ['a'] and os.listdir(tmp_path / 'a') == ['second']
  with pytest.raises(ValueError), files.replacing_folder(tmp_path / 'a') as new:
    raise ValueError
  assert os.listdir(tmp_path) == ['a'] and (tmp_path / 'a/second').read_text() == 'second'


def test_a_folder_is_what_it_resolves_to(tmp_path, monkeypatch):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'link').symlink_to('run')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  for same in ('run', './run', 'run/', 'link', 'link/../run', f'{tmp_path}/run', '~/run', '~/link/'):
    assert files.resolved(same) == tmp_path / 'run', same
  assert files.resolved('./~') == tmp_path / '~'
  (tmp_path / 'circle').symlink_to('circle')
  for wrong in ('gs://bucket/run', 'circle/x', '~nobody-of-this-name/x', 'b' * 300):
    with pytest.raises(ValueError, match=wrong):
      files.resolved(wrong)


def test_a_plain_name_leads_to_a_folder_of_any_name(tmp_path):
  assert files.plain(tmp_path) == tmp_path
  for name in ('lr=[0.003]', 'C:\\x', os.fsdecode(b'\xff')):
    link = files.plain(tmp_path / name)
    link.resolve().mkdir()
    (link / 'file').write_text(ascii(name))
    assert (tmp_path / name / 'file').read_text() == ascii(name) and str(link).isascii()


def test_the_file_has_the_new_content_at_the_end_of_the_block(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text('old')
  with files.replacing(path) as file:
    file.write(b'new')
    file.flush()
    assert path.read_text() == 'old'
  assert path.read_text() == 'new' and os.listdir(tmp_path) == ['a.json']


@pytest.mark.parametrize('failure', ['block', 'fsync', 'replace'])
@pytest.mark.parametrize('existed', [False, True])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failure,
                                                                 existed):
  def full(*_):
    raise OSError(28, 'No space left on device')

  path = tmp_path / 'a.json'
  if existed:
    path.write_text('old')
  with monkeypatch.context() as patch, pytest.raises(OSError, match='28'):
    if failure != 'block':
      patch.setattr(os, failure, full)
    with files.replacing(path) as file:
      file.write(b'new')
      if failure == 'block':
        full()
  assert os.listdir(tmp_path) == ['a.json'] * existed
  assert not existed or path.read_text() == 'old'


def test_a_killed_write_leaves_the_old_file_and_the_next_one_removes_its_trace(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text('old')
  code = ('import os; from eqflow import files\n'
          f'with files.replacing({str(path)!r}) as file:\n'
          '  file.write(b"new"); file.flush(); os._exit(9)')
  assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 9
  assert path.read_text() == 'old'
  with files.replacing(path) as file:
    file.write(b'newer')
  assert path.read_text() == 'newer' and os.listdir(tmp_path) == ['a.json']


KINDS = {
    'FIFO': os.mkfifo, 'folder': os.mkdir, 'device': lambda path: os.symlink('/dev/zero', path),
    'socket': lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('read', [files.opened, lambda path: files.read(path, most=9), files.read_json])
def test_what_is_not_a_regular_file_is_rejected_at_once(tmp_path, monkeypatch, kind, read):
  monkeypatch.chdir(tmp_path)
  KINDS[kind](tmp_path / 'x')
  with pytest.raises(ValueError, match=f'x is a {kind}.*regular file'):
    read(tmp_path / 'x')


def test_no_more_is_read_than_allowed(tmp_path):
  path = tmp_path / 'x'
  path.write_bytes(b'12345')
  assert files.read(path, most=5) == b'12345' and files.read_json(path, most=5) == 12345
  os.truncate(path, 2**40)
  with pytest.raises(ValueError, match='1,099,511,627,776 bytes.* 4 '):
    files.read(path, most=4)
  with pytest.raises(FileNotFoundError, match='nothing'):
    files.read(tmp_path / 'nothing', most=4)


@pytest.mark.parametrize('text', [
    '[' * 100_000, '[' * 101 + ']' * 101, '{"a":' * 500 + '1' + '}' * 500])
def test_json_that_is_nested_too_deeply_is_rejected(tmp_path, text):
  (tmp_path / 'x').write_text(text)
  with pytest.raises(ValueError, match='x has .* nested more than 100 times'):
    files.read_json(tmp_path / 'x')
  (tmp_path / 'x').write_text('[' * 100 + ']' * 100)
  files.read_json(tmp_path / 'x')


def test_any_name_can_be_shown():
  name = os.fsdecode(b'a\xff\xc3\xa4.png')
  assert files.shown(name) == 'a\\xffä.png'


def test_the_content_is_on_disk_before_its_name_and_the_name_before_the_return(tmp_path, monkeypatch):
  calls, replace, path = [], os.replace, tmp_path / 'a.json'
  monkeypatch.setattr(os, 'fsync', lambda fd: calls.append(os.readlink(f'/proc/self/fd/{fd}')))
  monkeypatch.setattr(os, 'replace', lambda a, b: (calls.append(f'-> {b}'), replace(a, b)))
  with files.replacing(path) as file:
    file.write(b'new')
  assert calls == [f'{path}.partial', f'-> {path}', str(tmp_path)]
