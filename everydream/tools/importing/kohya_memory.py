"""What kohya's scripts do for room on the device, as our `memory` section."""

from everydream.tools.importing.draft import Draft
from everydream.tools.importing.keys import Keys

_ACROSS = ("prodigy", "schedule_free_adamw", "paged_adamw_8bit")
"""Optimizers of ours that do not step parameter by parameter."""


def put_memory(keys: Keys, draft: Draft) -> None:
    """Set what of the memory section is asked for; after optimizer, precision and accumulation."""
    if keys.given("gradient_checkpointing"):
        draft.put("train.gradient_checkpointing", keys.flag("gradient_checkpointing", True), "gradient_checkpointing")
    for key, ours in (("xformers", "xformers"), ("diffusers_xformers", "xformers"), ("sdpa", "sdpa")):
        if keys.flag(key, False) and "memory.attention" not in draft.entries:
            draft.put("memory.attention", ours, key)
    wanted = [key for key in ("full_bf16", "fused_backward_pass", "fused_optimizer_groups") if _is_on(keys, key)]
    optimizer, precision = draft.settings_at("optimizer.name"), draft.settings_at("train.precision")
    if wanted and (optimizer in _ACROSS or precision != "bf16"):
        why = f"mixed_precision {precision}" if precision != "bf16" else f"optimizer.name: {optimizer}"
        draft.tell("missing", f"{', '.join(wanted)}: not together with {why}; see docs/memory.md.")
        return
    if "full_bf16" in wanted:
        _put_bf16(draft, optimizer)
    if set(wanted) - {"full_bf16"}:
        _put_fused(draft, wanted[-1])


def _is_on(keys: Keys, key: str) -> bool:
    """Tell whether a flag is set, or a number above 0."""
    return bool(keys.whole(key, 0)) if key == "fused_optimizer_groups" else bool(keys.flag(key, False))


def _put_bf16(draft: Draft, optimizer: str) -> None:
    draft.put("memory.weights", "bf16", "full_bf16")
    draft.put("memory.frozen", "bf16", "full_bf16")
    if not optimizer.endswith("8bit"):
        draft.put("memory.optimizer_state", "bf16", "full_bf16")
    draft.tell(
        "changed",
        "full_bf16: rounded by chance here, to the nearest there, which loses small updates; see docs/memory.md.",
    )


def _put_fused(draft: Draft, key: str) -> None:
    if draft.settings_at("train.gradient_accumulation") not in (None, 1):
        draft.tell("missing", f"{key}: not together with gradient_accumulation_steps, there as here.")
        return
    draft.put("memory.fused_backward", True, key)
    if draft.settings_at("train.max_grad_norm") is not None:
        draft.tell(
            "changed",
            f"{key}: max_grad_norm clips each tensor by itself there; here the norm of all, for which every step is "
            "computed twice. train.max_grad_norm: null saves that.",
        )
