"""What the settings of the training commands are, for `--help`: units, and what 0 or none mean.

One text a name, for every command that has it; what is a command's own stands under its config
class.
"""

from __future__ import annotations

_COMMON = {
    "seed": "The same seed, the same run.",
    "steps": "Optimizer steps.",
    "epochs": "Times that the rows of --data are gone through, where --steps is 0.",
    "save_every": "Steps between two saved states, from which the same command goes on.",
    "tensorboard": "Write TensorBoard's event files; auto: where the package is installed.",
    "reattention": "What is put in before each <REFLECTION>, as at inference.",
    "inject": "embed: run the visual embeddings through the decoder again; kv: append their keys "
    "and values, rotated.",
    "route_percent": "Share of the visual tokens that route puts in, 0 to 100 %.",
    "max_reflections": "Reflections that get visual tokens, at most.",
    "global_batch": "Sequences of a step, over all processes.",
    "micro_batch": "Sequences of one forward pass, in each process.",
    "max_length": "Positions of a sequence, prompt and copies included; longer rows are skipped.",
    "max_pixels": "Pixels that a picture is scaled down to; 0: the checkpoint's.",
    "lr": "Learning rate at its height.",
    "beta1": "AdamW's decay of the gradient's mean.",
    "beta2": "AdamW's decay of the gradient's square.",
    "eps": "AdamW's epsilon.",
    "weight_decay": "AdamW's decoupled decay of the weights.",
    "warmup_frac": "Share of the updates over which the rate rises, 0 to 1.",
    "decay_frac": "Share of the updates, the last ones, over which the rate falls to 0.",
    "max_norm": "Norm that the gradient of all weights together is clipped to.",
    "dtype": "Of the forward and backward pass; the optimizer's weights are float32. bfloat16 is "
    "the slower one on a CPU without AVX-512.",
    "train_vision": "Train vision tower and merger too.",
    "only_tag_rows": "Of embedding and head train the rows of the added tokens alone.",
    "recompute": "Recompute activations in the backward pass: less memory, more time.",
    "policy": "What looks again: a preset (copy, route, random, vision, text, never) or FILE.yaml.",
    "temperature": "Of the answers that are drawn; 0: the most likely token, always.",
    "max_tokens": "Tokens of an answer, at most.",
    "batch": "Answers that are decoded at once.",
    "num_per_family": "Questions of each family, the split's first ones.",
    "split": "Which of LookWorld's questions.",
    "world": "LookWorld's dials that differ: one, such as clutter=0.5, or JSON of several.",
    "warmup": "Steps over which the rate rises.",
    "reasoning_length": "How much a written reasoning says of the picture.",
    "num_validation": "LookWorld questions of a validation.",
}

_OWN = {
    "BrpoConfig": {
        "steps": "Steps; each draws answers to new questions and learns from them.",
        "epochs": "Times that the answers of a step are learnt from.",
        "validate_every": "Steps between two validations on LookWorld; 0: none.",
        "questions": "Questions of a step, in each process.",
        "group_size": "Answers to each question, whose rewards are compared.",
        "max_completion": "Tokens of an answer, at most.",
        "max_length": "Positions of prompt, answer and copies together, at most.",
        "engine": "What draws the answers: torch, the weights themselves; onnx or native, a bundle "
        "of them, built for every step.",
        "accuracy_weight": "Weight of the reward for a right answer.",
        "format_weight": "Weight of the reward for the format.",
        "balance_weight": "Weight of the reward for balanced reflections.",
        "ideal_length": "Tokens that a reflection should have (lambda of the balance reward).",
        "no_reflection": "Balance reward of an answer that does not reflect.",
        "balance_floor": "Least balance reward; none: without bound.",
        "truncated": "An answer cut off at --max-completion: no reward, left out, or as any other.",
        "clip": "Epsilon of the clipped probability ratio.",
        "clip_high": "Epsilon above 1, where it differs; none: as --clip.",
        "beta": "Weight of the KL divergence from the model that the run began with.",
        "mean": "Loss: mean over each answer's tokens, then answers; or over all tokens.",
        "ratio": "Probability ratio of each token, or of the whole answer.",
        "divide_by_std": "Divide a group's advantages by the deviation of its rewards.",
        "micro_batch": "Answers of one pass.",
        "accumulation": "Passes of an update.",
        "shard": "Spread weights and optimizer over the processes (FSDP2).",
    },
    "SftConfig": {
        "steps": "Optimizer steps; 0: --epochs times the rows of --data.",
    },
    "ColdStartConfig": {
        "layers": "Of the decoder.",
        "short_steps": "First steps, whose sequences leave the reflection out.",
        "scenes": "Pictures of a step.",
        "questions": "Questions about each picture.",
        "dense": "Weight of the labels of visual tokens.",
        "caption_weight": "Weight of a caption's tokens.",
        "error_rate": "Share of the reasonings that err until the reflection, 0 to 1.",
        "train_tower": "Train the vision tower too.",
        "pictures": "Show pictures; without, the decoder reasons from captions.",
        "caption_error_frac": "Share of those that err from the caption on, 0 to 1.",
        "hard": "Ask the families that take longest to learn most.",
        "conclude": "Let sequences without a reflection conclude.",
        "average_decay": "Of the mean of the weights that is exported; 0: the last weights.",
    },
    "PretrainConfig": {
        "batch": "Pictures of a step.",
        "muon": "Muon for matrices, in place of AdamW.",
        "digit_frac": "Share of the large objects that carry a digit, 0 to 1.",
        "large_frac": "Share of large objects, 0 to 1.",
        "num_validation": "Pictures of a validation.",
    },
    "DistillConfig": {
        "num": "Questions asked; fewer where --data has fewer.",
        "quorum": "Verifiers whose objection rejects an answer.",
        "veto": "Verifiers, by comma, whose objection alone rejects.",
        "on_reject": "A rejected answer: replaced by a written one, or dropped.",
        "first": "LookWorld: number of the first question.",
    },
    "PlantingConfig": {
        "repeats": "Times that the given reasoning is said, so that the reflection stands farther "
        "from the image.",
        "max_tokens": "Tokens of an answer, its given beginning included.",
    },
    "AttentionConfig": {
        "min_answers": "Answers that a point of the mean curve needs.",
    },
}


def setting_help(config: type, name: str) -> str:
    """The text of a field of a command's config class. Raises KeyError where none is written."""
    return (_COMMON | _OWN.get(config.__name__, {}))[name]
