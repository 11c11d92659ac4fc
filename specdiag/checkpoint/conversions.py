"""Commands of one line that convert formats that are not read to archives of numpy.savez, which are."""

from __future__ import annotations


def _command(imports: str, work: str, source: str) -> str:
    return f'convert it with `python -c "import numpy, sys, {imports}; {work}" {source} model.npz`, which is read'


_FLAT = (
    "numpy.savez(sys.argv[2], **{k: v.astype('f4') for k, v in t.flatten_dict(%s, sep='.').items() "
    "if hasattr(v, 'astype')})"
)
"""In float32, for numpy has no bfloat16 of its own; steps and the like are left out."""
HDF5 = _command(
    "h5py",
    "a = {}; h5py.File(sys.argv[1]).visititems(lambda n, v: a.update({n: v[()]}) if hasattr(v, 'shape') else None); "
    "numpy.savez(sys.argv[2], **a)",
    "FILE",
)
KERAS = _command(
    "keras",
    "numpy.savez(sys.argv[2], **{w.path: keras.ops.convert_to_numpy(w) for w in "
    "keras.saving.load_model(sys.argv[1]).weights})",
    "FILE",
)
FLAX = _command(
    "flax.serialization as s, flax.traverse_util as t",
    _FLAT % "s.msgpack_restore(open(sys.argv[1], 'rb').read())",
    "FILE",
)
ORBAX = (
    _command(
        "os, orbax.checkpoint as o, flax.traverse_util as t",
        _FLAT % "o.PyTreeCheckpointer().restore(os.path.abspath(sys.argv[1]))",
        "FOLDER",
    )
    + "; FOLDER is the one with _METADATA in it, such as the step's folder default"
)
_OF_TENSORFLOW = (
    "tensorflow as tf",
    "r = tf.train.load_checkpoint(sys.argv[1]); "
    "numpy.savez(sys.argv[2], **{n: r.get_tensor(n) for n in r.get_variable_to_shape_map()})",
)
TENSORFLOW = _command(*_OF_TENSORFLOW, "FOLDER")
SAVED_MODEL = _command(*_OF_TENSORFLOW, "FOLDER/variables/variables")
NEMO = "unpack it with 'tar -xf FILE', and give its model_weights.ckpt or its folder model_weights"
