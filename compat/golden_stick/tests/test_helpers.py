"""Network helpers over a YAML file, from local files only."""

import sys

import numpy as np
import pytest

pytestmark = [pytest.mark.lane, pytest.mark.usefixtures("mindspore")]


@pytest.fixture
def helper(workspace):
    from gs_compat.helpers import MFLlama2Helper

    return MFLlama2Helper(str(workspace / "predict_llama2_7b.yaml"))


def test_specs_are_those_of_the_yaml_file(helper, workspace):
    assert [helper.get_spec(name) for name in ("batch_size", "seq_length", "ignore_token_id")] == [1, 64, -100]
    assert helper.get_spec("vocab_file") == str(workspace / "tokenizer.json")
    with pytest.raises(KeyError, match=r"no 'seq_len'; it has:.*seq_length"):
        helper.get_spec("seq_len")


def test_a_config_object_does_as_well_as_a_path(workspace):
    from mindformers import MindFormerConfig

    from gs_compat.helpers import MFParallelLlama2Helper

    path = str(workspace / "predict_llama2_7b.yaml")
    assert MFParallelLlama2Helper(MindFormerConfig(path)).get_spec("seq_length") == 64
    with pytest.raises(TypeError, match="got dict"):
        MFParallelLlama2Helper({})
    with pytest.raises(ValueError, match="is not a file"):
        MFParallelLlama2Helper(path + "x")


def test_a_network_has_the_weights_of_its_checkpoint(helper, write_yaml):
    import mindspore as ms

    from gs_compat.helpers import MFLlama2Helper

    network = helper.create_network()
    ids = ms.Tensor(np.arange(64, dtype=np.int32)[None])
    wanted = network(ids)[0].asnumpy()
    ms.save_checkpoint(network, "llama2_7b.ckpt")
    again = MFLlama2Helper(write_yaml(checkpoint="llama2_7b.ckpt")).create_network()
    assert np.array_equal(again(ids)[0].asnumpy(), wanted)
    with pytest.raises(ValueError, match="has no tensor for model"):
        few = [{"name": p.name, "data": p} for p in list(network.get_parameters())[:3]]
        ms.save_checkpoint(few, "few.ckpt")
        MFLlama2Helper(write_yaml(checkpoint="few.ckpt")).create_network()


def test_a_network_that_mindformers_does_not_know_needs_its_repository(write_yaml):
    from gs_compat.helpers import MFParallelLlama2Helper

    helper = MFParallelLlama2Helper(write_yaml(architecture="ParallelLlamaForCausalLM"))
    assert "research" not in sys.modules
    with pytest.raises(ImportError, match="put the root of MindFormers' repository on PYTHONPATH"):
        helper.create_network()


def test_the_tokenizer_is_the_local_one(helper):
    tokenizer = helper.create_tokenizer()
    assert tokenizer.decode(tokenizer.encode("hello world"), skip_special_tokens=True) == "hello world"


def test_inputs_are_padded_to_the_networks_shape(helper):
    first, *others = helper.assemble_inputs(np.array([[5, 6, 7]]))
    assert first.shape == (1, 64)
    assert first.asnumpy()[0, :4].tolist() == [5, 6, 7, 2]
    assert others == [None] * 11
    with pytest.raises(ValueError, match=r"at most \(1, 64\)"):
        helper.assemble_inputs(np.zeros((2, 3), np.int64))


def test_inputs_with_a_cache_say_where_each_token_goes(helper):
    helper.mf_config.model.model_config.update({"use_past": True, "block_size": 16})
    *_, tables, slots = helper.assemble_inputs(np.arange(20)[None])
    assert tables.asnumpy().tolist() == [[0, 1, 2, 3]]
    assert slots.asnumpy().tolist() == list(range(20))


def test_what_comes_next_is_the_likeliest_token(helper):
    import mindspore as ms

    network = helper.create_network()
    prompt = np.array([[5, 6, 7]])
    (found,) = helper.generate(network, prompt, max_new_tokens=2)
    padded = np.zeros((1, 64), np.int32)
    padded[0, :3] = prompt
    for position in (3, 4):
        padded[0, position] = network(ms.Tensor(padded))[0].asnumpy()[0, position - 1].argmax()
    assert found.tolist() == padded[0, :5].tolist()


def test_a_helper_of_ones_own_says_what_it_lacks():
    from gs_compat.helpers import NetworkHelper

    with pytest.raises(NotImplementedError, match="NetworkHelper has no get_spec"):
        NetworkHelper().get_spec("seq_length")
