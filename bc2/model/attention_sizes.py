"""Sizes of attention's tensors. Memory is planned with them too.

Imports no torch.
"""

#: Channels that ALiBi adds to those of a head: see `bc2.model.alibi_channels`.
ALIBI_CHANNELS = 8

#: For sdpa, documents are padded to a multiple of this many tokens.
PAD_TO = 64
