"""Tensors in payloads: views of the same memory, headers that must fit the bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from meshnn.errors import PeerError
from meshnn.wire.codec import Codec
from meshnn.wire.tensor import ALIGNMENT_BYTES, DTYPES, Array, TensorHeader, layout, payload_buffers, tensor_views

arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


@given(tensors=st.lists(arrays, max_size=5))
def test_what_is_sent_comes_back_byte_for_byte(tensors: list[Array]) -> None:
    """Any tensors, empty and scalar ones too, come out of one payload as they went in."""
    headers = [TensorHeader(index, tensor.shape, str(tensor.dtype)) for index, tensor in enumerate(tensors)]
    payload = bytearray().join(payload_buffers(tensors))
    views = tensor_views(headers, memoryview(payload))
    assert [view.tobytes() for view in views] == [tensor.tobytes() for tensor in tensors]
    assert [(view.shape, view.dtype) for view in views] == [(tensor.shape, tensor.dtype) for tensor in tensors]


def test_views_share_the_payloads_memory() -> None:
    """Nothing is copied: writing to the payload shows in the view, and a contiguous array is sent in place."""
    source = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert np.shares_memory(source, np.asarray(payload_buffers([source])[0]))
    payload = bytearray(source.tobytes())
    (view,) = tensor_views([TensorHeader(0, (2, 3), "int32")], memoryview(payload))
    payload[0] = 99
    assert view[0, 0] == 99


def test_arrays_that_are_not_contiguous_are_sent_in_order() -> None:
    """A slice of columns arrives as it looks, not as it lies."""
    source = np.arange(12, dtype=np.uint8).reshape(3, 4)[:, 1:3]
    (view,) = tensor_views([TensorHeader(0, (3, 2), "uint8")], memoryview(b"".join(payload_buffers([source]))))
    assert (view == source).all()


def test_each_tensor_begins_at_a_multiple_of_64() -> None:
    """The layout is the same for both ends: aligned, in order, no padding at the end."""
    assert layout([1, 64, 0, 65]) == ((0, ALIGNMENT_BYTES, 128, 128), 193)
    assert layout([]) == ((), 0)


@pytest.mark.parametrize(
    "header",
    [
        TensorHeader(0, (4,), "int8"),
        TensorHeader(0, (2,), "int8"),
        TensorHeader(0, (3,), "object"),
        TensorHeader(0, (3,), "S1"),
        TensorHeader(0, (3,), "bfloat16"),
        TensorHeader(0, (3,), "no such type"),
        TensorHeader(0, (-1, -3), "int8"),
        TensorHeader(0, (1,) * 9, "int8"),
        TensorHeader(0, (0, 2**62), "complex64"),
    ],
)
def test_a_header_that_does_not_fit_its_bytes_is_refused(header: TensorHeader) -> None:
    """Shape, type and bytes must agree; types without a fixed meaning never travel."""
    with pytest.raises(PeerError):
        tensor_views([header], memoryview(b"abc"))


def test_headers_travel_in_messages_within_bounds() -> None:
    """A header survives the codec; one with a shape out of bounds is refused there."""
    codec = Codec((TensorHeader,))
    header = TensorHeader(3, (1, 2, 3), "float32", (0, 4, 0))
    assert codec.decode(codec.encode(header)) == header
    for bad in (TensorHeader(-1, (1,), "int8"), TensorHeader(0, (2**31,), "int8"), TensorHeader(0, (1,) * 9, "int8")):
        with pytest.raises(PeerError):
            codec.decode(codec.encode(bad))
