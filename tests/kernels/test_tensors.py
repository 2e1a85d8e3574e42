import contextlib
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from gr2.kernels.tensors import check_grid, launch  # noqa: E402


class Kernel:
    """Notes the current device, the grid and the arguments of its launches."""

    def __init__(self, current):
        self.current, self.launches = current, []

    def __getitem__(self, grid):
        return lambda *arguments, **sizes: self.launches.append((self.current[-1], grid, arguments, sizes))


@pytest.fixture
def current(monkeypatch):
    """Two CUDA devices of which the last of the list is current, as torch has it."""
    stack = [0]

    @contextlib.contextmanager
    def device(chosen):
        stack.append(chosen.index)
        yield
        stack.pop()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: stack[-1])
    monkeypatch.setattr(torch.cuda, "device", device)
    return stack


@pytest.mark.parametrize("index", [0, 1])
def test_kernel_starts_on_the_device_of_its_arguments(current, index):
    kernel, tensor = Kernel(current), SimpleNamespace(device=torch.device("cuda", index))
    launch(kernel, (2, 3), tensor, 7, SIZE=16)
    assert kernel.launches == [(index, (2, 3), (tensor, 7), {"SIZE": 16})]
    assert current == [0]


def test_batch_that_no_grid_holds_is_refused():
    check_grid("requests", 65_535)
    with pytest.raises(ValueError, match="requests must be at most 65535 on a GPU, got 65536"):
        check_grid("requests", 65_536)
