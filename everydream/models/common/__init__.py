"""What the families share: layouts of files, configurations, text encoders, the networks themselves."""
