"""Whatever a test does to the process, the next one finds the process as it was."""

from __future__ import annotations

import pytest
import torch

from specs.harness.state import known_states
from specs.harness.tests.conftest import Suite
from specs.harness.tests.pollution import POLLUTIONS


def test_every_known_piece_of_state_has_a_pollution() -> None:
    names = {state.name for state in known_states()} - {"cuda random"}
    assert names == POLLUTIONS.keys()


def test_each_piece_of_state_is_put_back(suite: Suite) -> None:
    """Every pollution is seen in its own test, and by no test after it."""
    suite.write(
        "from specs.harness.tests.pollution import POLLUTIONS, readings\n",
        "clean = {}\n",
        "def test_first():\n",
        "    clean.update(readings())\n",
        "@pytest.mark.parametrize('name', POLLUTIONS)\n",
        "class TestPollution:\n",
        "    def test_is_seen(self, name):\n",
        "        POLLUTIONS[name]()\n",
        "        assert readings()[name] != clean[name]\n",
        "    def test_is_gone(self, name):\n",
        "        assert readings() == clean\n",
    )
    # A process of its own: what torch imports on the way cannot be imported twice.
    result = suite.run_apart()
    result.assert_outcomes(passed=1 + 2 * len(POLLUTIONS))


@pytest.mark.parametrize("how", ["assert False", "pytest.skip()", "raise SystemExit"])
def test_the_state_is_put_back_however_the_test_ends(suite: Suite, how: str) -> None:
    pollution = "import torch\n\ndef test_pollutes():\n    torch.set_default_dtype(torch.float64)\n"
    suite.write(pollution, f"    {how}\n")
    suite.run()
    assert torch.get_default_dtype() == torch.float32


def test_every_test_starts_from_the_same_seed_and_with_one_thread(suite: Suite) -> None:
    suite.write(
        "import random, numpy, torch\n",
        "drawn = []\n",
        "@pytest.mark.parametrize('i', range(3))\n",
        "def test_draws(i):\n",
        "    drawn.append((random.random(), numpy.random.rand(), torch.rand(1).item()))\n",
        "    assert torch.get_num_threads() == 1\n",
        "def test_all_alike():\n",
        "    assert len(set(drawn)) == 1\n",
    )
    suite.run().assert_outcomes(passed=4)
