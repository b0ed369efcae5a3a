"""Data sets that TFDS has prepared, read from their files: no builder code, no TensorFlow."""

import dataclasses
import io
import os
import pathlib
import re

from jaxtyping import Int
import numpy as np

from eqflow import files
from eqflow.data import images, index
from eqflow.data.records import Labels, Part, Records, Source


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
  """Records of a TFDS data source, decoded on access; the label is 0 for data without labels.

  The records are in the files folder/shards.
  """

  encoded: Records
  image: str
  label: str | None
  channels: int
  size: tuple[int, int] | None
  folder: str
  shards: tuple[str, ...]

  def __len__(self):
    return len(self.encoded)

  def __getitem__(self, i):
    record = self.encoded[i]
    x = images.read(io.BytesIO(record[self.image]), channels=self.channels, size=self.size)
    return {'x': x, 'label': int(record[self.label]) if self.label else 0}

  def labels(self, rows: Int[np.ndarray, 'b']) -> Labels:
    """The labels of the records numbered `rows`, without decoding their images."""
    read = lambda row: int(self.encoded[int(row)][self.label])
    return np.array([read(row) for row in rows] if self.label else np.zeros(len(rows)), np.int32)

  def parts(self) -> list[Part]:
    """The files that the records are in."""
    return index.parts(self.folder, self.shards)


def source(name: str, *, split: str, data_dir: str | os.PathLike | None,
           size: tuple[int, int] | None = None) -> Source:
  """The split of a prepared TFDS data set; images are cropped to (height, width), size=None keeps them.

  `name` is 'cifar10', 'imagenet_resized/64x64' or either with ':version'; `split` may be sliced and
  added ('train[:90%]', 'train+test'). Raises FileNotFoundError if data_dir has no such data set,
  and ValueError for an unknown split, a file format without random access, features without exactly
  one uint8 image, and images of several sizes with size=None.
  """
  import tensorflow_datasets as tfds
  place = find(name, data_dir)
  if place is None:
    raise FileNotFoundError(_unprepared(name, data_dir))
  # Also before TFDS reads them: opening a FIFO would wait forever.
  for path in pathlib.Path(place).iterdir():
    if not path.is_dir():
      files.check_regular(path, path.stat())
  try:
    builder = tfds.builder_from_directory(place)
  # TFDS and protobuf raise errors of their own.
  except Exception as error:
    raise ValueError(f'{name} in {place} cannot be read ({error}): prepare it again, into another '
                     f'data_dir, with\n  {_command(name, "ELSEWHERE")}') from error
  features = dict(builder.info.features.items())
  image = _image_feature(name, features, tfds)
  shape = features[image].shape if size is None else (*size, features[image].shape[-1])
  if None in shape:
    raise ValueError(f'{name}: its images have no fixed shape ({features[image].shape}); set '
                     'size=, to which they are cropped')
  _check_split(name, split, builder)
  skipped = {key: tfds.decode.SkipDecoding() for key in _image_keys(features, tfds)}
  try:
    encoded = builder.as_data_source(split=split, decoders=skipped)
  except NotImplementedError as error:
    raise ValueError(f'{name} in {place} is in the format {builder.info.file_format.value}, which '
                     'has no random access: prepare it again as array_record, '
                     f'into another data_dir, with\n  {_command(name, "ELSEWHERE")}') from error
  labelled = isinstance(features.get('label'), tfds.features.ClassLabel)
  shards = tuple(os.path.basename(each.filename)
                 for each in builder.info.splits[split].file_instructions)
  records = Encoded(encoded, image, 'label' if labelled else None, shape[-1], size, place, shards)
  classes = tuple(features['label'].names or ()) if labelled else ()
  return Source(records, tuple(shape), features['label'].num_classes if labelled else 0, name, classes)


def find(name: str, data_dir: str | os.PathLike | None) -> str | None:
  """The folder of the prepared data set in its newest version, or in the version of 'name:version'."""
  name, _, version = name.partition(':')
  found = [info.parent for info in _root(data_dir).glob(f'{name}/{version or "*"}/{_INFO}')]
  numbers = lambda folder: [int(digits) for digits in re.findall(r'\d+', folder.name)]
  return os.fspath(max(found, key=numbers)) if found else None


def prepared(data_dir: str | os.PathLike | None) -> list[str]:
  """The names, with versions, of the data sets prepared under data_dir."""
  root = _root(data_dir)
  found = [*root.glob(f'*/*/{_INFO}'), *root.glob(f'*/*/*/{_INFO}')]
  parts = [info.parent.relative_to(root).parts for info in found]
  return sorted(f'{"/".join(path[:-1])}:{path[-1]}' for path in parts)


_INFO = 'dataset_info.json'


def _root(data_dir):
  import tensorflow_datasets as tfds
  # As everywhere in TFDS: without a data_dir it is $TFDS_DATA_DIR or ~/tensorflow_datasets.
  return files.plain(data_dir or tfds.core.constants.DATA_DIR)


def _command(name, data_dir):
  return f'python -m eqflow.data.prepare --name={name} --data_dir={data_dir}'


def _unprepared(name, data_dir):
  root = data_dir or os.fspath(_root(data_dir))
  there = ', '.join(prepared(data_dir)) or 'nothing'
  return (f'the data set {name!r} is not prepared in data_dir={os.fspath(root)!r}, which has: '
          f'{there}. Prepare it once with\n  {_command(name, root)}\n(some data sets need TensorFlow '
          'for that, never for reading: pip install tensorflow-cpu importlib_resources, best in a '
          "separate environment). Without TFDS: 'digits', 'folder' (data_dir is a folder of "
          "images), 'moons', 'checkerboard', 'rings', 'mixture'")


def _image_keys(features, tfds):
  return [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]


def _image_feature(name, features, tfds):
  keys = _image_keys(features, tfds)
  if 'image' not in keys and len(keys) != 1:
    raise ValueError(f"{name} has the image features {keys}: expected one, or one named 'image' "
                     f'(all its features: {sorted(features)})')
  key = 'image' if 'image' in keys else keys[0]
  feature = features[key]
  if feature.np_dtype != 'uint8' or feature.shape[-1] not in images.MODES:
    raise ValueError(f'{name}: images are {feature.np_dtype} {feature.shape}; eqflow reads uint8 '
                     f'with {sorted(images.MODES)} channels')
  return key


def _check_split(name, split, builder):
  allowed = sorted(builder.info.splits)
  try:
    count = builder.info.splits[split].num_examples
  except (KeyError, ValueError) as error:
    raise ValueError(f"{name} has no split {split!r}: choose from {allowed}, sliced or added as in "
                     f"'{allowed[0]}[:90%]' or '{allowed[0]}+{allowed[-1]}'") from error
  if not count:
    raise ValueError(f'the split {split!r} of {name} has no records: use a wider slice')
