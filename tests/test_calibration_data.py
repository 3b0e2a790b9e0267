"""Chats, datasets, tensors and live models as calibration data, with real tokenizers."""

import json
import sys

import pytest

from gs_core import CalibrationError, PlanError, api, calibration, evaluate, plan, quantize

CHATS = [
    [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4."}],
    [
        {"role": "system", "content": "You answer briefly."},
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Grün."},
    ],
]
TEXTS = ["The quick brown fox", "jumps over the lazy dog.\n" * 20]
SMALL = {"samples": 2, "seq_len": 16}


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


def stream(source, tokenizer):
    return calibration.stream(source, 1000, tokenizer).tolist()


# --- chats ---------------------------------------------------------------------------------------------------


def test_chats_are_tokenized_as_transformers_tokenizes_them(smollm2, tokenizer, tmp_path):
    expected = [i for chat in CHATS for i in tokenizer.apply_chat_template(chat, return_dict=False)]
    sharegpt = [[{"from": m["role"], "value": m["content"]} for m in chat] for chat in CHATS]
    messages = "".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS)
    (tmp_path / "a.jsonl").write_text(messages)
    (tmp_path / "a.json").write_text(json.dumps([{"conversations": chat} for chat in sharegpt]))
    model = api.open_source(smollm2).model
    for source in (CHATS, tmp_path / "a.jsonl", tmp_path / "a.json"):
        assert stream(source, model) == expected
        assert stream(source, tokenizer) == expected


def test_a_model_without_a_chat_template_says_so(data):
    model = api.open_source(data.model("tiny-llama")).model
    with pytest.raises(CalibrationError, match=r"item 1 .*: the tokenizer has no chat template; give texts"):
        stream(CHATS, model)


def test_a_chat_that_the_template_refuses_is_an_error_of_its_line(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": [3]}]}\n')
    with pytest.raises(CalibrationError, match=r"a\.jsonl, line 1: the chat template refuses this chat \(TypeError"):
        stream(tmp_path / "a.jsonl", tokenizer)


# --- datasets ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets")


def test_datasets_give_the_tokens_of_their_texts(datasets, tokenizer, tmp_path):
    dataset = datasets.Dataset.from_dict({"label": [0, 1], "text": TEXTS})
    dataset.save_to_disk(tmp_path / "saved", num_shards=2)
    dataset.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "saved" / "cache-1.arrow").write_bytes(b"not listed in state.json")
    for source in (dataset, dataset["text"], tmp_path / "saved", tmp_path / "a.parquet"):
        assert stream(source, tokenizer) == stream(TEXTS, tokenizer)


def test_datasets_of_chats(datasets, tokenizer, tmp_path):
    dataset = datasets.Dataset.from_dict({"prompt": ["Hi", "Hi"], "messages": CHATS})
    dataset.save_to_disk(tmp_path / "saved")
    for source in (dataset, tmp_path / "saved"):
        assert stream(source, tokenizer) == stream(CHATS, tokenizer)


def test_the_cache_of_the_datasets_library_is_found_by_its_hub_id(datasets, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    dataset = datasets.Dataset.from_dict({"text": TEXTS})
    folder = tmp_path / "user___texts" / "default" / "0.0.0"
    dataset.save_to_disk(folder)
    (folder / "state.json").unlink()
    (folder / "data-00000-of-00001.arrow").rename(folder / "texts-train.arrow")
    (folder / "texts-test.arrow").write_bytes(b"another split")
    assert stream("user/texts", tokenizer) == stream(TEXTS, tokenizer)


def test_a_dataset_of_several_splits_asks_for_one(datasets, tokenizer, tmp_path):
    split = datasets.Dataset.from_dict({"text": TEXTS})
    both = datasets.DatasetDict({"train": split, "test": split})
    both.save_to_disk(tmp_path / "saved")
    with pytest.raises(CalibrationError, match="saved: a dataset of several splits; name one: test, train"):
        stream(tmp_path / "saved", tokenizer)
    with pytest.raises(CalibrationError, match=r"a DatasetDict of train, test .*dataset\['train'\]"):
        stream(both, tokenizer)
    assert stream(tmp_path / "saved" / "train", tokenizer) == stream(TEXTS, tokenizer)


def test_null_texts_and_missing_columns_are_named(datasets, tokenizer, tmp_path):
    datasets.Dataset.from_dict({"text": ["a", None]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(CalibrationError, match=r"a\.parquet, row 2: 'text' is null"):
        stream(tmp_path / "a.parquet", tokenizer)
    datasets.Dataset.from_dict({"body": ["a"]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(CalibrationError, match=r"b\.parquet: no column is named text, .*; it has body"):
        stream(tmp_path / "b.parquet", tokenizer)


def test_without_pyarrow_a_dataset_says_what_to_install(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("gs_core.calibration.arrow.find_spec", lambda name: None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_info.json").write_text("{}")
    (tmp_path / "saved" / "data.arrow").write_bytes(b"")
    for name in ("a.parquet", "saved"):
        with pytest.raises(PlanError, match="Run: pip install datasets"):
            plan(data.model("tiny-llama"), "w8a8-rtn", calibration=tmp_path / name)


# --- tensors and live models ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live(data):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(data.model("tiny-llama"), dtype="auto")


def test_torch_tensors_are_token_ids(tmp_path):
    import torch

    ids = torch.arange(64).reshape(2, 32)
    assert calibration.load(ids, 2, 16, None).tolist() == ids[:, :16].tolist()
    assert calibration.load({"input_ids": ids.int()}, 2, 16, None).tolist() == ids[:, :16].tolist()


def test_a_live_model_uses_the_tokenizer_of_its_name_or_path(live, data):
    model = api.open_source(live).model
    assert stream(TEXTS, model) == stream(TEXTS, api.open_source(data.model("tiny-llama")).model)


@pytest.fixture
def live_without_path(live, monkeypatch):
    """A live model with an empty ``name_or_path``."""
    monkeypatch.setattr(live.config, "_name_or_path", "")
    monkeypatch.setattr(live, "name_or_path", "")
    return live


def test_a_live_model_without_a_tokenizer_asks_for_one(live_without_path, data, tmp_path):
    with pytest.raises(CalibrationError) as caught:
        quantize(live_without_path, "w8a8-smoothquant", tmp_path / "out", calibration=TEXTS, **SMALL)
    assert "tokenizer=" in str(caught.value)
    assert "golden-stick-" not in str(caught.value), "no name of a temporary folder"


def test_a_tokenizer_can_be_given(live_without_path, data, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data.model("tiny-llama"))
    texts = TEXTS * 10
    assert plan(live_without_path, "w8a8-smoothquant", calibration=texts, tokenizer=tokenizer).needs_data
    ids = calibration.stream(texts, 10_000, tokenizer)
    by_function = {"calibration": texts, "tokenizer": lambda text: tokenizer(text, add_special_tokens=False).input_ids}
    kinds = [{"calibration": texts, "tokenizer": tokenizer}, by_function, {"calibration": ids}]
    written = []
    for number, given in enumerate(kinds):
        out = tmp_path / str(number)
        quantize(live_without_path, "w8a8-smoothquant", out, **given, samples=len(ids) // 16, seq_len=16)
        written.append([path.read_bytes() for path in sorted(out.glob("*.safetensors"))])
    assert len(written[0]) > 1
    assert written[0] == written[1] == written[2]
    found = evaluate(live_without_path, texts, seq_len=16, windows=2, tokenizer=tokenizer)
    assert (found.model, found.windows) == (type(live_without_path).__name__, 2)


def test_token_ids_need_no_tokenizer(live_without_path, tmp_path):
    import torch

    ids = torch.arange(64).reshape(2, 32)
    report = quantize(live_without_path, "w8a8-smoothquant", tmp_path / "out", calibration=ids, **SMALL)
    assert report.layers
