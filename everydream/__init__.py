"""EveryDream: caption-driven full fine-tuning of Stable Diffusion.

Folders of captioned images are scanned into an index; index, mix and seed are planned into epochs of
bucketed batches; the step turns a batch into a loss per image; the loop turns losses into optimizer
steps and writes checkpoints. `docs/architecture.md` is the map.
"""

__version__ = "0.1.0"
