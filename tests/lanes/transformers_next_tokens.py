"""What transformers with compressed-tensors generates from a checkpoint, and nothing of ours imported.

    python transformers_next_tokens.py FOLDER PROMPTS.json [--dtype auto] [--dequantize]

PROMPTS.json and the last line of stdout are as in vllm_next_tokens.py.
"""

import json
import time

from transformers_model import arguments, assert_nothing_of_ours, load


def main() -> None:
    given = arguments("greedy tokens of a checkpoint in transformers", "prompts", dtype="auto")
    with open(given.prompts) as file:
        asked = json.load(file)

    started = time.perf_counter()
    import torch

    model = load(given.folder, given.dtype, given.dequantize)
    seconds = round(time.perf_counter() - started, 2)

    results = []
    for prompt in asked["prompts"]:
        ids, top5 = list(prompt), dict[str, float]()
        for _ in range(asked["max_tokens"]):  # the whole prefix each time: no cache to trust
            with torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
            top5 = top5 or {str(token): float(logprobs[token]) for token in logprobs.topk(5).indices.tolist()}
            ids.append(int(logprobs.argmax()))
        results.append({"tokens": ids[len(prompt) :], "top5": top5})
    assert_nothing_of_ours()
    print(json.dumps({"load_seconds": seconds, "results": results}))


if __name__ == "__main__":
    main()
