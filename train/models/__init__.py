"""Networks and where their pretrained weights come from."""
