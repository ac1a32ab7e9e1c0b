"""The emulated device: what would wait on a real one fails, and a graph computes from what is there at replay."""

import pytest
import torch


@pytest.fixture
def strict():
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.Tensor.nonzero, bool], ids=["item", "nonzero", "bool"])
def test_reading_a_value_fails_where_waiting_does(read, strict):
    with pytest.raises(RuntimeError, match="waits for the device"):
        read(torch.ones((), device="cuda"))


def test_reading_a_value_fails_during_a_capture():
    with pytest.raises(RuntimeError, match="waits for the device"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.ones(3, device="cuda").sum().item()


def test_a_graph_is_replayed_on_what_is_there_now():
    x, graph = torch.ones(3, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = (2 * x).cumsum(0)
    x.fill_(5)
    assert y.tolist() == [2, 4, 6]
    graph.replay()
    assert y.tolist() == [10, 20, 30]
