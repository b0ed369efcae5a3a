"""Downloads and prepares a TFDS data set for eqflow:   python -m eqflow.data.prepare --help"""

import argparse
import os


def prepare(name: str, data_dir: str | os.PathLike) -> None:
  """Writes the data set `name` below data_dir as array_record files, which have random access.

  Raises ImportError, with what to install, where the data set's own code needs TensorFlow.
  """
  import tensorflow_datasets as tfds
  if name.partition(':')[0] == 'digits':
    from eqflow.data import digits
    return digits.prepare(data_dir)
  try:
    tfds.builder(name, data_dir=data_dir, file_format='array_record').download_and_prepare()
  except ImportError as error:
    raise ImportError(f'preparing {name} (not reading it) needs a missing package '
                      f'({error}): run pip install tensorflow-cpu importlib_resources, best in a '
                      'separate environment, and run this again there') from error


def main() -> None:
  """`prepare` with --name and --data_dir from the command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition(':')[0])
  parser.add_argument('--name', required=True, help='as in TFDS: cifar10, imagenet_resized/64x64')
  parser.add_argument('--data_dir', required=True, help='where to write it')
  prepare(**vars(parser.parse_args()))


if __name__ == '__main__':
  main()
