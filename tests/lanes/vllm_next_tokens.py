"""What vLLM on a CPU generates from a checkpoint. Runs in the `vllm` lane's environment.

    PYTHON vllm_next_tokens.py FOLDER PROMPTS.json [--dtype auto]

PROMPTS.json holds {"prompts": [[token ids] ...], "max_tokens": n}. The last line of stdout is
{"load_seconds": s, "results": [{"tokens": [n greedy ids], "top5": {"id": natural-log probability}} ...]},
one result for a prompt; `top5` is of the first generated token. Packed 4-bit weights do not run in float32.
"""

import argparse
import json
import os
import time

# Read when vLLM is imported: no network, no second process, 1 GiB of key-value cache.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_NO_USAGE_STATS"] = "1"


def main() -> None:
    parser = argparse.ArgumentParser(description="greedy tokens of a checkpoint in vLLM on a CPU")
    parser.add_argument("folder")
    parser.add_argument("prompts")
    parser.add_argument("--dtype", default="auto", help="of the activations: auto (the checkpoint's), float32 …")
    given = parser.parse_args()
    with open(given.prompts) as file:
        asked = json.load(file)

    started = time.perf_counter()
    from vllm import LLM, SamplingParams

    longest = max(map(len, asked["prompts"])) + asked["max_tokens"]
    cheap = {"enforce_eager": True, "skip_tokenizer_init": True, "max_model_len": longest, "max_num_seqs": 8}
    llm = LLM(given.folder, dtype=given.dtype, **cheap)
    seconds = round(time.perf_counter() - started, 2)

    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    greedy = {"temperature": 0, "max_tokens": asked["max_tokens"], "ignore_eos": True}
    answers = llm.generate(prompts, SamplingParams(**greedy, logprobs=5, detokenize=False), use_tqdm=False)
    results = []
    for answer in answers:
        first = answer.outputs[0].logprobs[0]
        best = sorted(first, key=lambda token: -first[token].logprob)[:5]
        top5 = {str(token): first[token].logprob for token in best}
        results.append({"tokens": list(answer.outputs[0].token_ids), "top5": top5})
    print(json.dumps({"load_seconds": seconds, "results": results}), flush=True)


if __name__ == "__main__":
    main()
