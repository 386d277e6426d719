"""Routing of timesteps to experts, and the two residencies: who is loaded when, and how many at once."""

from __future__ import annotations

import threading
import time
import weakref

import pytest
from torch import nn

from moesr.config import uniform_stages
from moesr.diffusion.experts import All, ExpertBank, Stream
from moesr.errors import CheckpointError, SettingError


class Net(nn.Module):
    """Stands for expert `number`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Builder:
    """Builds experts, and keeps account of the builds, their threads, and how many were ever alive together."""

    def __init__(self, delay: float = 0.0, failing: int | None = None) -> None:
        self.built: list[int] = []
        self.threads: list[int] = []
        self.most = 0
        self.failing = failing
        self._delay = delay
        self._references: list[weakref.ref[Net]] = []

    def __call__(self, i: int) -> nn.Module:
        time.sleep(self._delay)
        self.built.append(i)
        self.threads.append(threading.get_ident())
        if i == self.failing:
            raise CheckpointError(f"stage {i}: no such file")
        net = Net(i)
        self._references.append(weakref.ref(net))
        self.most = max(self.most, self.alive())
        return net

    def wait_for(self, count: int) -> list[int]:
        """What was built, once that many are begun in the background, or after five seconds."""
        deadline = time.monotonic() + 5
        while len(self.built) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.built

    def alive(self) -> int:
        return sum(reference() is not None for reference in self._references)


def number(network: nn.Module) -> int:
    assert isinstance(network, Net)
    return network.number


# ---- routing


@pytest.mark.parametrize("stages", [(1000,), (100, 500, 1000), uniform_stages(1000, 3), (250, 500, 750, 1000)])
def test_every_timestep_has_the_expert_of_its_range(stages: tuple[int, ...]) -> None:
    bank = ExpertBank(stages, All([Net(i) for i in range(len(stages))]))
    starts = [0, *stages[:-1]]
    for t in range(1000):
        i = bank.index(t)
        assert starts[i] <= t < stages[i]
        with bank.stage(t) as network:
            assert number(network) == i
    assert len(bank) == len(stages)


def test_a_timestep_outside_and_stages_that_do_not_ascend_are_errors() -> None:
    for t in (-1, 1000):
        with pytest.raises(SettingError, match=f"timestep {t}.*0 to 999"):
            ExpertBank((500, 1000), All([])).index(t)
    for stages in ((), (0, 1000), (500, 500), (750, 500), (-5,)):
        with pytest.raises(SettingError, match="ascending"):
            ExpertBank(stages, All([]))


def test_plan_visits_each_expert_once_in_order_of_run() -> None:
    bank = ExpertBank((100, 500, 1000), All([]))
    assert bank.plan([999, 500, 499, 100, 99, 1]) == [(2, [999, 500]), (1, [499, 100]), (0, [99, 1])]
    assert bank.plan([999, 40]) == [(2, [999]), (0, [40])]
    assert bank.plan([]) == []


# ---- streaming


@pytest.mark.parametrize("stages", [(1000,), (100, 500, 1000), (250, 500, 750, 1000)])
@pytest.mark.parametrize("stride", [1000, 300, 40])
def test_stream_loads_each_expert_once_and_holds_two_at_most(stages: tuple[int, ...], stride: int) -> None:
    build = Builder()
    bank = ExpertBank(stages, Stream(build))
    timesteps = list(range(999, -1, -stride))
    bank.start(timesteps)
    for t in timesteps:
        for _tile in range(2):
            with bank.stage(t) as network:  # `network` outlives the block: the hard case for the limit of two
                assert number(network) == bank.index(t)
                time.sleep(0.001)
    assert build.built == [i for i, _ in bank.plan(timesteps)]
    assert build.most == min(2, len(build.built))
    del network
    bank.close()
    assert build.alive() == 0


def test_the_next_expert_is_built_in_the_background_while_one_works() -> None:
    build = Builder(delay=0.05)
    bank = ExpertBank((500, 1000), Stream(build))
    bank.start([900, 100])
    with bank.stage(900):
        assert build.wait_for(2) == [1, 0]
    assert build.threads[0] == threading.get_ident() != build.threads[1]
    with bank.stage(100) as network:
        assert number(network) == 0
    assert build.built == [1, 0]
    bank.close()


def test_nothing_is_prefetched_without_a_plan_or_after_the_last_expert() -> None:
    build = Builder()
    bank = ExpertBank((500, 1000), Stream(build))
    with bank.stage(900):
        pass
    bank.start([100])
    with bank.stage(100):
        pass
    bank.close()
    assert build.built == [1, 0]


def test_one_step_of_each_expert_still_prefetches_with_the_expert_before_held() -> None:
    build = Builder()
    bank = ExpertBank((250, 500, 750, 1000), Stream(build))
    bank.start([900, 600, 300])
    for t in (900, 600):
        with bank.stage(t) as network:
            assert number(network) == bank.index(t)
    assert build.wait_for(3) == [3, 2, 1]
    assert build.most == 2
    bank.close()


def test_the_expert_before_is_let_go_before_the_next_is_built() -> None:
    build = Builder()
    stream = Stream(build)
    for i in (2, 1, 0):
        with stream.use(i):
            pass
    assert build.built == [2, 1, 0]
    assert build.most == 1
    stream.close()


def test_a_wrong_guess_is_dropped() -> None:
    build = Builder()
    stream = Stream(build)
    with stream.use(3):
        stream.prefetch(2)
    with stream.use(0) as network:
        assert number(network) == 0
        assert build.alive() == 1
    stream.close()
    assert build.most <= 2


def test_an_error_of_a_prefetched_build_appears_at_use_and_can_be_retried() -> None:
    build = Builder(failing=2)
    bank = ExpertBank((250, 500, 750, 1000), Stream(build))
    bank.start([900, 600])
    with bank.stage(900):
        pass
    with pytest.raises(CheckpointError, match="stage 2"), bank.stage(600):
        pytest.fail("the block must not run")
    build.failing = None
    with bank.stage(600) as network:
        assert number(network) == 2
    assert build.built == [3, 2, 2]
    bank.close()


def test_an_exception_in_the_block_leaves_a_usable_object() -> None:
    build = Builder()
    bank = ExpertBank((500, 1000), Stream(build))
    bank.start([900, 100])
    with pytest.raises(ZeroDivisionError), bank.stage(900):
        raise ZeroDivisionError
    for t in (900, 100):
        with bank.stage(t) as network:
            assert number(network) == bank.index(t)
    assert build.built == [1, 0]
    bank.close()


def test_a_closed_stream_can_be_used_again() -> None:
    build = Builder()
    stream = Stream(build)
    with stream.use(1):
        stream.prefetch(0)
    stream.close()
    assert build.alive() == 0
    stream.close()
    with stream.use(1):
        stream.prefetch(0)
    with stream.use(0) as network:
        assert number(network) == 0
    stream.close()


def test_two_experts_inside_one_another_are_refused() -> None:
    stream = Stream(Builder())
    with stream.use(1) as outer:
        with stream.use(1) as inner:
            assert inner is outer
        with pytest.raises(RuntimeError, match="inside the block"), stream.use(0):
            pytest.fail("the block must not run")
    stream.close()


def test_threads_take_turns() -> None:
    build = Builder()
    bank = ExpertBank((250, 500, 750, 1000), Stream(build))
    inside, wrong = [0], []

    def run() -> None:
        for t in range(999, -1, -50):
            with bank.stage(t) as network:
                inside[0] += 1
                if inside[0] != 1 or number(network) != bank.index(t):
                    wrong.append(t)
                time.sleep(0.0005)
                inside[0] -= 1
            del network

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)
    assert build.most <= 2
    bank.close()
