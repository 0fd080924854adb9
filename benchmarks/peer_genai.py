"""The peer's side of `onnx_3b`: onnxruntime-genai, driven line by line over stdin and stdout.

    python benchmarks/peer_genai.py MODEL_DIR THREADS

Runs in its own environment and imports nothing of this project. Each line in is a JSON object
{"ids", "decode"}, each line out {"prefill_s", "decode_s": [...], "cpu_s"}; the last is the
processor time of the decoding. With the same ids again the cache is rewound, not prefilled.
"""

import json
import sys
import time
from pathlib import Path

import onnxruntime_genai as og


def main() -> None:
    directory, threads = Path(sys.argv[1]), int(sys.argv[2])
    path = directory / "genai_config.json"
    config = json.loads(path.read_text())
    options = config["model"]["decoder"].setdefault("session_options", {})
    options["intra_op_num_threads"] = threads
    config["search"]["past_present_share_buffer"] = True
    path.write_text(json.dumps(config, indent=1))
    model = og.Model(str(directory))
    print(json.dumps({"ready": True, "version": og.__version__}), flush=True)
    generator, prompt, prefill = None, None, 0.0
    for line in sys.stdin:
        request = json.loads(line)
        ids, count = request["ids"], request["decode"]
        if ids != prompt:
            params = og.GeneratorParams(model)
            length = len(ids) + count + 8
            params.set_search_options(max_length=length, min_length=length, do_sample=False)
            generator, prompt = og.Generator(model, params), ids
            start = time.perf_counter()
            generator.append_tokens(ids)
            generator.generate_next_token()
            prefill = time.perf_counter() - start
        else:
            first = int(generator.get_sequence(0)[len(ids)])
            generator.rewind_to(len(ids))
            generator.append_tokens([first])
            generator.generate_next_token()
        steps, cpu = [], time.process_time()
        for _ in range(count):
            start = time.perf_counter()
            generator.generate_next_token()
            steps.append(time.perf_counter() - start)
        cpu = time.process_time() - cpu
        answer = {"prefill_s": prefill, "decode_s": steps, "cpu_s": cpu}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
