"""What is otherwise on a GPU, as far as a CPU can tell."""

from __future__ import annotations

from mutant_lists.mutant import Mutant

_KERNELS = "hf_maskdiff/kernels/__init__.py"
_PASSES = "hf_maskdiff/kernels/few_passes.py"
_MARGINALS = "hf_maskdiff/marginals.py"
_TESTS = "tests/test_kernels.py"

MUTANTS = [
    Mutant(
        "kernels-not-switched-off",
        "who switches the kernels off still gets them",
        _KERNELS,
        'if device.type != "cuda" or os.environ.get(SWITCH) == "0":',
        'if device.type != "cuda":',
        (_TESTS + "::test_they_are_on_unless_switched_off",),
    ),
    Mutant(
        "wrong-kernels-used",
        "kernels that compute otherwise than torch are used all the same",
        _KERNELS,
        "return not wrong",
        "return True",
        (_TESTS + "::test_a_machine_on_which_they_fail_is_told_once",),
    ),
    Mutant(
        "margin-to-itself",
        "the margin is that to the likeliest token itself",
        _PASSES,
        "log_probs.scatter_(1, at[:, None], -torch.inf).amax(-1)",
        "log_probs.amax(-1)",
        (_TESTS + "::test_measures_in_few_passes",),
    ),
    Mutant(
        "norm-of-beta-one",
        "the moment of an accelerator is that of another beta",
        _PASSES,
        "torch.linalg.vector_norm(masses, beta, dim=-1)",
        "torch.linalg.vector_norm(masses, beta + 1, dim=-1)",
        (_TESTS + "::test_measures_in_few_passes",),
    ),
    Mutant(
        "views-of-what-is-changed",
        "an accelerator scores logits without their temperature",
        _MARGINALS,
        "changed = self.temperature != 1.0 or ",
        "changed = ",
        (_TESTS + "::test_an_accelerator_computes_the_same",),
    ),
    Mutant(
        "unwanted-ranks-drawn",
        "ranks beyond a row's count get a token on an accelerator",
        _MARGINALS,
        "torch.where(wanted & (drawn < self.num_tokens), drawn, tokens)",
        "torch.where(drawn < self.num_tokens, drawn, tokens)",
        (_TESTS + "::test_an_accelerator_computes_the_same",),
    ),
    Mutant(
        "fake-tensor-kept",
        "a tensor that stands for another while a compiler traces is kept",
        "hf_maskdiff/kept_tensors.py",
        "plain = all(type(part) is Tensor for part in parts)",
        "plain = True",
        ("tests/test_kept_tensors.py::test_a_fake_tensor_is_not_kept",),
    ),
    Mutant(
        "a-graph-for-each-step",
        "a compiled text model is called with other shapes in each step",
        "hf_maskdiff/pipelines/text_denoising.py",
        "if most == size or is_compiled(self.denoiser.model):",
        "if most == size:",
        ("tests/pipelines/test_pipeline_mdlm.py::test_a_compiled_model_is_one_graph_in_all_steps",),
    ),
]
