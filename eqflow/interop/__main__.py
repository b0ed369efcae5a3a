"""python -m eqflow.interop in.pt out.safetensors: see `convert`."""

from eqflow.interop import convert

if __name__ == '__main__':
  convert.main()
