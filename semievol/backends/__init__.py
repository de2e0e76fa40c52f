"""Engines behind the ports: the only modules that import torch, transformers, PEFT, vLLM or openai."""
