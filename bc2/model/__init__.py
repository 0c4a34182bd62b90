"""The network on one device: shape, decoder, attention, fused head and loss, storage."""
