"""onnxruntime-genai's side of `peers` (protocol: `peer_protocol`).

python benchmarks/peer_ort.py MODEL_DIR THREADS
"""

import json
import sys
from pathlib import Path

from peer_protocol import pin, serve, steps

MAX_LEN = 2304


def load(directory, threads):
    import onnxruntime_genai as og

    path = directory / "genai_config.json"
    config = json.loads(path.read_text())
    options = config["model"]["decoder"].setdefault("session_options", {})
    options["intra_op_num_threads"] = threads
    config["search"]["past_present_share_buffer"] = True
    path.write_text(json.dumps(config, indent=1))
    model = og.Model(str(directory))
    state = {}

    def first(ids):
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=MAX_LEN, min_length=MAX_LEN, do_sample=False)
        state["generator"] = og.Generator(model, params)
        state["generator"].append_tokens(ids)
        return following(None)

    def following(_):
        state["generator"].generate_next_token()
        return int(state["generator"].get_next_tokens()[0])

    return lambda ids, decode: steps(first, following, ids, decode)


def version():
    import onnxruntime_genai as og

    return f"onnxruntime-genai {og.__version__}"


def main():
    directory, threads = Path(sys.argv[1]), int(sys.argv[2])
    pin(threads)
    serve(lambda: load(directory, threads), version)


if __name__ == "__main__":
    main()
