"""The network on one device: configuration, decoder, attention, fused head and loss, storage."""
