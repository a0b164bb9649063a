"""Promises of the door to TensorFlow."""

import numpy as np
import pytest

from common.tf import empty_for_tf, tf


@pytest.mark.parametrize("shape", [(3,), (70_000,), (2, 200, 200, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_an_array_for_tensorflow_is_whole_and_begins_where_tensorflow_takes_it(shape, dtype):
    array = empty_for_tf(shape, dtype)
    assert array.shape == shape and array.dtype == dtype and array.flags.c_contiguous
    if array.nbytes > 1 << 16:
        assert array.ctypes.data % 64 == 0
    array[...] = np.arange(array.size).reshape(shape) % 100
    taken = tf.numpy_function(lambda: array, [], dtype, stateful=False)
    np.testing.assert_array_equal(taken, array)
