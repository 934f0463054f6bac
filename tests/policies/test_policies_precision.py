"""In which arithmetic networks are trained, where the user leaves it to the machine."""

from __future__ import annotations

import msgspec
import pytest

from policies import precision
from policies.checkpoint import load_config
from policies.train import train_policy

X86 = "processor\t: 0\nflags\t\t: fpu avx2 {}\nbugs\t\t: none\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\nCPU part\t: 0xd40\n"


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """cpu(text) makes this a machine with that /proc/cpuinfo; without text, one that has none."""

    def pretend(text: str | None) -> None:
        file = tmp_path / "cpuinfo"
        if text is not None:
            file.write_text(text)
        monkeypatch.setattr(precision, "CPU_INFO", file)

    return pretend


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86.format("avx512f avx512_bf16"), "bf16"),
        (X86.format("amx_bf16 amx_tile"), "bf16"),
        (X86.format("avx512f"), "fp32"),  # would imitate bfloat16
        (ARM.format("bf16 i8mm"), "bf16"),
        (ARM.format("i8mm"), "fp32"),
        (None, "fp32"),
    ],
)
def test_auto_is_what_the_processor_multiplies_in(cpu, text, expected):
    cpu(text)
    assert precision.settled("auto", "cpu") == expected
    assert precision.settled("auto", "mps") == "fp32"


def test_what_the_user_chose_and_what_a_run_was_begun_with_stay(cpu):
    cpu(X86.format(""))
    assert precision.settled("bf16", "cpu", begun="fp32") == "bf16"
    assert precision.settled("auto", "cpu", begun="bf16") == "bf16"


def test_a_run_goes_on_as_it_was_begun_on_another_machine(cpu, datasets, tiny, quick, tmp_path):
    training = msgspec.structs.replace(quick, steps=1, precision="auto")
    for text in (X86.format("avx512_bf16"), X86.format("")):
        cpu(text)
        result = train_policy("diffusion", datasets["state"], tmp_path, tiny, training, resume=True, progress_bar=False)
        assert load_config(result.checkpoint).training["config"]["precision"] == "bf16"
