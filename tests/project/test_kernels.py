"""Which kernels of OpenBLAS the numeric tests run under again."""

from kernels import NEEDED, kernels


def test_a_processor_is_asked_for_what_it_can_do():
    everything = set().union(*NEEDED.values())
    assert kernels(everything, {"SkylakeX"}) == ["Prescott", "Haswell"]
    assert kernels(everything - {"avx512bw"}, {"Haswell"}) == ["Prescott"]
    assert kernels({"pni"}, {"Katmai"}) == kernels(set(), set()) == []
