"""Tasks for lmms-eval, which has no MSVD-QA, MSRVTT-QA and TGIF-QA: pass this folder with `--include_path`."""
