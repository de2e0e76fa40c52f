"""SemiEvol: semi-supervised fine-tuning of language models (arXiv 2410.14745)."""
