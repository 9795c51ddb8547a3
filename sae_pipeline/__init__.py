"""Train and judge sparse autoencoders as a data pipeline: see README.md and docs/."""
