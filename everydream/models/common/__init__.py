"""What the Stable Diffusion families share: layouts of files, configurations, the networks themselves."""
