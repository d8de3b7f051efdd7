"""The picture of a graph."""

import numpy as np
import pytest

from layers.autograd import Tensor, draw, ops
from layers.autograd.draw import layout
from layers.autograd.tensor import topological_order

pytestmark = pytest.mark.once


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_shows_values_and_gradients():
    a = Tensor(2.0, requires_grad=True, name="a")
    b = Tensor(3.0, requires_grad=True, name="b")
    c = a * b + a
    shown = texts(draw(c, title="c = ab + a"))
    assert "a\nvalue 2\ngrad  4" in shown
    assert "b\nvalue 3\ngrad  2" in shown
    assert "[multiply]\nvalue 6\ngrad  1" in shown
    assert "[add]\nvalue 8\ngrad  1" in shown
    assert a.grad is None
    c.backward()  # the picture has not used up the graph
    assert a.grad.item() == 4.0


def test_large_values_are_summarized():
    x = Tensor(np.ones((4, 5)), requires_grad=True, name="x")
    assert "x\nvalue 4x5, norm 4.47" in texts(draw(ops.exp(x), gradients=False))


def test_parents_stand_left_of_their_children_and_no_two_boxes_share_a_place():
    x = Tensor(1.0, requires_grad=True)
    y = ops.tanh(x * x + ops.sin(x)) * x
    nodes = topological_order(y)
    places = layout(nodes)
    assert len(set(places.values())) == len(nodes)
    for node in nodes:
        for parent in node.parents:
            assert places[id(parent)][0] < places[id(node)][0]


def test_is_written_to_a_file(tmp_path):
    x = Tensor(1.0, requires_grad=True)
    draw(ops.exp(x)).savefig(tmp_path / "graph.png")
    assert (tmp_path / "graph.png").stat().st_size > 1000
