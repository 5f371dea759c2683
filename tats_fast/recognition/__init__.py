"""Recognition: how well a pretrained encoder's features tell classes apart."""
